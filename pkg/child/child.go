// Package child starts processes that do not outlive the one that started them.
package child

import (
	"os/exec"
	"runtime"
	"syscall"
)

// Child is a process that was started. Its methods may be called from any goroutine.
type Child struct {
	done chan struct{}
	err  error
}

// Start starts a command that is asked to end (SIGTERM) when this process dies, however
// it does. wait is called next, waits for the command's end with cmd.Wait and does what
// belongs to that; nil for cmd.Wait alone. The error is that of the start.
//
// Concurrency: one goroutine, and with it a thread, until wait returns: the signal comes
// when the thread ends that started the process, so the thread must live as long.
func Start(cmd *exec.Cmd, wait func() error) (*Child, error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGTERM
	if wait == nil {
		wait = cmd.Wait
	}
	c := &Child{done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		defer close(c.done)
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			c.err = wait()
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return c, nil
}

// Done is closed when the process has ended.
func (c *Child) Done() <-chan struct{} { return c.done }

// Wait returns what wait (see Start) has returned, once it has.
func (c *Child) Wait() error {
	<-c.done
	return c.err
}
