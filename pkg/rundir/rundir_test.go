package rundir

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// However many agents start at once, one file system is mounted, and what is there
// already stays to be seen.
func TestEnsure(t *testing.T) {
	root := filepath.Join(t.TempDir(), "run")
	t.Cleanup(func() { _ = unix.Unmount(root, unix.MNT_DETACH) })
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := ensure(root); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	var fs unix.Statfs_t
	if err := unix.Statfs(root, &fs); err != nil || fs.Type != unix.TMPFS_MAGIC {
		t.Errorf("%s is of type %x, %v", root, fs.Type, err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if n := strings.Count(string(mounts), " "+root+" "); err != nil || n != 1 {
		t.Errorf("mounted %d times, %v", n, err)
	}
	full := t.TempDir()
	note := filepath.Join(full, "note")
	if err := os.WriteFile(note, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := ensure(full); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(note); err != nil {
		t.Error(err)
	}
}
