package transfer

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/runtime"
	nodev1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/node/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// Frames as a hostile source makes them.

func file(name string) []byte {
	b, err := pack(&nodev1.MoveMessage{Step: &nodev1.MoveMessage_File{File: &nodev1.MoveFile{Name: name}}})
	if err != nil {
		panic(err)
	}
	return b
}

func partOf(encoding byte, index uint32, pages []int, content []byte) []byte {
	p := part{encoding: encoding, index: index}
	for _, n := range pages {
		p.pages.set(n)
	}
	b := make([]byte, partHead)
	p.put(b)
	return frame(framePart, append(b, content...))
}

func sumOf(name string, size int64, parts ...[]byte) []byte {
	s := newSum(name)
	for _, f := range parts {
		p, content, err := parsePart(f[frameHead:])
		if err != nil {
			panic(err)
		}
		s.part(&p, content)
	}
	return frame(frameSum, s.end(size))
}

func raw(kind byte, size uint32) []byte {
	return binary.BigEndian.AppendUint32([]byte{kind}, size)
}

func deflate(b []byte) []byte {
	e, err := zstd.NewWriter(nil)
	if err != nil {
		panic(err)
	}
	return e.EncodeAll(b, nil)
}

var (
	page  = bytes.Repeat([]byte{1}, pageSize)
	first = partOf(encodingPlain, 0, []int{0}, page)
	short = partOf(encodingPlain, 0, []int{0}, page[:100])
	end   = frame(frameEnd, nil)
)

// feed gives a target what a source wrote, and returns what the target said last and its
// error.
func feed(t testing.TB, dir string, o Options, stream []byte) (*nodev1.MoveMessage, error) {
	said, err := feedAll(t, dir, o, stream)
	return said[len(said)-1], err
}

// feedAll is feed; it returns all that the target said.
func feedAll(t testing.TB, dir string, o Options, stream []byte) ([]*nodev1.MoveMessage, error) {
	sc, tc := net.Pipe()
	defer func() { _ = sc.Close(); _ = tc.Close() }()
	said := make(chan []*nodev1.MoveMessage, 1)
	go func() {
		w := wire{conn: sc, stall: time.Minute}
		var all []*nodev1.MoveMessage
		for {
			_, body, err := w.next(context.Background(), 0, fresh)
			if err != nil {
				break
			}
			m := &nodev1.MoveMessage{}
			if err := proto.Unmarshal(body, m); err != nil {
				t.Errorf("what the target said: %v", err)
			}
			all = append(all, m)
		}
		said <- all
	}()
	go func() { _, _ = sc.Write(stream) }()
	_, err := NewTarget(tc, o).Files(t.Context(), dir)
	_ = tc.Close()
	return <-said, err
}

