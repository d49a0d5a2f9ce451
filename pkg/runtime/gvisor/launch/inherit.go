package launch

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// closeStrays closes what this process inherited without being meant to.
//
// gVisor opens the sockets to its sandboxes without close-on-exec. In a program that
// runs many sandboxes, a process that is started meanwhile inherits them: one sandbox
// would hold the control connections of others, and gVisor's boot ends at once when
// one of them has a number that it wants for itself ("unable to remap stdios, FD 253 is
// already in use").
//
// What is meant for this process is named by its command line and is numbered from 3
// without a gap, so that whatever lies above and outlives an exec came by chance.
func closeStrays(args []string) error {
	const dir = "/proc/self/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("list inherited files: %w", err)
	}
	last := lastDonated(args)
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil || fd <= last {
			continue
		}
		// The Go runtime's own close on exec; so did the folder just read, which is gone.
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			_ = unix.Close(fd)
		}
	}
	return nil
}

// lastDonated returns the highest descriptor that the command line names, at least
// that of standard error.
func lastDonated(args []string) int {
	last := 2
	for _, a := range args {
		name, value, ok := strings.Cut(a, "=")
		if !ok || !strings.HasSuffix(name, "-fd") && !strings.HasSuffix(name, "-fds") {
			continue
		}
		for s := range strings.FieldsFuncSeq(value, func(r rune) bool { return r == ',' || r == ':' }) {
			if fd, err := strconv.Atoi(s); err == nil {
				last = max(last, fd)
			}
		}
	}
	return last
}
