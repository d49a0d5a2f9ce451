package erofs_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	reader "github.com/erofs/go-erofs"
	"pgregory.net/rapid"

	"github.com/sirocco-run/sirocco/pkg/image/erofs"
)

func create(t testing.TB, opt erofs.Options) (*os.File, *erofs.Writer) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f, erofs.NewWriter(f, opt)
}

func open(t testing.TB, f *os.File) fs.FS {
	t.Helper()
	src, err := reader.Open(f)
	if err != nil {
		t.Fatalf("read back: %v", err)
	}
	return src
}

func stat(t testing.TB, src fs.FS, name string) (fs.FileInfo, *reader.Stat) {
	t.Helper()
	d, err := src.(interface {
		Lstat(string) (fs.FileInfo, error)
	}).Lstat(name)
	if err != nil {
		t.Fatalf("stat %s: %v", name, err)
	}
	return d, d.Sys().(*reader.Stat)
}

// TestRoundTrip writes one inode of each kind and reads all of it back with the
// independent reader.
func TestRoundTrip(t *testing.T) {
	f, w := create(t, erofs.Options{Xattrs: true})
	big := bytes.Repeat([]byte("0123456789abcdef"), 50_000)
	root := erofs.NewDir(0o755)
	add := func(name, content string, mode uint32) *erofs.Node {
		ext, err := w.Add(iotest.OneByteReader(strings.NewReader(content)))
		if err != nil {
			t.Fatal(err)
		}
		n := &erofs.Node{Mode: erofs.ModeRegular | mode, UID: 70000, GID: 12, Sec: 1234567890, Nsec: 42, Data: ext}
		root.Set(name, n)
		return n
	}
	add("empty", "", 0o600)
	add("block", strings.Repeat("b", erofs.BlockSize), 0o644)
	linked := add("setuid", "hello", 0o4755)
	linked.Xattrs = map[string]string{"security.capability": "\x01\x00\x00\x02cap", "user.x": "", "odd.name": "left out"}
	root.Set("other name", linked)
	ext, err := w.Add(bytes.NewReader(big))
	if err != nil {
		t.Fatal(err)
	}
	root.Set("big", &erofs.Node{Mode: erofs.ModeRegular | 0o444, Data: ext})
	root.Set("dev", &erofs.Node{Mode: erofs.ModeChar | 0o666, Rdev: erofs.Device(1, 259)})
	root.Set("blk", &erofs.Node{Mode: erofs.ModeBlock | 0o660, Rdev: erofs.Device(259, 3)})
	root.Set("fifo", &erofs.Node{Mode: erofs.ModeFIFO | 0o600})
	root.Set("link", &erofs.Node{Mode: erofs.ModeSymlink | 0o777, Target: "a/target"})
	root.Set("long", &erofs.Node{Mode: erofs.ModeSymlink | 0o777, Target: strings.Repeat("t", 3000)})
	dir := erofs.NewDir(0o1777)
	root.Set("dir", dir)
	for i := range 1000 { // several blocks of entries
		dir.Set(fmt.Sprintf("%03d-%s", i, strings.Repeat("n", i%250)), linked)
	}
	dir.Set(strings.Repeat("x", erofs.MaxName), erofs.NewDir(0))
	dir.Set("!before the dots", erofs.NewDir(0o700))
	if err := w.Finish(root); err != nil {
		t.Fatal(err)
	}
	if err := erofs.Verify(f.Name()); err != nil {
		t.Errorf("verify: %v", err)
	}
	src := open(t, f)
	for name, want := range map[string]string{"empty": "", "block": strings.Repeat("b", erofs.BlockSize), "setuid": "hello", "other name": "hello", "big": string(big), "dir/007-nnnnnnn": "hello"} {
		got, err := fs.ReadFile(src, name)
		if err != nil || string(got) != want {
			t.Errorf("%s: %d bytes, %v; want %d bytes", name, len(got), err, len(want))
		}
	}
	_, st := stat(t, src, "setuid")
	if st.Mode != fs.ModeSetuid|0o755 || st.UID != 70000 || st.GID != 12 || st.Mtime != 1234567890 || st.MtimeNs != 42 || st.Nlink != 1002 {
		t.Errorf("setuid: %+v", st)
	}
	if want := map[string]string{"security.capability": "\x01\x00\x00\x02cap", "user.x": ""}; fmt.Sprint(st.Xattrs) != fmt.Sprint(want) {
		t.Errorf("xattrs: %q, want %q", st.Xattrs, want)
	}
	if _, other := stat(t, src, "dir/999-"+strings.Repeat("n", 999%250)); other.Ino != st.Ino {
		t.Errorf("hard links have inodes %d and %d", other.Ino, st.Ino)
	}
	if _, st := stat(t, src, "dev"); st.Rdev != erofs.Device(1, 259) {
		t.Errorf("device %x", st.Rdev)
	}
	links := src.(interface{ ReadLink(string) (string, error) })
	for name, want := range map[string]string{"link": "a/target", "long": strings.Repeat("t", 3000)} {
		if got, err := links.ReadLink(name); err != nil || got != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	list, err := fs.ReadDir(src, "dir")
	if err != nil || len(list) != 1002 {
		t.Errorf("dir has %d entries, %v", len(list), err)
	}
	if _, st := stat(t, src, "dir"); st.Nlink != 4 {
		t.Errorf("dir has %d links, want 4", st.Nlink)
	}
}

// TestWithoutXattrs: images for gVisor must not have any, or their files cannot
// be opened.
func TestWithoutXattrs(t *testing.T) {
	f, w := create(t, erofs.Options{})
	root := erofs.NewDir(0o755)
	root.Set("f", &erofs.Node{Mode: erofs.ModeRegular, Xattrs: map[string]string{"user.a": "b"}})
	if err := w.Finish(root); err != nil {
		t.Fatal(err)
	}
	if _, st := stat(t, open(t, f), "f"); len(st.Xattrs) != 0 {
		t.Errorf("xattrs %v", st.Xattrs)
	}
}

func TestRefusals(t *testing.T) {
	cycle := erofs.NewDir(0)
	cycle.Set("self", cycle)
	deep := erofs.NewDir(0)
	for range 5000 {
		up := erofs.NewDir(0)
		up.Set("d", deep)
		deep = up
	}
	for name, root := range map[string]*erofs.Node{
		"cycle":      cycle,
		"deep":       deep,
		"not a dir":  {Mode: erofs.ModeRegular},
		"no type":    with("x", &erofs.Node{}),
		"empty name": with("", erofs.NewDir(0)),
		"dots":       with("..", erofs.NewDir(0)),
		"long name":  with(strings.Repeat("n", 256), erofs.NewDir(0)),
		"no target":  with("l", &erofs.Node{Mode: erofs.ModeSymlink}),
		"far target": with("l", &erofs.Node{Mode: erofs.ModeSymlink, Target: strings.Repeat("t", 4096)}),
	} {
		_, w := create(t, erofs.Options{})
		if err := w.Finish(root); !errors.Is(err, erofs.ErrTree) {
			t.Errorf("%s: %v, want ErrTree", name, err)
		}
	}
	_, w := create(t, erofs.Options{MaxBytes: 10})
	if _, err := w.Add(strings.NewReader("0123456789")); err != nil {
		t.Error(err)
	}
	if _, err := w.Add(strings.NewReader("x")); !errors.Is(err, erofs.ErrFull) {
		t.Errorf("past the limit: %v", err)
	}
	_, w = create(t, erofs.Options{})
	if _, err := w.Add(iotest.ErrReader(io.ErrUnexpectedEOF)); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a truncated stream: %v", err)
	}
}

