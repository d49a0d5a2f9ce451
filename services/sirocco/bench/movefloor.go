package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/sirocco-run/sirocco/pkg/runtime"
	"github.com/sirocco-run/sirocco/pkg/sandboxid"
)

// uploadPort is where a sandbox of our own takes its server in.
const uploadPort = 8002

// floors measures for each kind of sandbox what a move can't be faster than: pause,
// checkpoint, restore and resume of the same by this process, with nothing in between.
// It returns the medians in milliseconds; nil if they were not measured.
func (cfg Migrate) floors(ctx context.Context) ([]float64, error) {
	if cfg.FloorRuns == 0 {
		return nil, nil
	}
	var all []float64
	for _, k := range cfg.kinds() {
		median, err := cfg.floor(ctx, k)
		if err != nil {
			return nil, fmt.Errorf("checkpoint %s: %w", k.name, err)
		}
		all = append(all, median)
	}
	return all, nil
}

func (cfg Migrate) floor(ctx context.Context, k kind) (median float64, err error) {
	command := []string{"sleep", "100000"}
	if k.serves {
		command = []string{"sh", "-c", fmt.Sprintf("nc -l -p %d > %s && chmod 755 %s && exec %s -mb %d %d", uploadPort, witnessPath, witnessPath, witnessPath, k.mb, serverPort)}
	}
	d, err := openDirect(ctx, cfg.Programs, command)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, d.close(ctx)) }()
	if k.serves {
		if err := d.upload(ctx, filepath.Join(filepath.Dir(cfg.Programs.Supervisor), "witness")); err != nil {
			return 0, fmt.Errorf("put the server into the sandbox: %w", err)
		}
		client := d.plain(1)
		defer client.CloseIdleConnections()
		if err := reachable(ctx, client, "http://direct:"+strconv.Itoa(serverPort)+"/check"); err != nil {
			return 0, err
		}
	}
	var times []Sample
	for range cfg.FloorRuns {
		took, err := d.copied(ctx)
		if err != nil {
			return 0, err
		}
		times = append(times, Sample{Took: took})
	}
	return Distribute(times).P50, nil
}

// upload sends a file to who listens in the sandbox.
func (d *direct) upload(ctx context.Context, path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	var conn net.Conn
	for deadline := time.Now().Add(dialTimeout); ; {
		if conn, err = d.sandbox.Dial(ctx, uploadPort); err == nil {
			break
		}
		if time.Now().After(deadline) || !until(ctx, time.Now().Add(20*time.Millisecond)) {
			return err
		}
	}
	_, err = io.Copy(conn, file)
	return errors.Join(err, conn.Close())
}

// copied makes a copy of the sandbox and returns for how long neither ran. Nothing of
// the copy stays, and the sandbox runs on.
func (d *direct) copied(ctx context.Context) (took time.Duration, err error) {
	dir, err := os.MkdirTemp(d.dir, "c-")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir), d.sandbox.Resume(ctx)) }()
	spec := d.spec
	spec.ID = sandboxid.New()
	var began time.Time
	// As in a move, the sandbox is paused once everything else is ready.
	spec.Restore = func(ctx context.Context) (string, error) {
		began = time.Now()
		if err := d.sandbox.Pause(ctx); err != nil {
			return "", err
		}
		return dir, d.sandbox.Checkpoint(ctx, dir)
	}
	var other runtime.Sandbox
	if other, err = d.runtime.Create(ctx, spec); err != nil {
		return 0, err
	}
	err = other.Resume(ctx)
	took = time.Since(began)
	return took, errors.Join(err, other.Destroy(ctx))
}
