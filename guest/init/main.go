// Command init is process 1 of every sandbox: the supervisor (see package
// supervisor) on 127.0.0.1:49983, with the secret from its environment.
//
// It takes no arguments. Whatever it can't do is one line on standard error and
// exit code 1.
package main

import (
	"context"
	"net"
	"os"
	"runtime"
	"runtime/debug"

	"golang.org/x/sys/unix"

	"github.com/sirocco-run/sirocco/pkg/guest"
	"github.com/sirocco-run/sirocco/pkg/guest/supervisor"
)

const (
	// gcPercent trades a little work for memory: with it the heap is collected
	// at 1 MiB instead of 4 MiB.
	gcPercent = 25
	// softLimit makes the collector work harder before a sandbox with little
	// memory is killed for the supervisor's sake.
	softLimit = 24 << 20
	// threads is enough for one connection, whatever the machine has.
	threads = 2
)

func main() {
	if err := run(); err != nil {
		_, _ = os.Stderr.WriteString("sirocco init: " + err.Error() + "\n")
		os.Exit(1)
	}
}

func run() error {
	debug.SetGCPercent(gcPercent)
	debug.SetMemoryLimit(softLimit)
	runtime.GOMAXPROCS(threads)
	secret := os.Getenv(guest.SecretEnv)
	if secret == "" {
		return guest.Fail(guest.CodeInvalid, guest.SecretEnv, " is not set")
	}
	if err := os.Unsetenv(guest.SecretEnv); err != nil {
		return err
	}
	// Other processes may neither trace this one nor read its environment.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return err
	}
	wipe([]byte(guest.SecretEnv + "=" + secret))
	unix.Umask(0o022)
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: guest.Port})
	if err != nil {
		return err
	}
	s := supervisor.New(supervisor.Config{
		Secret: []byte(secret),
		Dir:    guest.Dir + "/run",
		Etc:    "/etc",
		Init:   os.Getpid() == 1,
	})
	return s.Run(context.Background(), l)
}
