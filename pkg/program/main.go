package program

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/pflag"
)

// Version is what --version prints and telemetry carries; the build stamps it.
var Version = "unversioned"

// Exit codes of a service.
const (
	exitFailed = 1
	exitUsage  = 2
)

// Runner is a service that has been built. Run blocks until ctx ends, or until
// it can't go on; it owns every goroutine that it starts, and returns nil when
// it ended because ctx did.
type Runner interface {
	Run(ctx context.Context) error
}

// Service is what a program's main says about itself.
type Service struct {
	// Name as in services/<name>; also the "service" of logs and telemetry.
	Name string
	// About is one line for --help.
	About string
	// Flags adds the service's own flags, with their defaults; nil for none.
	// Each is also read from the environment as SIROCCO_<FLAG>.
	Flags func(fs *pflag.FlagSet)
	// New builds the service, without I/O. It is called once the bus is
	// reached and after the flags have been read.
	New func(env Env) (Runner, error)
}

// Main runs a service as a program and does not return. The first SIGINT or
// SIGTERM ends it gracefully, the second at once.
//
// Concurrency: Main starts one goroutine, for the metrics listener if one is
// wanted, and waits for it before it exits. Everything else belongs to the
// service's Run.
func Main(s Service) {
	ctx, release := Signals(context.Background())
	code := Execute(ctx, s, os.Args[1:], os.Getenv, os.Stdout, os.Stderr)
	release()
	os.Exit(code)
}

// Signals returns a context that the first SIGINT or SIGTERM ends; after that
// the signals have their usual effect again, so that a second one kills.
func Signals(parent context.Context) (ctx context.Context, release func()) {
	ctx, release = signal.NotifyContext(parent, os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, release)
	return ctx, release
}

// Execute is Main with everything it touches as an argument. It returns the
// exit code: 0, 1 when the service failed, 2 for wrong flags.
func Execute(ctx context.Context, s Service, args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	var settings Settings
	fs := pflag.NewFlagSet(s.Name, pflag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.SortFlags = false
	settings.Flags(fs)
	if s.Flags != nil {
		s.Flags(fs)
	}
	version := fs.Bool("version", false, "print the version and exit")

	switch err := Parse(fs, args, getenv); {
	case errors.Is(err, pflag.ErrHelp):
		usage(stdout, s, fs)
		return 0
	case err != nil:
		return refuse(stderr, s, err)
	}
	if *version {
		fmt.Fprintf(stdout, "sirocco %s %s\n", s.Name, Version)
		return 0
	}
	if fs.NArg() > 0 {
		return refuse(stderr, s, fmt.Errorf("it takes no arguments, only flags: %q is one too many", fs.Arg(0)))
	}
	if err := settings.Validate(); err != nil {
		return refuse(stderr, s, err)
	}
	log, err := settings.Logger(stderr, s.Name)
	if err != nil {
		return refuse(stderr, s, err)
	}
	if err := run(ctx, s, &settings, log); err != nil && !errors.Is(err, context.Canceled) {
		log.Error("ended with an error", KeyError, err)
		return exitFailed
	}
	return 0
}

func refuse(stderr io.Writer, s Service, err error) int {
	fmt.Fprintf(stderr, "%s: %v (try --help)\n", s.Name, err)
	return exitUsage
}

func usage(w io.Writer, s Service, fs *pflag.FlagSet) {
	fmt.Fprintf(w, "%s: %s\n\nUsage:\n  %s [flags]\n\nFlags (each also as the environment variable in brackets; the flag wins):\n%s",
		s.Name, s.About, s.Name, fs.FlagUsagesWrapped(100))
}
