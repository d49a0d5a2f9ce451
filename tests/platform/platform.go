// Package platform starts the real programs for tests: `sirocco up` as one
// process, or each service as a process of its own. What it starts keeps apart
// from every other platform of the machine: folders, ports and node names are
// its own.
package platform

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

// EnvBin names the folder of the built programs.
const EnvBin = "SIROCCO_BIN"

// Bin returns the folder of the programs that `make build` makes, or an error
// that says what is missing and what to do.
func Bin() (string, error) {
	if os.Geteuid() != 0 {
		return "", errors.New("these tests run real sandboxes and need root: run them as root")
	}
	dir := os.Getenv(EnvBin)
	if dir == "" {
		dir = filepath.Join(root(), "bin")
	}
	for _, name := range []string{"sirocco", "api", "scheduler", "node-agent", "tunnel-relay", "reaper", "runsc", "guest/init", "guest/base", "guest/base-net"} {
		if _, err := os.Stat(filepath.Join(dir, name)); errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("%s is not there: run `make build`, or name the folder of the programs with %s", filepath.Join(dir, name), EnvBin)
		}
	}
	return dir, nil
}

// root is the folder of the repository: the nearest one with a go.work.
func root() string {
	dir, err := os.Getwd()
	if err != nil {
		return "."
	}
	for d := dir; d != "/"; d = filepath.Dir(d) {
		if _, err := os.Stat(filepath.Join(d, "go.work")); err == nil {
			return d
		}
	}
	return dir
}

// ports returns the first of n ports of loopback that are free now. They lie
// below those that the kernel gives to outgoing connections.
func ports(n int) (int, error) {
	for range 1000 {
		first := 10000 + rand.IntN(22000-n)
		free := true
		for p := first; free && p < first+n; p++ {
			l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(p)))
			if free = err == nil; free {
				_ = l.Close()
			}
		}
		if free {
			return first, nil
		}
	}
	return 0, fmt.Errorf("no run of %d free ports between 10000 and 32000", n)
}

// loopback joins a port of this machine.
func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// Poll calls check until it returns "", and fails with what it returned last
// when limit has passed.
func Poll(limit time.Duration, check func() string) error {
	deadline := time.Now().Add(limit)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		why := check()
		if why == "" {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not within %v: %s", limit, why)
		}
		<-tick.C
	}
}

// Eventually is Poll for a test.
func Eventually(t testing.TB, limit time.Duration, check func() string) {
	t.Helper()
	if err := Poll(limit, check); err != nil {
		t.Fatal(err)
	}
}
