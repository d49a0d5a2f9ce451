package supervisor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sirocco-run/sirocco/pkg/guest"
)

func fifo(t testing.TB, path string) {
	t.Helper()
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
}

func openFifo(t testing.TB, path string) {
	t.Helper()
	if err := os.WriteFile(path, []byte("go\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (w *world) read(path string, off, length int64) (string, error) {
	r, err := w.ReadFile(w.ctx, path, off, length)
	if err != nil {
		return "", err
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	return string(b), err
}

func TestFileRoundTrip(t *testing.T) {
	w := newWorld(t)
	if err := w.Configure(w.ctx, guest.Setup{User: "ann"}); err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte("0123456789"), 300_000)
	p := w.dir + "/a/b/file"
	_, err := w.WriteFile(w.ctx, p, 0, false, bytes.NewReader(data))
	want(t, err, guest.ErrNotFound)
	f, err := w.WriteFile(w.ctx, p, 0o640, true, bytes.NewReader(data))
	if err != nil || f.Size != int64(len(data)) || f.Mode != 0o640 || f.Type != guest.FileRegular || f.UID != 1234 || f.Path != p {
		t.Fatalf("%+v %v", f, err)
	}
	for _, c := range []struct{ off, n int64 }{{0, 0}, {0, 10}, {5, 100_000}, {2_999_999, 0}, {2_999_999, 50}, {3_000_000, 0}, {9_000_000, 5}} {
		got, err := w.read(p, c.off, c.n)
		exp := string(data[min(c.off, int64(len(data))):])
		if c.n > 0 {
			exp = exp[:min(c.n, int64(len(exp)))]
		}
		if err != nil || got != exp {
			t.Errorf("read %+v: %d bytes, %v", c, len(got), err)
		}
	}
	// Replacing keeps the owner.
	if err := os.Chown(p, 5, 6); err != nil {
		t.Fatal(err)
	}
	if f, err = w.WriteFile(w.ctx, p, 0, false, strings.NewReader("")); err != nil || f.Size != 0 || f.UID != 5 || f.GID != 6 || f.Mode != 0o644 {
		t.Errorf("%+v %v", f, err)
	}
	if got, err := w.read(p, 0, 0); err != nil || got != "" {
		t.Errorf("%q %v", got, err)
	}
	// Files of /proc have no size and are read to their end.
	if got, err := w.read("/proc/self/status", 0, 0); err != nil || !strings.Contains(got, "Pid:") {
		t.Errorf("%q %v", got, err)
	}
}

// failing is a source that breaks off.
type failing struct {
	r   io.Reader
	err error
}

func (f *failing) Read(p []byte) (int, error) {
	n, err := f.r.Read(p)
	if err == io.EOF {
		err = f.err
	}
	return n, err
}

func TestBrokenWriteLeavesNothing(t *testing.T) {
	w := newWorld(t)
	p := w.dir + "/f"
	if err := os.WriteFile(p, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	broken := errors.New("source broke")
	_, err := w.WriteFile(w.ctx, p, 0, false, &failing{bytes.NewReader(make([]byte, 500_000)), broken})
	if !errors.Is(err, broken) {
		t.Fatalf("%v", err)
	}
	clean := func() bool {
		entries, err := os.ReadDir(w.dir)
		return err == nil && len(entries) == 1
	}
	until(t, "the temporary file is removed", clean)
	// The same when the connection or the context ends in the middle.
	for _, how := range []string{"cancel", "close"} {
		ctx, cancel := context.WithCancel(w.ctx)
		pr, pw := io.Pipe()
		done := make(chan error, 1)
		go func() {
			_, err := w.WriteFile(ctx, p, 0, false, pr)
			done <- err
		}()
		if _, err := pw.Write(make([]byte, 100_000)); err != nil {
			t.Fatal(err)
		}
		until(t, "the temporary file is there", func() bool { return !clean() })
		if how == "cancel" {
			cancel()
		} else {
			_ = w.Close()
		}
		_ = pw.CloseWithError(broken)
		if err := <-done; err == nil {
			t.Fatal("no error")
		}
		until(t, "the temporary file is removed: "+how, clean)
		cancel()
	}
	w.Client = w.dial()
	if got, err := w.read(p, 0, 0); err != nil || got != "old" {
		t.Errorf("%q %v", got, err)
	}
}

func TestWriteNoSpace(t *testing.T) {
	w := newWorld(t)
	if err := unix.Mount("tmpfs", w.dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Fatalf("this test needs to mount a small file system: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(w.dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	// Endless: it must stop because the guest refuses.
	_, err := w.WriteFile(w.ctx, w.dir+"/f", 0, false, zeros{})
	want(t, err, guest.ErrNoSpace)
	if err := w.ListFiles(w.ctx, w.dir, func(f guest.FileInfo) error { return fmt.Errorf("left: %s", f.Path) }); err != nil {
		t.Error(err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

func TestFileErrors(t *testing.T) {
	w := newWorld(t)
	for _, name := range []string{"file", "dir/inner"} {
		if _, err := w.WriteFile(w.ctx, w.dir+"/"+name, 0, true, strings.NewReader("x")); err != nil {
			t.Fatal(err)
		}
	}
	fifo(t, w.dir+"/fifo")
	for name, c := range map[string]struct {
		path string
		err  error
	}{
		"missing":   {w.dir + "/no", guest.ErrNotFound},
		"dir":       {w.dir + "/dir", guest.ErrIsDir},
		"below":     {w.dir + "/file/x", guest.ErrNotDir},
		"fifo":      {w.dir + "/fifo", guest.ErrInvalid},
		"device":    {"/dev/zero", guest.ErrInvalid},
		"relative":  {"file", guest.ErrInvalid},
		"empty":     {"", guest.ErrInvalid},
		"dots":      {w.dir + "/dir/../file", guest.ErrInvalid},
		"nul":       {w.dir + "/a\x00b", guest.ErrInvalid},
		"long":      {"/" + strings.Repeat("x", 5000), guest.ErrInvalid},
		"long name": {"/" + strings.Repeat("x", 300), guest.ErrInvalid},
		"own":       {"/.sirocco/run/archive", guest.ErrPermission},
		"own slash": {"//.sirocco//init", guest.ErrPermission},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := w.read(c.path, 0, 0)
			want(t, err, c.err)
		})
	}
	_, err := w.read(w.dir+"/file", -1, 0)
	want(t, err, guest.ErrInvalid)
	_, err = w.WriteFile(w.ctx, w.dir+"/dir", 0, false, strings.NewReader(""))
	want(t, err, guest.ErrIsDir)
	_, err = w.WriteFile(w.ctx, w.dir+"/file/x", 0, true, strings.NewReader(""))
	want(t, err, guest.ErrNotDir)
	_, err = w.WriteFile(w.ctx, "/", 0, true, strings.NewReader(""))
	want(t, err, guest.ErrIsDir)
	_, err = w.MakeDir(w.ctx, w.dir+"/file", 0)
	want(t, err, guest.ErrNotDir)
	want(t, w.Remove(w.ctx, w.dir+"/no", true), guest.ErrNotFound)
	want(t, w.Remove(w.ctx, w.dir+"/dir", false), guest.ErrNotEmpty)
	want(t, w.Remove(w.ctx, "/", true), guest.ErrInvalid)
	want(t, w.ListFiles(w.ctx, w.dir+"/file", nil), guest.ErrNotDir)
	_, err = w.Move(w.ctx, w.dir+"/no", w.dir+"/x")
	want(t, err, guest.ErrNotFound)
	_, err = w.Move(w.ctx, w.dir+"/dir", w.dir+"/dir/sub")
	want(t, err, guest.ErrInvalid)
	_, err = w.Move(w.ctx, w.dir+"/file", w.dir+"/dir")
	want(t, err, guest.ErrIsDir)
	_, err = w.Move(w.ctx, w.dir+"/file", "/proc/x")
	want(t, err, guest.ErrInvalid)
}

func TestFolders(t *testing.T) {
	w := newWorld(t)
	d := w.dir + "/x/y"
	for range 2 {
		if f, err := w.MakeDir(w.ctx, d+"/", 0o700); err != nil || f.Type != guest.FileDir || f.Mode != 0o700 || f.Path != d {
			t.Fatalf("%+v %v", f, err)
		}
	}
	for i := range 3000 {
		if err := os.WriteFile(fmt.Sprintf("%s/%04d", d, i), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("nowhere", d+"/link"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(d+"/bad\xff", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	var names []string
	if err := w.ListFiles(w.ctx, d, func(f guest.FileInfo) error {
		names = append(names, filepath.Base(f.Path))
		if f.Path == d+"/link" && (f.Type != guest.FileSymlink || f.Target != "nowhere") {
			t.Errorf("%+v", f)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if len(names) != 3002 || !slices.IsSorted(names) || !slices.Contains(names, "bad\uFFFD") {
		t.Errorf("%d names", len(names))
	}
	stop := errors.New("enough")
	if err := w.ListFiles(w.ctx, d, func(guest.FileInfo) error { return stop }); err != stop {
		t.Errorf("%v", err)
	}
	if f, err := w.Move(w.ctx, d, w.dir+"/z"); err != nil || f.Path != w.dir+"/z" {
		t.Fatalf("%+v %v", f, err)
	}
	if err := w.Remove(w.ctx, w.dir+"/z", true); err != nil {
		t.Fatal(err)
	}
	_, err := w.Stat(w.ctx, w.dir+"/z")
	want(t, err, guest.ErrNotFound)
}

func TestWatch(t *testing.T) {
	w := newWorld(t)
	root := w.dir + "/watched"
	if err := os.MkdirAll(root+"/old", 0o755); err != nil {
		t.Fatal(err)
	}
	events := make(chan guest.FileEvent, 1000)
	ended := make(chan error, 1)
	go func() {
		defer close(events)
		ended <- w.Watch(w.ctx, root, true, func(v guest.FileEvent) error { events <- v; return nil })
	}()
	expect := func(path string, change guest.Change) {
		t.Helper()
		for {
			select {
			case v, ok := <-events:
				if !ok {
					t.Fatalf("ended: %v", <-ended)
				}
				if v.Path == path && v.Change == change {
					return
				}
				// A write is reported once for each of its parts.
				if v.Change != guest.FileModified {
					t.Fatalf("%+v, want %s %d", v, path, change)
				}
			case <-w.ctx.Done():
				t.Fatalf("no event %s %d", path, change)
			}
		}
	}
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	expect(root, guest.WatchStarted)
	do(os.WriteFile(root+"/a", []byte("x"), 0o644))
	expect(root+"/a", guest.FileCreated)
	expect(root+"/a", guest.FileModified)
	do(os.MkdirAll(root+"/new/deep", 0o755))
	expect(root+"/new", guest.FileCreated)
	expect(root+"/new/deep", guest.FileCreated)
	// An upload shows only its final name.
	_, err := w.WriteFile(w.ctx, root+"/old/up", 0, false, strings.NewReader("hello"))
	do(err)
	expect(root+"/old/up", guest.FileCreated)
	do(os.Rename(root+"/old", root+"/moved"))
	expect(root+"/old", guest.FileRemoved)
	expect(root+"/moved", guest.FileCreated)
	expect(root+"/moved/up", guest.FileCreated)
	do(os.WriteFile(root+"/moved/up", []byte("again"), 0o644))
	expect(root+"/moved/up", guest.FileModified)
	do(os.Remove(root + "/a"))
	expect(root+"/a", guest.FileRemoved)
	do(os.RemoveAll(root + "/new"))
	expect(root+"/new/deep", guest.FileRemoved)
	expect(root+"/new", guest.FileRemoved)
	do(os.RemoveAll(root))
	expect(root+"/moved/up", guest.FileRemoved)
	expect(root+"/moved", guest.FileRemoved)
	expect(root, guest.FileRemoved)
	if err := <-ended; err != nil {
		t.Errorf("%v", err)
	}
	want(t, w.Watch(w.ctx, root, false, nil), guest.ErrNotFound)
}
