package transfer

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sirocco-run/sirocco/pkg/fault"
)

// saving is a folder into which a checkpoint is being written.
type saving struct {
	dir   string
	pages *os.File
}

func startSaving(t *testing.T) *saving {
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "pages.img"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return &saving{dir, f}
}

func (s *saving) grow(b []byte) error {
	_, err := s.pages.Write(b)
	return err
}

// TestSentWhileItGrows: what is in the file that grows arrives before the rest is there.
func TestSentWhileItGrows(t *testing.T) {
	from, dir := startSaving(t), t.TempDir()
	pages, state := content(4, 7<<20+5, 0.2, 0.3), content(5, 100<<10, 0, 1)
	const early = 5<<20 + 700
	sc, tc := streams(t, false)
	save := func() error {
		if err := from.grow(pages[:early]); err != nil {
			return err
		}
		// Every whole part of it comes by itself.
		for {
			if st, err := os.Stat(filepath.Join(dir, "pages.img")); err == nil && st.Size() > 4<<20 {
				break
			}
			select {
			case <-t.Context().Done():
				return t.Context().Err()
			case <-time.After(time.Millisecond):
			}
		}
		return errors.Join(from.grow(pages[early:]), os.WriteFile(filepath.Join(from.dir, "checkpoint.img"), state, 0o600))
	}
	serr, terr := both(t, func() error {
		_, err := NewSource(sc, Options{}).FilesWhile(t.Context(), from.dir, "pages.img", save)
		return err
	}, func() error { _, err := NewTarget(tc, Options{}).Files(t.Context(), dir); return err })
	if serr != nil || terr != nil {
		t.Fatalf("source: %v; target: %v", serr, terr)
	}
	wantFiles(t, dir, map[string][]byte{"pages.img": pages, "checkpoint.img": state})
}

// TestSavingTakesLong: a target does not take a source for dead that has nothing to send
// yet, before the file that grows, in it, and behind it; nor is that file needed.
func TestSavingTakesLong(t *testing.T) {
	for _, growing := range []string{"pages.img", "never"} {
		from, dir := startSaving(t), t.TempDir()
		pages := content(6, 3<<20, 0, 1)
		synctest.Test(t, func(t *testing.T) {
			sc, tc := pipe(t)
			long := func() { <-time.After(3 * DefaultStall) }
			serr, terr := both(t, func() error {
				_, err := NewSource(sc, Options{}).FilesWhile(t.Context(), from.dir, growing, func() error {
					long()
					err := from.grow(pages[:2<<20])
					long()
					err = errors.Join(err, from.grow(pages[2<<20:]))
					long()
					return err
				})
				return err
			}, func() error { _, err := NewTarget(tc, Options{}).Files(t.Context(), dir); return err })
			if serr != nil || terr != nil {
				t.Fatalf("source: %v; target: %v", serr, terr)
			}
		})
		wantFiles(t, dir, map[string][]byte{"pages.img": pages})
	}
}

// TestSavingFails: the target is told, and keeps nothing; the error is that of saving.
func TestSavingFails(t *testing.T) {
	from, dir := startSaving(t), t.TempDir()
	full := fault.New(fault.NoCapacity, "the disk is full")
	sc, tc := pipe(t)
	serr, terr := both(t, func() error {
		_, err := NewSource(sc, Options{}).FilesWhile(t.Context(), from.dir, "pages.img", func() error {
			return errors.Join(from.grow(content(7, 3<<20, 0, 0)), full)
		})
		return err
	}, func() error { _, err := NewTarget(tc, Options{}).Files(t.Context(), dir); return err })
	if !errors.Is(serr, full) || isGaveUp(serr) {
		t.Errorf("source: %v", serr)
	}
	if !isGaveUp(terr) || fault.CodeOf(terr) != fault.NoCapacity {
		t.Errorf("target: %v", terr)
	}
	wantFiles(t, dir, nil)
}

// TestSavingOutlastsTheTarget: the folder is not given back while it is still written.
func TestSavingOutlastsTheTarget(t *testing.T) {
	from := startSaving(t)
	sc, tc := pipe(t)
	gone := make(chan struct{})
	saved := false
	serr, terr := both(t, func() error {
		_, err := NewSource(sc, Options{}).FilesWhile(t.Context(), from.dir, "pages.img", func() error {
			<-gone
			saved = true
			return nil
		})
		if !saved {
			t.Error("the source returned before the folder was whole")
		}
		return err
	}, func() error {
		defer close(gone)
		return NewTarget(tc, Options{}).Fail(context.DeadlineExceeded)
	})
	if !isGaveUp(serr) || terr != nil {
		t.Errorf("source: %v; target: %v", serr, terr)
	}
}
