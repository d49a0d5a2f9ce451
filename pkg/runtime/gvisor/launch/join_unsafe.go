package launch

import (
	"syscall"
	"unsafe"
)

// writeAllThreads makes every thread of this process write "0" to fd. Threads that
// cgo made are out of its reach: it is an error where there may be some.
func writeAllThreads(fd int) error {
	zero := [1]byte{'0'}
	_, _, errno := syscall.AllThreadsSyscall(syscall.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&zero[0])), 1)
	if errno != 0 {
		return errno
	}
	return nil
}
