package gvisor

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// diskBytes returns what a file without a name takes on the disk that a process holds
// open and that was once called name: what was written to the root file system is in
// such a file (see package launch). Reading it is best effort; a process that has ended
// has none.
func diskBytes(pid int, name string) int64 {
	fds := filepath.Join("/proc", strconv.Itoa(pid), "fd")
	entries, err := os.ReadDir(fds)
	if err != nil {
		return 0
	}
	var total int64
	for _, e := range entries {
		fd := filepath.Join(fds, e.Name())
		target, err := os.Readlink(fd)
		if err != nil || !strings.HasPrefix(target, name+" ") {
			continue
		}
		var st unix.Stat_t
		if err := unix.Stat(fd, &st); err != nil {
			if errors.Is(err, unix.ESRCH) {
				return 0
			}
			continue
		}
		if st.Nlink == 0 {
			total += st.Blocks * 512 // the unit of stat(2), whatever the file system's
		}
	}
	return total
}
