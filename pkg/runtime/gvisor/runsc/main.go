// Command runsc is gVisor's command line, unchanged, behind a few lines that
// prepare a sandbox process from the inside: see package launch for what they do
// and why. With one command of its own it starts such processes (package starter).
// Package gvisor refuses any other build.
package main

import (
	"fmt"
	"os"

	"github.com/sirocco-run/sirocco/pkg/runtime/gvisor/launch"
	"github.com/sirocco-run/sirocco/pkg/runtime/gvisor/starter/server"
	"gvisor.dev/gvisor/pkg/log"
	"gvisor.dev/gvisor/runsc/cli/maincli"
)

func main() {
	if server.Asked(os.Args) {
		log.SetLevel(log.Warning)
		if err := server.Serve(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	args, err := launch.Prepare(os.Args)
	if err != nil {
		// Nobody reads the standard error of a sandbox process: whoever started it
		// finds the reason in a file beside the plan.
		launch.Report(os.Args, err)
		fmt.Fprintln(os.Stderr, "runsc:", err)
		os.Exit(128)
	}
	os.Args = args
	// A start has some hundred messages below that, which go nowhere unless --debug
	// is on; and then gVisor sets the level itself.
	log.SetLevel(log.Warning)
	maincli.Main()
}