func TestHostileSource(t *testing.T) {
	bomb := deflate(make([]byte, 64<<20))
	many := func(n int) (b []byte) {
		for i := range n {
			name := strings.Repeat("x", i+1)
			b = append(append(b, file(name)...), sumOf(name, 0)...)
		}
		return append(b, end...)
	}
	join := func(frames ...[]byte) []byte { return bytes.Join(frames, nil) }
	for name, c := range map[string]struct {
		stream []byte
		want   error
		code   fault.Code
	}{
		"unknown frame":           {raw('x', 0), ErrFormat, fault.InvalidArgument},
		"frame too long":          {raw(framePart, 1<<31), ErrFormat, fault.InvalidArgument},
		"message too long":        {raw(frameMessage, maxFrame+1), ErrFormat, fault.InvalidArgument},
		"no message":              {frame(frameMessage, []byte{0xff}), ErrFormat, fault.InvalidArgument},
		"another message":         {frame(frameMessage, nil), ErrFormat, fault.InvalidArgument},
		"slash":                   {file("a/b"), ErrFormat, fault.InvalidArgument},
		"backslash":               {file(`a\b`), ErrFormat, fault.InvalidArgument},
		"folder above":            {file(".."), ErrFormat, fault.InvalidArgument},
		"this folder":             {file("."), ErrFormat, fault.InvalidArgument},
		"absolute":                {file("/etc/passwd"), ErrFormat, fault.InvalidArgument},
		"no name":                 {file(""), ErrFormat, fault.InvalidArgument},
		"zero in the name":        {file("a\x00b"), ErrFormat, fault.InvalidArgument},
		"long name":               {file(strings.Repeat("x", 256)), ErrFormat, fault.InvalidArgument},
		"negative size":           {join(file("a"), sumOf("a", -1)), ErrFormat, fault.InvalidArgument},
		"too large":               {join(file("a"), sumOf("a", 5<<20)), ErrTooMuch, fault.NoCapacity},
		"too large for any limit": {join(file("a"), sumOf("a", 1<<62)), ErrTooMuch, fault.NoCapacity},
		"part too far":            {join(file("a"), partOf(0, 4, []int{0}, page)), ErrTooMuch, fault.NoCapacity},
		"too large together":      {join(file("a"), sumOf("a", 3<<20), file("b"), sumOf("b", 2<<20)), ErrTooMuch, fault.NoCapacity},
		"too many":                {many(5), ErrTooMuch, fault.NoCapacity},
		"twice":                   {join(file("a"), sumOf("a", 0), file("a")), ErrFormat, fault.InvalidArgument},
		"file in a file":          {join(file("a"), file("b")), ErrFormat, fault.InvalidArgument},
		"part without file":       {first, ErrFormat, fault.InvalidArgument},
		"sum without file":        {sumOf("a", 0), ErrFormat, fault.InvalidArgument},
		"end in a file":           {join(file("a"), end), ErrFormat, fault.InvalidArgument},
		"part behind the end":     {join(file("a"), partOf(0, 1, []int{0}, page), sumOf("a", pageSize)), ErrFormat, fault.InvalidArgument},
		"part twice":              {join(file("a"), first, first), ErrFormat, fault.InvalidArgument},
		"part before":             {join(file("a"), partOf(0, 1, []int{0}, page), first), ErrFormat, fault.InvalidArgument},
		"page behind the end":     {join(file("a"), partOf(0, 0, []int{1}, page), sumOf("a", pageSize)), ErrFormat, fault.InvalidArgument},
		"more than the page":      {join(file("a"), first, sumOf("a", 100, first)), ErrFormat, fault.InvalidArgument},
		"less than the map":       {join(file("a"), partOf(0, 0, []int{0, 1}, page)), ErrFormat, fault.InvalidArgument},
		"short in the middle":     {join(file("a"), short, partOf(0, 1, []int{0}, page)), ErrFormat, fault.InvalidArgument},
		"short before the end":    {join(file("a"), short, sumOf("a", pageSize, short)), ErrFormat, fault.InvalidArgument},
		"empty part":              {join(file("a"), partOf(0, 0, nil, nil)), ErrFormat, fault.InvalidArgument},
		"part without head":       {join(file("a"), frame(framePart, []byte{0})), ErrFormat, fault.InvalidArgument},
		"unknown encoding":        {join(file("a"), partOf(9, 0, []int{0}, page)), ErrFormat, fault.InvalidArgument},
		"no zstd":                 {join(file("a"), partOf(encodingZstd, 0, []int{0}, page)), ErrCorrupt, fault.Unavailable},
		"bomb":                    {join(file("a"), partOf(encodingZstd, 0, []int{0}, bomb)), ErrCorrupt, fault.Unavailable},
		"wrong sum":               {join(file("a"), first, sumOf("a", pageSize)), ErrCorrupt, fault.Unavailable},
		"sum of another name":     {join(file("a"), first, sumOf("b", pageSize, first)), ErrCorrupt, fault.Unavailable},
		"cut in a file":           {join(file("a"), first), ErrGone, fault.Unavailable},
		"cut in a frame":          {join(file("a"), first[:100]), ErrGone, fault.Unavailable},
		"cut before the end":      {join(file("a"), sumOf("a", 0)), ErrGone, fault.Unavailable},
		"nothing":                 {nil, ErrGone, fault.Unavailable},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			o := Options{MaxFiles: 4, MaxBytes: 4 << 20}
			if errors.Is(c.want, ErrGone) {
				cut(t, dir, o, c.stream)
				return
			}
			said, err := feed(t, dir, o, c.stream)
			if !errors.Is(err, c.want) || fault.CodeOf(err) != c.code {
				t.Errorf("got %v, want %v (%s)", err, c.want, c.code)
			}
			if got := fault.Code(said.GetFailed().GetCode()); got != c.code {
				t.Errorf("the source was told %v, want %s", said, c.code)
			}
			wantFiles(t, dir, nil)
		})
	}
	t.Run("what is right is taken", func(t *testing.T) {
		dir := t.TempDir()
		packed := partOf(encodingZstd, 0, []int{0}, deflate(page))
		said, err := feed(t, dir, Options{MaxFiles: 4, MaxBytes: 4 << 20}, join(
			file("a"), first, frame(frameProgress, nil), sumOf("a", 3<<20, first), file("b"), packed, sumOf("b", pageSize, first), end))
		if err != nil || said.GetReceived().GetFiles() != 2 {
			t.Fatalf("%v; the source was told %v", err, said)
		}
		wantFiles(t, dir, map[string][]byte{"a": append(bytes.Clone(page), make([]byte, 3<<20-pageSize)...), "b": page})
	})
}

