package supervisor

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// settle gives up CAP_SYS_ADMIN after the setup, while nobody waits: the first start
// would otherwise, for as long as it takes to stop every thread.
func (s *Supervisor) settle() {
	s.mu.Lock()
	ready := s.ready
	s.mu.Unlock()
	if !ready {
		return
	}
	go func() {
		s.startMu.Lock()
		defer s.startMu.Unlock()
		// The first start tries again, and fails if it must.
		_ = s.dropAdmin()
	}()
}

// dropAdmin gives up CAP_SYS_ADMIN for good, in every thread and for every
// process to come. A sandbox may be made with it, so that configure can set the
// hostname; no other process ever has it. The caller holds startMu and forks
// only if there is no error.
func (s *Supervisor) dropAdmin() error {
	if s.dropped || !s.cfg.Init {
		return nil
	}
	has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, unix.CAP_SYS_ADMIN, 0, 0, 0)
	if err != nil {
		return err
	}
	if has == 1 {
		// The bounding set decides what root gets at the next execve.
		if _, _, no := syscall.AllThreadsSyscall(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, unix.CAP_SYS_ADMIN, 0); no != 0 {
			return no
		}
		head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var sets [2]unix.CapUserData
		if err := unix.Capget(&head, &sets[0]); err != nil {
			return err
		}
		const bit = uint32(1) << unix.CAP_SYS_ADMIN
		sets[0].Effective &^= bit
		sets[0].Permitted &^= bit
		sets[0].Inheritable &^= bit
		if _, _, no := syscall.AllThreadsSyscall(unix.SYS_CAPSET,
			uintptr(unsafe.Pointer(&head)), uintptr(unsafe.Pointer(&sets[0])), 0); no != 0 {
			return no
		}
	}
	s.dropped = true
	return nil
}
