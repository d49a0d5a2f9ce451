package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"mvdan.cc/sh/v3/syntax"
)

var errInterrupted = errors.New("interrupted")

// typed reads a terminal and ends a read when an interrupt comes. It reads only
// while it is asked to, so that a command has the terminal for itself; what was
// being read when the interrupt came is given to the next read.
type typed struct {
	in          io.Reader
	interrupts  <-chan os.Signal
	pending     chan read
	rest        []byte
	interrupted bool
}

type read struct {
	b   []byte
	err error
}

func (t *typed) Read(b []byte) (int, error) {
	if len(t.rest) > 0 {
		n := copy(b, t.rest)
		t.rest = t.rest[n:]
		return n, nil
	}
	if t.pending == nil {
		t.pending = make(chan read, 1)
		go func(out chan<- read) {
			buf := make([]byte, 4096)
			n, err := t.in.Read(buf)
			out <- read{buf[:n], err}
		}(t.pending)
	}
	select {
	case r := <-t.pending:
		t.pending = nil
		n := copy(b, r.b)
		t.rest = r.b[n:]
		return n, r.err
	case <-t.interrupts:
		t.interrupted = true
		return 0, errInterrupted
	}
}

// loop reads commands from a terminal. An interrupt ends the command, not the
// shell: what runs in a process of its own gets it from the terminal.
func (s *shell) loop() int {
	interrupts := make(chan os.Signal, 1)
	signal.Notify(interrupts, os.Interrupt)
	signal.Ignore(syscall.SIGTSTP, syscall.SIGTTOU, syscall.SIGQUIT)
	defer signal.Stop(interrupts)
	prompt := func() {
		mark := "$ "
		if os.Geteuid() == 0 {
			mark = "# "
		}
		fmt.Fprint(s.p.out, s.runner.Dir, mark)
	}
	in := &typed{in: s.p.in, interrupts: interrupts}
	for {
		parser := syntax.NewParser()
		prompt()
		again := false
		for stmts, err := range parser.InteractiveSeq(in) {
			if err != nil {
				// What was typed of the command is lost with the parser.
				if in.interrupted {
					err = errors.New("")
				}
				fmt.Fprintln(s.p.err, err)
				again, in.interrupted = true, false
				break
			}
			if parser.Incomplete() {
				fmt.Fprint(s.p.out, "> ")
				continue
			}
			for _, st := range stmts {
				code, exited, interrupted := s.foreground(st, interrupts)
				if exited {
					return code
				}
				if interrupted {
					break // with it, what follows on its line
				}
			}
			prompt()
		}
		if !again {
			fmt.Fprintln(s.p.out)
			return 0
		}
	}
}

// foreground runs a command, and says whether the shell is to end with it and
// whether an interrupt came.
func (s *shell) foreground(st *syntax.Stmt, interrupts <-chan os.Signal) (code int, exited, interrupted bool) {
	ctx, cancel := context.WithCancel(s.p.ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case <-interrupts:
			interrupted = true
			fmt.Fprintln(s.p.err)
			cancel()
		case <-ctx.Done():
		}
	}()
	s.noteExec(st)
	var err error
	for _, part := range markList([]*syntax.Stmt{st}) {
		markJobs(part)
		if err = s.runner.Run(ctx, part); s.runner.Exited() {
			break
		}
	}
	cancel()
	<-watched
	if err != nil {
		code = s.status(err)
	}
	return code, s.runner.Exited(), interrupted
}