func with(name string, n *erofs.Node) *erofs.Node {
	root := erofs.NewDir(0o755)
	root.Set(name, n)
	return root
}

// TestDeadContentIsFreed: what no file refers to takes no disk space.
func TestDeadContentIsFreed(t *testing.T) {
	f, w := create(t, erofs.Options{})
	if _, err := w.Add(bytes.NewReader(bytes.Repeat([]byte{1}, 8<<20))); err != nil {
		t.Fatal(err)
	}
	ext, err := w.Add(strings.NewReader("alive"))
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Finish(with("f", &erofs.Node{Mode: erofs.ModeRegular, Data: ext})); err != nil {
		t.Fatal(err)
	}
	if used := diskUse(t, f); used > 1<<20 {
		t.Errorf("the image takes %d bytes", used)
	}
	if b, err := fs.ReadFile(open(t, f), "f"); err != nil || string(b) != "alive" {
		t.Errorf("%q, %v", b, err)
	}
}

func TestVerifyFindsDamage(t *testing.T) {
	f, w := create(t, erofs.Options{})
	if err := w.Finish(with("f", &erofs.Node{Mode: erofs.ModeRegular})); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	for name, damage := range map[string]func(b []byte) []byte{
		"empty":     func([]byte) []byte { return nil },
		"cut off":   func(b []byte) []byte { return b[:len(b)-1] },
		"too long":  func(b []byte) []byte { return append(b, 0) },
		"no magic":  func(b []byte) []byte { b[1024] ^= 1; return b },
		"bit flip":  func(b []byte) []byte { b[1024+40] ^= 1; return b },
		"zero root": func(b []byte) []byte { clear(b[erofs.BlockSize:]); return b },
	} {
		if err := os.WriteFile(f.Name(), damage(slices.Clone(good)), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := erofs.Verify(f.Name()); !errors.Is(err, erofs.ErrCorrupt) {
			t.Errorf("%s: %v, want ErrCorrupt", name, err)
		}
	}
	if err := erofs.Verify(f.Name() + "-missing"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
}

// TestAnyTree writes random trees and walks what the reader sees.
func TestAnyTree(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		f, w := create(t, erofs.Options{})
		want := map[string]string{}
		var fill func(dir *erofs.Node, path string, depth int)
		fill = func(dir *erofs.Node, path string, depth int) {
			for _, name := range rapid.SliceOfNDistinct(rapid.StringMatching(`[ -.0-~]{1,40}`), 0, 12, rapid.ID).Draw(rt, "names") {
				if name == "." || name == ".." {
					continue
				}
				p := path + "/" + name
				switch rapid.IntRange(0, 3).Draw(rt, "kind") {
				case 0:
					n := erofs.NewDir(0o755)
					dir.Set(name, n)
					want[p] = "dir"
					if depth < 4 {
						fill(n, p, depth+1)
					}
				case 1:
					target := rapid.StringMatching(`[a-z/]{1,200}`).Draw(rt, "target")
					dir.Set(name, &erofs.Node{Mode: erofs.ModeSymlink | 0o777, Target: target})
					want[p] = "-> " + target
				default:
					content := strings.Repeat(name, rapid.IntRange(0, 300).Draw(rt, "size"))
					ext, err := w.Add(strings.NewReader(content))
					if err != nil {
						rt.Fatal(err)
					}
					dir.Set(name, &erofs.Node{Mode: erofs.ModeRegular | 0o644, Data: ext})
					want[p] = "file " + content
				}
			}
		}
		root := erofs.NewDir(0o755)
		fill(root, "", 0)
		if err := w.Finish(root); err != nil {
			rt.Fatal(err)
		}
		src := open(t, f)
		got := map[string]string{}
		err := fs.WalkDir(src, ".", func(p string, d fs.DirEntry, err error) error {
			if err != nil || p == "." {
				return err
			}
			switch {
			case d.IsDir():
				got["/"+p] = "dir"
			case d.Type()&fs.ModeSymlink != 0:
				target, err := src.(interface{ ReadLink(string) (string, error) }).ReadLink(p)
				got["/"+p] = "-> " + target
				return err
			default:
				b, err := fs.ReadFile(src, p)
				got["/"+p] = "file " + string(b)
				return err
			}
			return nil
		})
		if err != nil {
			rt.Fatal(err)
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			rt.Fatalf("read back %v\nwant %v", got, want)
		}
	})
}

func diskUse(t *testing.T, f *os.File) int64 {
	t.Helper()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return blocks(st)
}
