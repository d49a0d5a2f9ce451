package image

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestDiskFull: a full disk is called so, and what was half made is gone.
func TestDiskFull(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test mounts a small file system and has to run as root")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=3m"); err != nil {
		t.Fatalf("mount: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	noise := make([]byte, 2<<20)
	seed := rand.NewChaCha8([32]byte{})
	_, _ = seed.Read(noise)
	img := imageOf(t, layerOf(t, map[string]string{"a": string(noise)}))
	reg := newServer(t)
	ref := reg.push(t, "a:1", img)
	s := newStore(t, func(o *Options) { reg.allowed(o); o.Dir = dir })
	if _, err := s.Resolve(t.Context(), ref); !errors.Is(err, ErrNoSpace) {
		t.Errorf("pull: %v, want ErrNoSpace", err)
	}
	if _, err := s.Import(t.Context(), "x", bytes.NewReader(dockerSave(t, img))); !errors.Is(err, ErrNoSpace) {
		t.Errorf("import: %v, want ErrNoSpace", err)
	}
	for _, d := range []string{"tmp", "images"} {
		if left, _ := os.ReadDir(s.path(d)); len(left) > 0 {
			t.Errorf("left in %s: %v", d, left)
		}
	}
	resolve(t, s, Base)
}
