package gvisor_test

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestNothingOfTheAgentIsInherited: gVisor leaves its sockets open across an exec. With
// some hundred of them no sandbox started, because gVisor wants 253 to 255 for itself;
// and each sandbox held those of others.
func TestNothingOfTheAgentIsInherited(t *testing.T) {
	rt := open(t)
	dir := t.TempDir()
	for range 5 {
		f, err := os.CreateTemp(dir, "stray-")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD, 253)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
	}
	create(t, rt, spec(t, "sb-strays", "serve"))
	for _, process := range processesOf(t, "sb-strays") {
		files := process + "/fd/"
		entries, err := os.ReadDir(files)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if target, _ := os.Readlink(files + e.Name()); strings.HasPrefix(target, dir) {
				t.Errorf("%s holds %s", process, target)
			}
		}
	}
}
