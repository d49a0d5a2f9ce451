package gvisor

import (
	"os"
	"path/filepath"
	"testing"
)

// TestDiskBytes: what counts is a file without a name, in the sandbox's folder,
// by the blocks it takes.
func TestDiskBytes(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	hold := func(path string, named bool) {
		t.Helper()
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		if _, err := f.Write(make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			t.Fatal(err)
		}
		if named {
			return
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	if got := diskBytes(os.Getpid(), filepath.Join(dir, "a.store")); got != 0 {
		t.Errorf("nothing takes %d bytes", got)
	}
	hold(filepath.Join(dir, "a.store"), false)
	hold(filepath.Join(dir, "a.store.log"), true)
	hold(filepath.Join(dir, "ab.store"), false)
	hold(filepath.Join(other, "a.store"), false)
	if got := diskBytes(os.Getpid(), filepath.Join(dir, "a.store")); got < 1<<20 || got > 1<<20+64<<10 {
		t.Errorf("a file of 1 MiB takes %d bytes", got)
	}
	if got := diskBytes(1<<22+1, filepath.Join(dir, "a.store")); got != 0 {
		t.Errorf("a process that is not there holds %d bytes", got)
	}
}
