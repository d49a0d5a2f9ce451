package layer_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	reader "github.com/erofs/go-erofs"
	"io/fs"
	"pgregory.net/rapid"

	"github.com/sirocco-run/sirocco/pkg/image/erofs"
	"github.com/sirocco-run/sirocco/pkg/image/layer"
)

// archive makes a tar stream of headers; the content of files is in the map by
// name.
func archive(t testing.TB, content map[string]string, list ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range list {
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(content[h.Name]))
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := io.WriteString(w, content[h.Name]); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func newMerger(t testing.TB, limits layer.Limits) (*layer.Merger, *erofs.Writer, *os.File) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	w := erofs.NewWriter(f, erofs.Options{MaxBytes: limits.Bytes})
	return layer.NewMerger(w, limits), w, f
}

var plenty = layer.Limits{Entries: 1 << 20, Bytes: 1 << 30}

// merge applies layers and returns what the image holds, a line for each path.
func merge(t testing.TB, layers ...[]byte) (map[string]string, error) {
	t.Helper()
	m, w, f := newMerger(t, plenty)
	for _, l := range layers {
		if err := m.Apply(context.Background(), bytes.NewReader(l)); err != nil {
			return nil, err
		}
	}
	if err := w.Finish(m.Tree().Root()); err != nil {
		return nil, err
	}
	return readBack(t, f), nil
}

