package agent

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"pgregory.net/rapid"
)

func TestDiskLevels(t *testing.T) {
	const gib = 1 << 30
	for _, c := range []struct {
		free, total int64
		want        diskLevel
	}{
		{100 * gib, 200 * gib, diskFine},
		{5 * gib, 200 * gib, diskFine},
		{3 * gib, 200 * gib, diskLow},
		{gib, 200 * gib, diskCritical},
		{gib, 5 * gib, diskFine},
		{gib / 5, gib * 5 / 2, diskLow},
		{0, gib, diskCritical},
	} {
		if got := levelOf(c.free, c.total); got != c.want {
			t.Errorf("%d of %d bytes free: level %d, want %d", c.free, c.total, got, c.want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		total := rapid.Int64Range(0, 1<<50).Draw(t, "total")
		free := rapid.Int64Range(0, total).Draw(t, "free")
		less := rapid.Int64Range(0, free).Draw(t, "less")
		if levelOf(less, total) < levelOf(free, total) {
			t.Fatalf("less free disk is a better level")
		}
		if levelOf(total, total) != diskFine {
			t.Fatalf("an empty disk is not fine")
		}
	})
}

// A state folder that is gone is said once, and again only after it was there.
func TestLostStateFolderIsSaidOnce(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "state")
	var look diskLook
	step := func(want bool) {
		t.Helper()
		_, total, err := freeDisk(folder)
		if got := look.failed(err); got != want || err == nil && total == 0 {
			t.Errorf("news: %t, want %t (%d bytes, %v)", got, want, total, err)
		}
	}
	step(true)
	step(false)
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	step(false)
	step(false)
	if err := os.Remove(folder); err != nil {
		t.Fatal(err)
	}
	step(true)
	step(false)
	if !look.failed(errors.New("another reason")) {
		t.Error("another reason is no news")
	}
}
