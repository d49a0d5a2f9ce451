// Command base is the whole userland of the base image: one static program that
// is a shell and the usual small commands. The
// name it is called by decides which (see package applet for the list); called
// by its own name, the first argument decides.
//
// Built with the tag sirocco_net it has the network commands (wget, httpd, nc)
// as well; the image holds both builds.
//
// The time it takes to start is part of the time a sandbox takes to answer its
// first command: packages with costly initialisation have no place here, and
// the shell runs most commands without starting a process for them.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/u-root/u-root/pkg/core"

	"github.com/sirocco-run/sirocco/guest/base/applet"
)

// proc is what a command runs with: its own process, or a part of the shell's.
// A command uses nothing of the process that is not in it, and never exits.
type proc struct {
	ctx      context.Context
	name     string
	args     []string // without the name
	in       io.Reader
	out, err io.Writer
	dir      string // empty: that of the process
	env      []string
	// alone says that the process is the command's own, which may replace it
	// and change its signals.
	alone bool
}

// command is one applet; it returns the exit status.
type command func(p *proc) int

func main() {
	name := filepath.Base(os.Args[0])
	args := os.Args[1:]
	if !slices.Contains(applet.Names(), strings.TrimPrefix(name, "-")) {
		if len(args) == 0 {
			fmt.Println(strings.Join(applet.Names(), "\n"))
			return
		}
		name, args = filepath.Base(args[0]), args[1:]
	}
	// The two that are called most must not wait for anything else.
	switch name {
	case "true":
		return
	case "false":
		os.Exit(1)
	}
	dieAsC()
	p := &proc{ctx: context.Background(), name: name, args: args, in: os.Stdin, out: os.Stdout, err: os.Stderr, env: os.Environ(), alone: true}
	run := find(strings.TrimPrefix(name, "-"))
	if run == nil {
		fmt.Fprintf(os.Stderr, "%s: not in this build\n", name)
		os.Exit(127)
	}
	os.Exit(run(p))
}

// path makes a name of the command's absolute, if it runs in another directory
// than the process.
func (p *proc) path(name string) string {
	if p.dir == "" || filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(p.dir, name)
}

func (p *proc) getenv(key string) string {
	v, _ := p.lookupEnv(key)
	return v
}

func (p *proc) lookupEnv(key string) (string, bool) {
	for i := len(p.env) - 1; i >= 0; i-- {
		if v, ok := strings.CutPrefix(p.env[i], key+"="); ok {
			return v, true
		}
	}
	return "", false
}

// fail prints an error and returns the status 1.
func (p *proc) fail(err error) int {
	var perr *os.PathError
	if errors.As(err, &perr) {
		err = fmt.Errorf("%s: %w", perr.Path, perr.Err)
	}
	if !errors.Is(err, syscall.EPIPE) && !errors.Is(err, io.ErrClosedPipe) {
		fmt.Fprintf(p.err, "%s: %v\n", p.name, err)
	}
	return 1
}

func (p *proc) usage(text string) int {
	fmt.Fprintf(p.err, "usage: %s %s\n", p.name, text)
	return 2
}

// open returns a file for reading; "-" is the standard input.
func (p *proc) open(name string) (io.ReadCloser, error) {
	if name == "-" {
		return io.NopCloser(p.in), nil
	}
	return os.Open(p.path(name))
}

// each calls f with every file named, or with the standard input if none is,
// and returns 1 if one failed.
func (p *proc) each(names []string, f func(name string, r io.Reader) error) int {
	if len(names) == 0 {
		names = []string{"-"}
	}
	status := 0
	for _, n := range names {
		r, err := p.open(n)
		if err == nil {
			err = f(n, r)
			_ = r.Close()
		}
		if err != nil {
			status = p.fail(err)
			if errors.Is(err, syscall.EPIPE) || errors.Is(err, io.ErrClosedPipe) {
				return status
			}
		}
	}
	return status
}

// buffered calls f with a buffered output and flushes it.
func (p *proc) buffered(f func(w *bufio.Writer) int) int {
	w := bufio.NewWriterSize(p.out, 32<<10)
	status := f(w)
	if err := w.Flush(); err != nil && status == 0 {
		return p.fail(err)
	}
	return status
}

// lines calls f with each line of r, without its end; it stops when f returns
// false.
func lines(r io.Reader, f func(line []byte) bool) error {
	return records(r, '\n', f)
}

func records(r io.Reader, sep byte, f func(rec []byte) bool) error {
	b := bufio.NewReaderSize(r, 64<<10)
	var long []byte
	for {
		part, err := b.ReadSlice(sep)
		if errors.Is(err, bufio.ErrBufferFull) {
			long = append(long, part...)
			continue
		}
		if len(long) > 0 {
			part = append(long, part...)
			long = nil
		}
		if err != nil && len(part) == 0 {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if n := len(part); part[n-1] == sep {
			part = part[:n-1]
		}
		if !f(part) {
			return nil
		}
	}
}

// uroot runs a command of the u-root project.
func uroot(make func() core.Command) command {
	return func(p *proc) int {
		c := make()
		c.SetIO(p.in, p.out, p.err)
		c.SetWorkingDir(p.dir)
		c.SetLookupEnv(p.lookupEnv)
		if err := c.RunContext(p.ctx, p.args...); err != nil {
			return p.fail(err)
		}
		return 0
	}
}