func readBack(t testing.TB, f *os.File) map[string]string {
	t.Helper()
	src, err := reader.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	inodes := map[int64][]string{}
	err = fs.WalkDir(src, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == "." {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*reader.Stat)
		line := fmt.Sprintf("%v %d:%d @%d", st.Mode, st.UID, st.GID, st.Mtime)
		switch {
		case d.IsDir():
		case st.Mode&fs.ModeSymlink != 0:
			target, err := src.(interface{ ReadLink(string) (string, error) }).ReadLink(p)
			if err != nil {
				return err
			}
			line += " -> " + target
		case st.Mode.IsRegular():
			b, err := fs.ReadFile(src, p)
			if err != nil {
				return err
			}
			line += " " + string(b)
		default:
			line += fmt.Sprintf(" dev %d", st.Rdev)
		}
		if !d.IsDir() {
			inodes[st.Ino] = append(inodes[st.Ino], "/"+p)
		}
		got["/"+p] = line
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, names := range inodes {
		if len(names) > 1 {
			slices.Sort(names)
			for _, n := range names {
				got[n] += " = " + strings.Join(names, ",")
			}
		}
	}
	return got
}

func TestMerge(t *testing.T) {
	dir := func(name string) tar.Header { return tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755} }
	file := func(name string) tar.Header { return tar.Header{Name: name, Mode: 0o644} }
	link := func(name, target string) tar.Header {
		return tar.Header{Name: name, Linkname: target, Typeflag: tar.TypeSymlink}
	}
	hard := func(name, target string) tar.Header {
		return tar.Header{Name: name, Linkname: target, Typeflag: tar.TypeLink}
	}
	content := map[string]string{}
	for _, n := range []string{"a", "b", "d/a", "d/b", "d/s/c", "lib/x", "up"} {
		content[n] = "<" + n + ">"
	}
	for _, c := range []struct {
		name   string
		layers [][]tar.Header
		want   string
		err    error
	}{
		{"an upper file replaces", [][]tar.Header{{file("a")}, {{Name: "a", Mode: 0o600, Uid: 5}}}, "/a:-rw------- 5:0 <a>", nil},
		{"the last of two entries counts", [][]tar.Header{{file("a"), link("a", "x")}}, "/a:Lrwxrwxrwx 0:0 -> x", nil},
		{"a whiteout hides", [][]tar.Header{{file("d/a"), file("d/b")}, {file("d/.wh.a")}}, "/d /d/b", nil},
		{"a whiteout hides a directory", [][]tar.Header{{file("d/a"), file("b")}, {file(".wh.d")}}, "/b", nil},
		{"a whiteout of nothing", [][]tar.Header{{file("b")}, {file("x/y/.wh.z")}}, "/b", nil},
		{"an opaque directory", [][]tar.Header{{file("d/a"), file("d/s/c")}, {dir("d"), file("d/.wh..wh..opq"), file("d/b")}}, "/d /d/b", nil},
		{"opaque after the entries", [][]tar.Header{{file("d/a")}, {file("d/b"), file("d/.wh..wh..opq")}}, "/d /d/b", nil},
		{"a whiteout does not hide its own layer", [][]tar.Header{{file("a")}, {file("a"), file(".wh.a")}}, "/a", nil},
		{"whiteouts of other programs are nothing", [][]tar.Header{{file("a"), file(".wh..wh.plnk")}}, "/a", nil},
		{"a directory keeps its entries", [][]tar.Header{{file("d/a")}, {{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o700}}}, "/d:drwx------ 0:0 /d/a", nil},
		{"a file replaces a directory", [][]tar.Header{{file("d/a")}, {{Name: "d"}}}, "/d", nil},
		{"a directory replaces a file", [][]tar.Header{{{Name: "d"}}, {dir("d"), file("d/a")}}, "/d /d/a", nil},
		{"a directory replaces a link", [][]tar.Header{{dir("t"), link("d", "t")}, {dir("d"), file("d/a")}}, "/d /d/a /t", nil},
		{"through a link of a lower layer", [][]tar.Header{{dir("usr/lib"), link("lib", "usr/lib")}, {file("lib/x")}}, "/lib /usr /usr/lib /usr/lib/x", nil},
		{"through an absolute link", [][]tar.Header{{dir("usr/lib"), link("lib", "/usr/lib")}, {file("lib/x")}}, "/lib /usr /usr/lib /usr/lib/x", nil},
		{"a link cannot lead out", [][]tar.Header{{link("d", "../../../../etc")}, {file("d/a")}}, "/d /etc /etc/a", nil},
		{"names cannot lead out", [][]tar.Header{{{Name: "../../up"}, {Name: "/abs"}, {Name: "x/../../y"}}}, "/abs /up /y", nil},
		{"hard links", [][]tar.Header{{file("a"), hard("b", "a")}, {hard("c", "b")}}, "/a:-rw-r--r-- 0:0 <a> = /a,/b,/c /b /c", nil},
		{"a hard link outlives its target", [][]tar.Header{{file("a"), hard("b", "a")}, {file(".wh.a")}}, "/b:-rw-r--r-- 0:0 <a>", nil},
		{"a hard link to itself", [][]tar.Header{{file("a"), hard("a", "a")}}, "/a:-rw-r--r-- 0:0 <a>", nil},
		{"a hard link to a link", [][]tar.Header{{link("l", "x"), hard("m", "l")}}, "/l:Lrwxrwxrwx 0:0 -> x = /l,/m /m", nil},
		{"devices", [][]tar.Header{{{Name: "n", Typeflag: tar.TypeChar, Mode: 0o666, Devmajor: 1, Devminor: 3}, {Name: "p", Typeflag: tar.TypeFifo}}}, "/n:Dcrw-rw-rw- 0:0 dev 259 /p", nil},
		{"the root", [][]tar.Header{{{Name: "./", Typeflag: tar.TypeDir, Mode: 0o555}, file("a")}}, "/a", nil},

		{"hard link to nothing", [][]tar.Header{{hard("b", "a")}}, "", layer.ErrInvalid},
		{"hard link to a directory", [][]tar.Header{{dir("d"), hard("b", "d")}}, "", layer.ErrInvalid},
		{"hard link to the root", [][]tar.Header{{hard("b", "../..")}}, "", layer.ErrInvalid},
		{"link loop", [][]tar.Header{{link("l", "m"), link("m", "l"), file("l/a")}}, "", layer.ErrInvalid},
		{"link to itself", [][]tar.Header{{link("l", "l/l/l"), file("l/a")}}, "", layer.ErrInvalid},
		{"below a file", [][]tar.Header{{file("a"), {Name: "a/b"}}}, "", layer.ErrInvalid},
		{"the root as a file", [][]tar.Header{{{Name: "."}}}, "", layer.ErrInvalid},
		{"whiteout of the parent", [][]tar.Header{{{Name: "d/.wh..."}}}, "", layer.ErrInvalid},
		{"whiteout of no name", [][]tar.Header{{{Name: "d/.wh."}}}, "", layer.ErrInvalid},
		{"long component", [][]tar.Header{{{Name: strings.Repeat("n", 256)}}}, "", layer.ErrInvalid},
		{"long name", [][]tar.Header{{{Name: strings.Repeat("n/", 3000) + "n"}}}, "", layer.ErrInvalid},
		{"long target", [][]tar.Header{{link("l", strings.Repeat("t", 5000))}}, "", layer.ErrInvalid},
		{"owner out of range", [][]tar.Header{{{Name: "a", Uid: 1 << 33}}}, "", layer.ErrInvalid},
		{"unknown type", [][]tar.Header{{{Name: "a", Typeflag: 'Z'}}}, "", layer.ErrInvalid},
	} {
		t.Run(c.name, func(t *testing.T) {
			var layers [][]byte
			for _, l := range c.layers {
				layers = append(layers, archive(t, content, l...))
			}
			got, err := merge(t, layers...)
			if !errors.Is(err, c.err) {
				t.Fatalf("error %v, want %v", err, c.err)
			}
			for _, w := range splitWant(c.want) {
				name, line, detailed := strings.Cut(w, ":")
				have, ok := got[name]
				if !ok || detailed && strings.Replace(have, " @0", "", 1) != line && strings.Replace(have, " @0", "", 1) != strings.TrimSpace(line) {
					t.Errorf("%s is %q, want %q", name, have, line)
				}
				delete(got, name)
			}
			if len(got) > 0 {
				t.Errorf("there is also %v", got)
			}
		})
	}
}

