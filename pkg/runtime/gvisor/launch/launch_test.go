package launch

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func boot(dir string, fds ...string) []string {
	args := []string{"runsc-sandbox", "--root=/r", "boot", "--bundle=" + dir, "--setup-root", "--total-memory", "99"}
	for _, fd := range fds {
		args = append(args, "--stdio-fds="+fd)
	}
	return append(args, "sb")
}

func TestPrepareBoot(t *testing.T) {
	dir := t.TempDir()
	plan := Plan{Filestore: filepath.Join(dir, "filestore"), Stdio: filepath.Join(dir, "out"), BootFlags: []string{"--total-memory=5"}}
	if err := plan.Write(dir); err != nil {
		t.Fatal(err)
	}
	// Stand-ins for this program's standard files.
	var fds []string
	for range 3 {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		defer w.Close()
		fds = append(fds, fmt.Sprint(w.Fd()))
	}
	got, err := Prepare(boot(dir, fds...))
	if err != nil {
		t.Fatal(err)
	}
	n := len(got)
	if got[n-1] != "sb" || got[n-3] != "--total-memory=5" || !strings.HasPrefix(got[n-2], "--gofer-filestore-fds=") {
		t.Errorf("command line %q", got)
	}
	var fd int
	fmt.Sscan(strings.TrimPrefix(got[n-2], "--gofer-filestore-fds="), &fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Nlink != 0 {
		t.Errorf("filestore has %d names, %v", st.Nlink, err)
	}
	if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC != 0 {
		t.Errorf("filestore closes on exec: %v", err)
	}
	unix.Close(fd)
	for i, s := range fds {
		target, err := os.Readlink("/proc/self/fd/" + s)
		if want := []string{"/dev/null", plan.Stdio, plan.Stdio}[i]; err != nil || target != want {
			t.Errorf("stdio %d is %s, %v; want %s", i, target, err, want)
		}
	}
}

func TestPrepareLeavesTheRestAlone(t *testing.T) {
	dir := t.TempDir()
	for _, args := range [][]string{
		{}, {"runsc"}, {"runsc", "--version"}, {"runsc", "state", "sb"}, boot(dir),
		{"runsc", "boot", "--bundle=" + dir, "--setup-root=false", "sb"}, {"runsc", "gofer", "--bundle"}, {"boot", "--bundle=" + dir},
	} {
		if got, err := Prepare(args); err != nil || !slices.Equal(got, args) {
			t.Errorf("%q became %q, %v", args, got, err)
		}
	}
}

func TestReport(t *testing.T) {
	dir := t.TempDir()
	args := []string{"runsc-gofer", "gofer", "--bundle", dir, "sb"}
	Report(args, errors.New("no such cgroup"))
	if got := ReadError(dir); got != "no such cgroup" {
		t.Errorf("reported %q", got)
	}
	if ReadError(t.TempDir()) != "" {
		t.Error("an error where none is")
	}
}

// TestStraysAreClosed: a file that is not named on the command line does not get into
// the sandbox.
func TestStraysAreClosed(t *testing.T) {
	var fds [3]int
	for i := range fds {
		fd, err := unix.FcntlInt(os.Stdin.Fd(), unix.F_DUPFD_CLOEXEC, 900+10*i)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		fds[i] = fd
	}
	donated, stray, own := fds[0], fds[1], fds[2]
	for _, fd := range []int{donated, stray} {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := closeStrays([]string{"boot", "--io-fds=3", fmt.Sprintf("--stdio-fds=%d", donated), "--total-memory", "9999", "sb"}); err != nil {
		t.Fatal(err)
	}
	for fd, open := range map[int]bool{donated: true, stray: false, own: true} {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); (err == nil) != open {
			t.Errorf("descriptor %d: %v, want it open: %v", fd, err, open)
		}
	}
}

func TestLastDonated(t *testing.T) {
	for want, args := range map[int][]string{
		2:  {"boot", "--dev-io-fd=-1", "--total-memory=400", "--stdio-fds", "sb"},
		9:  {"boot", "--controller-fd=5", "--stdio-fds=8", "--stdio-fds=9", "sb"},
		12: {"gofer", "--io-fds=4,12,7", "--x=44"},
		30: {"boot", "--pass-fd=30:1"},
	} {
		if got := lastDonated(args); got != want {
			t.Errorf("%q: %d, want %d", args, got, want)
		}
	}
}

func FuzzStdioFDs(f *testing.F) {
	f.Add("runsc-sandbox\x00boot\x00--bundle=/x\x00--setup-root\x00--stdio-fds=3,4\x00--stdio-fds\x005\x00sb")
	f.Fuzz(func(t *testing.T, line string) {
		for _, fd := range stdioFDs(strings.Split(line, "\x00")) {
			if fd < 0 {
				t.Errorf("descriptor %d", fd)
			}
		}
	})
}
