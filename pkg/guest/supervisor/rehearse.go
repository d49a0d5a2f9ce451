package supervisor

import (
	"io"
	"syscall"

	"github.com/sirocco-run/sirocco/pkg/guest"
)

// RehearsalArg is the argument with which Config.Self ends at once.
const RehearsalArg = "rehearse"

// rehearse goes the way of the setup and of the tenant's first process with what
// is the supervisor's own: pages are mapped, and gVisor has a process to spare for
// the next. It is possible only before the sandbox is set up, as the process still
// has the supervisor's capabilities.
func (s *Supervisor) rehearse() error {
	s.mu.Lock()
	late := s.ready || s.main
	s.mu.Unlock()
	if late || s.cfg.Self == "" {
		return guest.Fail(guest.CodeConfigured, "the sandbox is past rehearsing")
	}
	if err := s.writeEtc(&guest.Setup{Hostname: "sandbox"}); err != nil {
		return err
	}
	files, err := openPipes(false)
	if err != nil {
		return err
	}
	defer files.closeParent()
	s.startMu.Lock()
	pid, err := syscall.ForkExec(s.cfg.Self, []string{s.cfg.Self, RehearsalArg}, &syscall.ProcAttr{
		Dir: "/", Files: files.child[:], Sys: &syscall.SysProcAttr{Setsid: true},
	})
	s.reap.Signal()
	s.startMu.Unlock()
	files.closeChild()
	if err != nil {
		return guest.Fail(guest.CodeInternal, "rehearse: ", err.Error())
	}
	// Its outputs end with it.
	for _, f := range files.out {
		if f != nil {
			_, _ = io.Copy(io.Discard, f)
		}
	}
	if !s.cfg.Init {
		s.reapOne(pid)
	}
	return nil
}
