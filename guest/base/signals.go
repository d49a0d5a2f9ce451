package main

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// disposition is what the kernel keeps of a signal: the handler, its flags, the
// way back and a mask.
type disposition [4]uintptr

const (
	byDefault uintptr = iota // SIG_DFL
	ignoring                 // SIG_IGN
)

// sigaction sets the disposition of a signal, unless it is nil, and puts the one
// before into old, unless that is nil. Package signal has no way to the default,
// and leaves signals of faults alone.
func sigaction(sig syscall.Signal, set, old *disposition) {
	// It can't fail: the signals are known ones.
	_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(set)), uintptr(unsafe.Pointer(old)), unsafe.Sizeof(uint64(0)), 0, 0)
}

func dispose(sig syscall.Signal, handler uintptr) {
	sigaction(sig, &disposition{handler}, nil)
}

// toRuntime gives a signal to the Go runtime, as it was before it was taken.
func toRuntime(sig syscall.Signal) {
	// One handler serves all its signals, and this one nobody takes from it.
	var d disposition
	sigaction(syscall.SIGPROF, nil, &d)
	sigaction(sig, &d, nil)
}

// crashes says whether a signal makes the Go runtime print all its stacks and exit
// with 2, so that nobody could tell which signal it was.
func crashes(sig syscall.Signal) bool {
	switch sig {
	case syscall.SIGQUIT, syscall.SIGILL, syscall.SIGTRAP, syscall.SIGABRT, syscall.SIGBUS,
		syscall.SIGFPE, syscall.SIGSEGV, syscall.SIGSTKFLT, syscall.SIGSYS:
		return true
	}
	return false
}

// dieAsC makes such signals end the process, as they end a program in C. It costs
// a few system calls; a goroutine that waits for them would cost a thread. A fault
// of this program ends it like that too: without the stacks.
func dieAsC() {
	for sig := syscall.SIGHUP; sig <= syscall.SIGSYS; sig++ {
		if crashes(sig) {
			dispose(sig, byDefault)
		}
	}
}

// fatal says whether a signal that is neither caught nor ignored ends the shell.
func fatal(sig syscall.Signal) bool {
	switch sig {
	case syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM:
		return true
	}
	return crashes(sig)
}
