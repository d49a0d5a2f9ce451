package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/sirocco-run/sirocco/pkg/child"
)

// Process is a part of what is measured, in a process of its own. It is asked to
// end when this program dies. Its methods are for one goroutine at a time.
type Process struct {
	name  string
	log   string
	cmd   *exec.Cmd
	out   *bufio.Reader
	child *child.Child
}

// StartProcess runs a program with arguments; what it logs goes to the file
// <name>.log in dir, which is its home too.
func StartProcess(dir, name, program string, args ...string) (*Process, error) {
	p := &Process{name: name, log: filepath.Join(dir, name+".log")}
	log, err := os.OpenFile(p.log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }()
	out, in, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer func() { _ = in.Close() }()
	p.out = bufio.NewReader(out)
	p.cmd = exec.Command(program, args...)
	p.cmd.Env = append(os.Environ(), "HOME="+dir)
	p.cmd.Stdout, p.cmd.Stderr = in, log
	p.child, err = child.Start(p.cmd, func() error {
		defer func() { _ = out.Close() }()
		return p.cmd.Wait()
	})
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, errors.Join(err, out.Close()))
	}
	return p, nil
}

// FirstLine returns the first line that the process writes, which it does once it
// is ready. The error says what it logged last.
func (p *Process) FirstLine(ctx context.Context) (line string, err error) {
	err = p.first(ctx, func() (err error) {
		line, err = p.out.ReadString('\n')
		return err
	})
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(line), nil
}

// FirstJSON is FirstLine for a value in JSON, which may have many lines. It must be
// called at most once, and not beside FirstLine.
func (p *Process) FirstJSON(ctx context.Context, into any) error {
	return p.first(ctx, func() error {
		d := json.NewDecoder(p.out)
		err := d.Decode(into)
		p.out = bufio.NewReader(io.MultiReader(d.Buffered(), p.out))
		return err
	})
}

// first reads what the process says of itself, and lets the rest go by.
func (p *Process) first(ctx context.Context, read func() error) error {
	got := make(chan error, 1)
	go func() {
		got <- read()
		_, _ = io.Copy(io.Discard, p.out) // until it ends
	}()
	select {
	case err := <-got:
		if err != nil {
			return fmt.Errorf("%s ended while starting: %s", p.name, p.Tail())
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for %s: %w: %s", p.name, context.Cause(ctx), p.Tail())
	}
}

// Tail returns the end of its log.
func (p *Process) Tail() string {
	raw, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(raw[max(len(raw)-2000, 0):])
}

// Signal sends it a signal.
func (p *Process) Signal(s syscall.Signal) error { return p.cmd.Process.Signal(s) }

// Stop asks it to end, kills it after a while, and returns once it has ended.
func (p *Process) Stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.child.Done():
	case <-time.After(time.Minute):
		_ = p.cmd.Process.Kill()
		<-p.child.Done()
	}
}

// ProcessUsage is what a process takes of the machine.
type ProcessUsage struct {
	// Resident is its memory in bytes, Peak the most that it ever was.
	Resident, Peak int64
	// CPU is the processor time so far.
	CPU time.Duration
}

// Usage reads what it takes now; zero for a process that has ended.
func (p *Process) Usage() (u ProcessUsage) {
	dir := filepath.Join("/proc", fmt.Sprint(p.cmd.Process.Pid))
	status, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		return u
	}
	for line := range strings.Lines(string(status)) {
		var kib int64
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			_, _ = fmt.Sscan(rest, &kib)
			u.Resident = kib << 10
		} else if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			_, _ = fmt.Sscan(rest, &kib)
			u.Peak = kib << 10
		}
	}
	u.CPU, _, _ = ProcessTimes(p.cmd.Process.Pid)
	return u
}

// DiskUse returns how many bytes the files below a folder take on the disk.
func DiskUse(dir string) (n int64) {
	_ = filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // files come and go while we look
		}
		if info, err := d.Info(); err == nil && info.Mode().IsRegular() {
			if stat, ok := info.Sys().(*syscall.Stat_t); ok {
				n += stat.Blocks * 512
			}
		}
		return nil
	})
	return n
}