// splitWant splits at the spaces that come before a path.
func splitWant(s string) []string {
	var out []string
	for _, w := range strings.Split(s, " ") {
		switch {
		case w == "":
		case strings.HasPrefix(w, "/") && !(len(out) > 0 && strings.HasSuffix(out[len(out)-1], "=")):
			out = append(out, w)
		default:
			out[len(out)-1] += " " + w
		}
	}
	return out
}

func TestLimits(t *testing.T) {
	ctx := context.Background()
	big := archive(t, map[string]string{"a": strings.Repeat("x", 100_000)}, tar.Header{Name: "a"})
	m, _, _ := newMerger(t, layer.Limits{Entries: 10, Bytes: 50_000})
	if err := m.Apply(ctx, bytes.NewReader(big)); !errors.Is(err, layer.ErrTooLarge) {
		t.Errorf("bytes: %v", err)
	}
	// What stands behind the archive counts too.
	m, _, _ = newMerger(t, layer.Limits{Entries: 10, Bytes: 50_000})
	padded := io.MultiReader(bytes.NewReader(archive(t, nil, tar.Header{Name: "a"})), io.LimitReader(zeros{}, 1<<40))
	if err := m.Apply(ctx, padded); !errors.Is(err, layer.ErrTooLarge) {
		t.Errorf("padding: %v", err)
	}
	var many []tar.Header
	for i := range 20 {
		many = append(many, tar.Header{Name: fmt.Sprint(i)})
	}
	m, _, _ = newMerger(t, layer.Limits{Entries: 15, Bytes: 1 << 20})
	if err := m.Apply(ctx, bytes.NewReader(archive(t, nil, many...))); !errors.Is(err, layer.ErrTooLarge) {
		t.Errorf("entries: %v", err)
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	m, _, _ = newMerger(t, plenty)
	if err := m.Apply(ended, bytes.NewReader(big)); !errors.Is(err, context.Canceled) {
		t.Errorf("ended: %v", err)
	}
	m, _, _ = newMerger(t, plenty)
	if err := m.Apply(ctx, bytes.NewReader(big[:len(big)/2])); !errors.Is(err, layer.ErrInvalid) {
		t.Errorf("cut off: %v", err)
	}
	m, _, _ = newMerger(t, plenty)
	if err := m.Apply(ctx, strings.NewReader(strings.Repeat("no tar ", 1000))); !errors.Is(err, layer.ErrInvalid) {
		t.Errorf("garbage: %v", err)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// model is the specification told as simply as possible: a map of paths.
type model map[string]modelEntry

type modelEntry struct {
	kind   byte // d, f, l
	text   string
	mode   int64
	uid    int
	mtime  int64
	inode  int
	target string
}

func (m model) resolve(p string, depth int) (string, bool) {
	if depth > 30 {
		return "", false
	}
	if p == "/" {
		return p, true
	}
	parent, ok := m.resolve(path.Dir(p), depth)
	if !ok {
		return "", false
	}
	p = path.Join(parent, path.Base(p))
	e, ok := m[p]
	switch {
	case !ok || e.kind == 'd':
		return p, true
	case e.kind == 'l':
		target := e.target
		if !path.IsAbs(target) {
			target = parent + "/" + target
		}
		return m.resolve(path.Clean(target), depth+1)
	default:
		return "", false
	}
}

func (m model) place(name string) (string, bool) {
	parent, ok := m.resolve(path.Dir(name), 0)
	if !ok {
		return "", false
	}
	return path.Join(parent, path.Base(name)), true
}

func (m model) removeBelow(p string) {
	for k := range m {
		if strings.HasPrefix(k, strings.TrimSuffix(p, "/")+"/") {
			delete(m, k)
		}
	}
}

func (m model) apply(list []tar.Header, content map[string]string, inode *int) bool {
	for _, h := range list {
		dir, base := path.Split("/" + h.Name)
		if !strings.HasPrefix(base, ".wh.") {
			continue
		}
		parent, ok := m.resolve(path.Clean(dir), 0)
		if e := m[parent]; !ok || parent != "/" && e.kind != 'd' {
			continue
		}
		if base == ".wh..wh..opq" {
			m.removeBelow(parent)
			continue
		}
		gone := path.Join(parent, strings.TrimPrefix(base, ".wh."))
		delete(m, gone)
		m.removeBelow(gone)
	}
	for _, h := range list {
		if strings.HasPrefix(path.Base(h.Name), ".wh.") {
			continue
		}
		*inode++
		e := modelEntry{mode: h.Mode, uid: h.Uid, mtime: h.ModTime.Unix(), inode: *inode, target: h.Linkname}
		if h.Typeflag == tar.TypeLink {
			at, ok := m.place("/" + h.Linkname)
			if !ok || m[at].kind == 0 || m[at].kind == 'd' {
				return false
			}
			e = m[at]
		} else {
			e.kind = map[byte]byte{tar.TypeDir: 'd', tar.TypeSymlink: 'l', tar.TypeReg: 'f'}[h.Typeflag]
			e.text = content[h.Name]
		}
		at, ok := m.place("/" + h.Name)
		if !ok {
			return false
		}
		for p := path.Dir(at); p != "/"; p = path.Dir(p) {
			if _, ok := m[p]; !ok {
				*inode++
				m[p] = modelEntry{kind: 'd', mode: 0o755, inode: *inode}
			}
		}
		if old, ok := m[at]; ok && (old.kind != 'd' || e.kind != 'd') {
			m.removeBelow(at)
		}
		m[at] = e
	}
	return true
}

func (m model) lines() map[string]string {
	out := map[string]string{}
	inodes := map[int][]string{}
	for p, e := range m {
		mode := fs.FileMode(e.mode)
		switch e.kind {
		case 'd':
			mode |= fs.ModeDir
		case 'l':
			mode = 0o777 | fs.ModeSymlink
		}
		out[p] = fmt.Sprintf("%v %d:%d @%d", mode, e.uid, e.uid, e.mtime)
		switch e.kind {
		case 'l':
			out[p] += " -> " + e.target
		case 'f':
			out[p] += " " + e.text
		}
		if e.kind != 'd' {
			inodes[e.inode] = append(inodes[e.inode], p)
		}
	}
	for _, names := range inodes {
		if len(names) > 1 {
			slices.Sort(names)
			for _, n := range names {
				out[n] += " = " + strings.Join(names, ",")
			}
		}
	}
	return out
}

// TestMergeIsTheModel applies random layers and compares with the model.
func TestMergeIsTheModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		name := rapid.Custom(func(rt *rapid.T) string {
			return strings.Join(rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "c"}), 1, 4).Draw(rt, "parts"), "/")
		})
		m, inode, ok := model{}, 0, true
		var layers [][]byte
		for n := range rapid.IntRange(1, 4).Draw(rt, "layers") {
			var list []tar.Header
			content := map[string]string{}
			for i := range rapid.IntRange(0, 10).Draw(rt, "entries") {
				h := tar.Header{Name: name.Draw(rt, "name"), Mode: rapid.SampledFrom([]int64{0o644, 0o755, 0o600}).Draw(rt, "mode"), Uid: i + 1, Gid: i + 1, ModTime: time.Unix(int64(n*100+i+1), 0)}
				switch rapid.IntRange(0, 9).Draw(rt, "kind") {
				case 0, 1, 2:
					h.Typeflag = tar.TypeDir
				case 3:
					h.Typeflag, h.Linkname = tar.TypeSymlink, rapid.SampledFrom([]string{"a", "../b", "/c", "c/a", "/a/b", "..", "."}).Draw(rt, "target")
				case 4:
					h.Typeflag, h.Linkname = tar.TypeLink, name.Draw(rt, "link")
				case 5:
					h.Typeflag = tar.TypeReg
					h.Name = path.Join(path.Dir(h.Name), ".wh."+path.Base(h.Name))
				case 6:
					h.Typeflag = tar.TypeReg
					h.Name = path.Join(h.Name, ".wh..wh..opq")
				default:
					h.Typeflag = tar.TypeReg
					content[h.Name] = fmt.Sprintf("content of %s in %d", h.Name, n)
				}
				list = append(list, h)
			}
			layers = append(layers, archive(t, content, list...))
			ok = ok && m.apply(list, content, &inode)
		}
		got, err := merge(t, layers...)
		if (err == nil) != ok || err != nil && !errors.Is(err, layer.ErrInvalid) {
			rt.Fatalf("error %v, the model says valid: %v", err, ok)
		}
		if ok && !maps.Equal(got, m.lines()) {
			rt.Fatalf("got  %v\nwant %v", got, m.lines())
		}
	})
}

