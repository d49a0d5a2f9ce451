package cli

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"

	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"golang.org/x/term"
)

// terminal is the user's terminal, when there is one.
type terminal struct{ fd int }

// terminalOf returns the terminal that r is; ok is false for pipes and files.
func terminalOf(r io.Reader) (t terminal, ok bool) {
	f, isFile := r.(*os.File)
	if !isFile || !term.IsTerminal(int(f.Fd())) { //nolint:gosec // descriptors are small
		return terminal{}, false
	}
	return terminal{fd: int(f.Fd())}, true //nolint:gosec // descriptors are small
}

// raw hands every key on as it is, until restore.
func (t terminal) raw() (restore func(), err error) {
	state, err := term.MakeRaw(t.fd)
	if err != nil {
		return nil, err
	}
	return func() { _ = term.Restore(t.fd, state) }, nil
}

func (t terminal) size() *siroccov1.TerminalSize {
	cols, rows, err := term.GetSize(t.fd)
	if err != nil || cols <= 0 || rows <= 0 {
		return defaultSize()
	}
	return &siroccov1.TerminalSize{Rows: uint32(rows), Cols: uint32(cols)} //nolint:gosec // screens are small
}

// defaultSize is that of a process with a terminal whose user has none.
func defaultSize() *siroccov1.TerminalSize { return &siroccov1.TerminalSize{Rows: 24, Cols: 80} }

// watch calls resized at each change of the size, until ctx ends.
func (t terminal) watch(ctx context.Context, resized func(*siroccov1.TerminalSize)) {
	changes := make(chan os.Signal, 1)
	signal.Notify(changes, syscall.SIGWINCH)
	defer signal.Stop(changes)
	for {
		select {
		case <-changes:
			resized(t.size())
		case <-ctx.Done():
			return
		}
	}
}