// cut is a source that vanishes after what it wrote.
func cut(t *testing.T, dir string, o Options, stream []byte) {
	t.Helper()
	sc, tc := pipe(t)
	go func() { _, _ = sc.Write(stream); _ = sc.Close() }()
	if _, err := NewTarget(tc, o).Files(t.Context(), dir); !errors.Is(err, ErrGone) || fault.CodeOf(err) != fault.Unavailable {
		t.Errorf("got %v, want %v", err, ErrGone)
	}
	wantFiles(t, dir, nil)
}

// What is there already is neither written over nor taken away.
func TestForeignFileStays(t *testing.T) {
	dir := folder(t, map[string][]byte{"b": []byte("mine")})
	stream := bytes.Join([][]byte{file("a"), sumOf("a", 0), file("b")}, nil)
	if _, err := feed(t, dir, Options{}, stream); !errors.Is(err, ErrFormat) {
		t.Errorf("got %v", err)
	}
	wantFiles(t, dir, map[string][]byte{"b": []byte("mine")})
}

// corrupter breaks one bit of what passes, at a byte.
type corrupter struct {
	net.Conn
	at int
}

func (c *corrupter) Write(b []byte) (int, error) {
	if c.at >= 0 && c.at < len(b) {
		b = bytes.Clone(b)
		b[c.at] ^= 4
	}
	c.at -= len(b)
	return c.Conn.Write(b)
}

// A bit that breaks on the way is found, wherever it is.
func TestCorruption(t *testing.T) {
	files := map[string][]byte{"pages.img": content(3, 3<<20, 0.3, 0.3)}
	from := folder(t, files)
	for _, at := range []int{0, 3, 8, 30, 60, 100, 5000, 1 << 20, 2<<20 - 300} {
		sc, tc := pipe(t)
		dir := t.TempDir()
		serr, terr := both(t, func() error {
			_, err := NewSource(&corrupter{sc, at}, Options{Stall: time.Second}).Files(t.Context(), from)
			_ = sc.Close()
			return err
		}, func() error {
			_, err := NewTarget(tc, Options{Stall: time.Second}).Files(t.Context(), dir)
			_ = tc.Close()
			return err
		})
		if serr == nil || terr == nil {
			t.Errorf("byte %d: source %v, target %v", at, serr, terr)
		}
		wantFiles(t, dir, nil)
	}
}