// FuzzApply: whatever a layer holds, merging it ends with an image that can be
// read, or with one of the errors it may.
func FuzzApply(f *testing.F) {
	f.Add(archive(f, map[string]string{"a": "x"}, tar.Header{Name: "a"}, tar.Header{Name: "b", Typeflag: tar.TypeLink, Linkname: "a"}, tar.Header{Name: "d/.wh..wh..opq"}))
	f.Add(archive(f, nil, tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "../.."}, tar.Header{Name: "l/x", Typeflag: tar.TypeDir}))
	f.Add(archive(f, nil, tar.Header{Name: "n", Typeflag: tar.TypeBlock, Devmajor: 8}, tar.Header{Name: ".wh.n", Format: tar.FormatPAX, PAXRecords: map[string]string{"SCHILY.xattr.user.a": "b"}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, w, file := newMerger(t, layer.Limits{Entries: 1000, Bytes: 1 << 20})
		err := m.Apply(context.Background(), bytes.NewReader(b))
		if err == nil {
			err = w.Finish(m.Tree().Root())
		}
		switch {
		case err == nil:
			if err := erofs.Verify(file.Name()); err != nil {
				t.Fatal(err)
			}
			readBack(t, file)
		case errors.Is(err, layer.ErrInvalid), errors.Is(err, layer.ErrTooLarge), errors.Is(err, erofs.ErrTree), errors.Is(err, erofs.ErrFull):
		default:
			t.Fatalf("unexpected error: %v", err)
		}
	})
}

// A whiteout whose way leads round in circles hides nothing, as one whose way
// leads nowhere.
func TestWhiteoutBehindALoop(t *testing.T) {
	got, err := merge(t,
		archive(t, nil, tar.Header{Name: "a", Typeflag: tar.TypeSymlink, Linkname: "a"}),
		archive(t, nil, tar.Header{Name: "a/.wh..wh..opq"}, tar.Header{Name: "a/.wh.b"}))
	if err != nil || len(got) != 1 {
		t.Errorf("got %v, %v", got, err)
	}
}
