// Command pod does, in images that have no shell, the two things that one would
// be needed for:
//
//	pod probe URL   exits with 0 if the URL answers 200, for a health check
//	pod hold        waits for SIGTERM, and keeps a network namespace meanwhile
//
// The second is what a node is made of: its address and its sandboxes' interfaces
// belong to the container that holds, so that the agent's may be restarted.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// probeTimeout is below the timeout of every health check in compose.yaml.
const probeTimeout = 2 * time.Second

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "pod:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	switch {
	case len(args) == 1 && args[0] == "hold":
		<-ctx.Done()
		return nil
	case len(args) == 2 && args[0] == "probe":
		return probe(ctx, args[1])
	}
	return errors.New("want `probe URL` or `hold`")
}

// probe asks a URL. The error says what came instead of 200, so that it can be
// read in the engine's list of failed checks.
func probe(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return fmt.Errorf("probe %s: %w", url, err)
	}
	resp, err := (&http.Client{Timeout: probeTimeout}).Do(req)
	if err != nil {
		return fmt.Errorf("probe: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		said, _ := io.ReadAll(io.LimitReader(resp.Body, 1024))
		return fmt.Errorf("probe %s: %s: %s", url, resp.Status, said)
	}
	return nil
}