// A full disk at the target is told to both, and nothing stays on it.
func TestDiskFull(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=2m"); err != nil {
		t.Fatalf("mount a small disk (needs root): %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	from := folder(t, map[string][]byte{"a": content(1, 1<<20, 0, 0), "pages.img": content(2, 16<<20, 0, 0)})
	sc, tc := streams(t, true)
	serr, terr := both(t, func() error {
		_, err := NewSource(sc, Options{}).Files(t.Context(), from)
		return err
	}, func() error {
		_, err := NewTarget(tc, Options{}).Files(t.Context(), dir)
		_ = tc.Close()
		return err
	})
	if !errors.Is(terr, runtime.ErrDiskFull) {
		t.Errorf("target: %v", terr)
	}
	var g *GaveUp
	if !errors.As(serr, &g) || g.Fault.Code != fault.NoCapacity || g.Fault.Scope != "node" {
		t.Errorf("source: %v", serr)
	}
	wantFiles(t, dir, nil)
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil || fs.Bfree != fs.Blocks {
		t.Errorf("%d of %d blocks are free (%v)", fs.Bfree, fs.Blocks, err)
	}
}

// What can't be sent is told to the target in words, and it takes everything back.
func TestSourceFails(t *testing.T) {
	from := folder(t, map[string][]byte{"a": page})
	if err := os.Mkdir(filepath.Join(from, "b"), 0o700); err != nil {
		t.Fatal(err)
	}
	sc, tc := pipe(t)
	dir := t.TempDir()
	serr, terr := both(t, func() error { _, err := NewSource(sc, Options{}).Files(t.Context(), from); return err },
		func() error { _, err := NewTarget(tc, Options{}).Files(t.Context(), dir); return err })
	if !strings.Contains(serr.Error(), "is no file") || !isGaveUp(terr) || fault.CodeOf(terr) != fault.Internal {
		t.Errorf("source %v, target %v", serr, terr)
	}
	wantFiles(t, dir, nil)
}

// FuzzTarget lets a target read anything.
func FuzzTarget(f *testing.F) {
	f.Add(bytes.Join([][]byte{file("a"), short, sumOf("a", 100, short), file("b"), sumOf("b", 0), end}, nil))
	tail := partOf(encodingPlain, 1, []int{0}, page[:1])
	f.Add(bytes.Join([][]byte{file("a"), tail, sumOf("a", partSize+1, tail), end}, nil))
	packed := partOf(encodingZstd, 0, []int{0}, deflate(page[:100]))
	f.Add(bytes.Join([][]byte{file("a"), packed, sumOf("a", 100, short), end}, nil))
	f.Add(file("../a"))
	early, _ := pack(&nodev1.MoveMessage{Step: &nodev1.MoveMessage_File{File: &nodev1.MoveFile{Name: "a", Ahead: true}}})
	pages := frame(frameKnown, known(0, []run{{1, 1, 0}}))
	sum := newSum("b")
	sum.known(pages[frameHead:])
	f.Add(bytes.Join([][]byte{early, first, sumOf("a", pageSize, first), end, file("b"), pages, frame(frameSum, sum.end(2*pageSize)), end}, nil))
	f.Add(raw(frameMessage, 1<<31))
	f.Fuzz(func(t *testing.T, stream []byte) {
		dir := t.TempDir()
		w := &oneWay{r: bytes.NewReader(stream)}
		got, err := NewTarget(w, Options{MaxFiles: 3, MaxBytes: 2 << 20}).Files(t.Context(), dir)
		files := read(t, dir)
		if err != nil && len(files) > 0 || err == nil && len(files) != got.Files || len(files) > 3 {
			t.Fatalf("%v, and %d files stay", err, len(files))
		}
		var size int64
		for _, b := range files {
			size += int64(len(b))
		}
		if err == nil && size != got.Bytes || size > 2<<20 {
			t.Fatalf("%d bytes came, %+v", size, got)
		}
	})
}

// FuzzMessages lets both sides read anything where messages are.
func FuzzMessages(f *testing.F) {
	b, _ := pack(&nodev1.MoveMessage{Step: &nodev1.MoveMessage_Parcel{Parcel: &nodev1.Parcel{Sandbox: record(1)}}})
	f.Add(b)
	f.Add(frame(frameProgress, nil))
	f.Fuzz(func(t *testing.T, stream []byte) {
		in := func() net.Conn { return &oneWay{r: bytes.NewReader(stream)} }
		_, _ = NewTarget(in(), Options{}).AwaitParcel(t.Context())
		_, _ = NewTarget(in(), Options{}).AwaitProceed(t.Context())
		_, _ = NewSource(in(), Options{}).AwaitArrived(t.Context())
		_ = NewSource(in(), Options{}).AwaitRestored(t.Context())
	})
}

// oneWay is a stream of which one side has written all it will.
type oneWay struct {
	net.Conn
	r io.Reader
}

func (c *oneWay) Read(b []byte) (int, error)       { return c.r.Read(b) }
func (c *oneWay) Write(b []byte) (int, error)      { return len(b), nil }
func (c *oneWay) SetReadDeadline(time.Time) error  { return nil }
func (c *oneWay) SetWriteDeadline(time.Time) error { return nil }
