// Package child starts processes that do not outlive the one that started them.
package child

import (
	"os/exec"
	"runtime"
	"syscall"
)

// Start starts a command that is asked to end (SIGTERM) when this process dies, however
// it does. wait is called next, waits for the command's end with cmd.Wait and does what
// belongs to that; nil for cmd.Wait alone. ended gets its error, and is then closed, so
// that any number may wait for it. The error is that of the start.
//
// Concurrency: one goroutine, and with it a thread, until wait returns: the signal comes
// when the thread ends that started the process, so the thread must live as long.
func Start(cmd *exec.Cmd, wait func() error) (ended <-chan error, err error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGTERM
	if wait == nil {
		wait = cmd.Wait
	}
	started, end := make(chan error, 1), make(chan error, 1)
	go func() {
		defer close(end)
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			end <- wait()
		}
	}()
	return end, <-started
}
