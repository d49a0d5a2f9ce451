package supervisor

import (
	"runtime"
	"syscall"
	"time"
	"unsafe"

	"github.com/sirocco-run/sirocco/pkg/guest"
	"golang.org/x/sys/unix"
)

// settleAfter is when all threads give up CAP_SYS_ADMIN after the setup: each is
// stopped for it, which the tenant's first commands would feel.
const settleAfter = 10 * time.Second

// settle gives up CAP_SYS_ADMIN for good a while after the setup that had the
// sandbox's name.
func (s *Supervisor) settle() {
	s.mu.Lock()
	first := s.setup.Hostname != "" && !s.settling
	s.settling = s.settling || first
	s.mu.Unlock()
	if !first || !s.cfg.Init {
		return
	}
	time.AfterFunc(settleAfter, func() {
		s.startMu.Lock()
		defer s.startMu.Unlock()
		// Whoever is started gets nothing in any case: see withoutAdmin.
		if dropAdmin(syscall.AllThreadsSyscall) == nil {
			s.dropped = true
		}
	})
}

// withoutAdmin calls start in a thread that has given up CAP_SYS_ADMIN, so that the
// process which is made there can never have it. The sandbox is made with it, for
// the hostname. The caller holds startMu.
func (s *Supervisor) withoutAdmin(start func() error) error {
	if s.dropped || !s.cfg.Init {
		return start()
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := dropAdmin(syscall.RawSyscall); err != nil {
		return guest.Fail(guest.CodeInternal, "give up CAP_SYS_ADMIN: ", err.Error())
	}
	return start()
}

// sets is what dropAdmin hands to the kernel: a variable of the package never moves.
// startMu guards it.
var sets struct {
	head unix.CapUserHeader
	data [2]unix.CapUserData
}

// dropAdmin gives up CAP_SYS_ADMIN by calls that are made as call makes them. The
// caller holds startMu.
func dropAdmin(call func(trap, a, b, c uintptr) (r1, r2 uintptr, no syscall.Errno)) error {
	// The bounding set decides what root gets at the next execve.
	if _, _, no := call(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, unix.CAP_SYS_ADMIN, 0); no != 0 {
		return no
	}
	sets.head = unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if err := unix.Capget(&sets.head, &sets.data[0]); err != nil {
		return err
	}
	const bit = uint32(1) << unix.CAP_SYS_ADMIN
	sets.data[0].Effective &^= bit
	sets.data[0].Permitted &^= bit
	sets.data[0].Inheritable &^= bit
	if _, _, no := call(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&sets.head)), uintptr(unsafe.Pointer(&sets.data[0])), 0); no != 0 {
		return no
	}
	return nil
}
