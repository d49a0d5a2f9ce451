package doctor

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// PortOwner returns who listens on a TCP port of this machine, as
// `name (pid 123)`, or "" when nobody does or it can't be told. proc is where
// /proc is mounted.
func PortOwner(proc string, port int) string {
	inodes := listeners(proc, port)
	if len(inodes) == 0 {
		return ""
	}
	fds, err := filepath.Glob(filepath.Join(proc, "[0-9]*", "fd", "*"))
	if err != nil {
		return ""
	}
	for _, fd := range fds {
		target, err := os.Readlink(fd)
		if err != nil || !inodes[target] {
			continue
		}
		dir := filepath.Dir(filepath.Dir(fd))
		name, err := os.ReadFile(filepath.Join(dir, "comm"))
		if err != nil {
			continue
		}
		return fmt.Sprintf("%s (pid %s)", programName(dir, strings.TrimSpace(string(name))), filepath.Base(dir))
	}
	return ""
}

// programName prefers the name of the program's file, because comm is cut
// after 15 characters.
func programName(dir, comm string) string {
	raw, err := os.ReadFile(filepath.Join(dir, "cmdline"))
	if err != nil {
		return comm
	}
	first, _, _ := strings.Cut(string(raw), "\x00")
	if base := filepath.Base(first); strings.HasPrefix(base, comm) {
		return base
	}
	return comm
}

// listeners returns the sockets, as links below fd show them, that listen on
// port.
func listeners(proc string, port int) map[string]bool {
	const listening = "0A"
	found := map[string]bool{}
	for _, name := range []string{"net/tcp", "net/tcp6"} {
		f, err := os.Open(filepath.Join(proc, name))
		if err != nil {
			continue
		}
		lines := bufio.NewScanner(f)
		for lines.Scan() {
			fields := strings.Fields(lines.Text())
			if len(fields) < 10 || fields[3] != listening {
				continue
			}
			_, hex, ok := strings.Cut(fields[1], ":")
			n, err := strconv.ParseUint(hex, 16, 16)
			if ok && err == nil && int(n) == port {
				found["socket:["+fields[9]+"]"] = true
			}
		}
		f.Close()
	}
	return found
}
