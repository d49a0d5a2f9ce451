// Command buildrunsc builds the runsc that package gvisor needs:
//
//	go run ./pkg/runtime/gvisor/cmd/buildrunsc bin/runsc
//
// It does nothing when the file is there and of the right version.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"

	"github.com/sirocco-run/sirocco/pkg/runtime/gvisor/pin"
	"github.com/sirocco-run/sirocco/pkg/runtime/gvisor/runscbuild"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 1 {
		return errors.New("usage: buildrunsc <output file>")
	}
	out, err := filepath.Abs(args[0])
	if err != nil {
		return err
	}
	if pin.Check(out) == nil {
		return nil
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	return runscbuild.Build(ctx, ".", out)
}
