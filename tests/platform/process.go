package platform

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/sirocco-run/sirocco/pkg/child"
)

// Process is one service in a process of its own. Its methods are for one
// goroutine at a time.
type Process struct {
	// Name is that of the service and its instance.
	Name string

	path string
	args []string
	env  []string
	log  string
	// ports are those that it listens on.
	ports []int
	// group is its cgroup; nil for none of its own.
	group *group
	// alien lets it believe that it is on another machine than the others.
	alien bool
	cmd   *exec.Cmd
	child *child.Child
}

// Start starts it, after Kill again.
func (p *Process) Start() error {
	log, err := os.OpenFile(p.log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	p.cmd = p.command()
	p.cmd.Env, p.cmd.Stdout, p.cmd.Stderr = p.env, log, log
	if p.group != nil {
		g, err := p.group.open()
		if err != nil {
			return fmt.Errorf("start %s: %w", filepath.Base(p.path), err)
		}
		defer func() { _ = g.Close() }()
		p.cmd.SysProcAttr.UseCgroupFD, p.cmd.SysProcAttr.CgroupFD = true, int(g.Fd())
	}
	if p.child, err = child.Start(p.cmd, nil); err != nil {
		return fmt.Errorf("start %s: %w", filepath.Base(p.path), err)
	}
	return nil
}

// command prepares the program.
func (p *Process) command() *exec.Cmd {
	if !p.alien {
		cmd := exec.Command(p.path, p.args...)
		cmd.SysProcAttr = &syscall.SysProcAttr{}
		return cmd
	}
	// Machines are told apart by the id of their boot: in mounts of its own, the
	// process sees another.
	cmd := exec.Command("/bin/sh", append([]string{"-c", `mount --bind /proc/sys/kernel/random/uuid /proc/sys/kernel/random/boot_id && exec "$0" "$@"`, p.path}, p.args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	return cmd
}

// Running is false once it has ended by itself or by Kill.
func (p *Process) Running() bool {
	select {
	case <-p.child.Done():
		return false
	default:
		return true
	}
}

// Kill ends it as kill -9 does.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill()
	<-p.child.Done()
}

// Pid is its process id.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Freeze lets it hang: it keeps its connections and answers nothing.
func (p *Process) Freeze() { _ = p.cmd.Process.Signal(syscall.SIGSTOP) }

// Thaw lets it go on after Freeze.
func (p *Process) Thaw() { _ = p.cmd.Process.Signal(syscall.SIGCONT) }

// Stop asks it to end, and kills it if it does not.
func (p *Process) Stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.child.Done():
	case <-time.After(20 * time.Second):
		p.Kill()
	}
}

// LogTail returns the end of its log.
func (p *Process) LogTail(n int) string {
	raw, _ := os.ReadFile(p.log)
	return string(tail(raw, n))
}
