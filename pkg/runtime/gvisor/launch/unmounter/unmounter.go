// Package unmounter is a short way through runsc for one of its helpers.
//
// Each sandbox process starts runsc again as a helper that waits for a byte and then
// takes the sandbox's view of /proc away. gVisor's command for it does nothing but
// these two system calls; what it costs is the initialisation of all of gVisor's
// packages before, 5 ms of a processor. This package does the same while packages are
// initialised, which is why its work is in the value of a variable: the Go linker
// initialises packages in the order of their paths as far as imports allow, and this one
// comes before the many of gvisor.dev.
//
// Whatever is not exactly that command line is left to gVisor, as is a wrong guess
// about the order: then it is only slower.
package unmounter

import (
	"os"
	"syscall"
)

// syncFD is the descriptor that the helper inherits to wait on.
const syncFD = 3

var _ = run(os.Args)

// matches says whether args are those of the helper.
func matches(args []string) bool {
	return len(args) == 4 && args[1] == "umount" && args[2] == "--sync-fd=3" && args[3] == "/proc"
}

// run does the helper's work, and ends the program, if args are its command line.
func run(args []string) struct{} {
	if !matches(args) {
		return struct{}{}
	}
	var b [1]byte
	for {
		n, err := syscall.Read(syncFD, b[:])
		if err == syscall.EINTR {
			continue
		}
		// An end without a byte: the sandbox process did not get that far.
		if err != nil || n != 1 {
			os.Exit(1)
		}
		break
	}
	if err := syscall.Unmount(args[3], syscall.MNT_DETACH); err != nil {
		os.Exit(1)
	}
	os.Exit(0)
	return struct{}{}
}
