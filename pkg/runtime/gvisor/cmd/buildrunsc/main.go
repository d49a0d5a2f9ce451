// Command buildrunsc builds the runsc that package gvisor needs:
//
//	go run ./pkg/runtime/gvisor/cmd/buildrunsc bin/runsc
//
// It does nothing when the file is there and of the right version.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"

	"github.com/sirocco-run/sirocco/pkg/runtime/gvisor/pin"
	"github.com/sirocco-run/sirocco/pkg/runtime/gvisor/runscbuild"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: buildrunsc <output file>")
		os.Exit(2)
	}
	out, err := filepath.Abs(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if pin.Check(out) == nil {
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := runscbuild.Build(ctx, ".", out); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
