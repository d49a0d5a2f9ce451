package first

import "syscall"

// syncFD is the descriptor that the helper inherits to wait on.
const syncFD = 3

// isUnmount says whether args are those of a helper that each sandbox process starts:
// runsc again, which waits for a byte and then takes the sandbox's view of /proc away.
// gVisor's command for it does nothing but these two system calls. Whatever is not
// exactly that command line is left to gVisor.
func isUnmount(args []string) bool {
	return len(args) == 4 && args[1] == "umount" && args[2] == "--sync-fd=3" && args[3] == "/proc"
}

// unmount does the helper's work and returns its exit code.
func unmount(args []string) int {
	var b [1]byte
	for {
		n, err := syscall.Read(syncFD, b[:])
		if err == syscall.EINTR {
			continue
		}
		// An end without a byte: the sandbox process did not get that far.
		if err != nil || n != 1 {
			return 1
		}
		break
	}
	if err := syscall.Unmount(args[3], syscall.MNT_DETACH); err != nil {
		return 1
	}
	return 0
}
