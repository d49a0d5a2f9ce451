// Command sirocco is what people type: it runs the platform on one machine
// (up), and sandboxes on any (run, exec, ls, …).
package main

import (
	"context"
	"os"

	"github.com/sirocco-run/sirocco/pkg/program"
	"github.com/sirocco-run/sirocco/services/sirocco/cli"
)

func main() {
	ctx, release := program.Signals(context.Background())
	home, _ := os.UserHomeDir()
	code := cli.Main(ctx, cli.Shell{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Getenv: os.Getenv, Home: home}, os.Args[1:])
	release()
	os.Exit(code)
}
