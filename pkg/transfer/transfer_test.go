package transfer

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/link"
	"github.com/sirocco-run/sirocco/pkg/pki"
	nodev1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/node/v1"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/testing/protocmp"
)

var quiet = slog.New(slog.DiscardHandler)

// pipe is a stream in memory.
func pipe(t testing.TB) (source, target net.Conn) {
	source, target = net.Pipe()
	t.Cleanup(func() { _ = source.Close(); _ = target.Close() })
	return source, target
}

// streams is a stream of a real link: over mutual TLS, or a local socket.
func streams(t testing.TB, local bool) (source, target net.Conn) {
	t.Helper()
	folder, err := pki.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	server, err := folder.ServerTLS()
	if err != nil {
		t.Fatal(err)
	}
	client, err := folder.ClientTLS()
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	d := link.NewBulkDialer(client, quiet)
	if local {
		_ = listener.Close()
		dir, err := os.MkdirTemp("", "transfer")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
		if listener, err = link.ListenLocal(filepath.Join(dir, "l")); err != nil {
			t.Fatal(err)
		}
		d.Local(address, listener.Addr().String())
	}
	got, end := make(chan net.Conn, 1), make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func(cfg *tls.Config) {
		served <- link.Serve(ctx, listener, cfg, quiet, func(_ context.Context, h link.Header) (func(net.Conn), error) {
			if h.Kind != link.KindMove {
				return nil, errors.New("want a move")
			}
			return func(c net.Conn) { got <- c; <-end }, nil
		})
	}(server)
	t.Cleanup(func() {
		close(end)
		cancel()
		d.Close()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	source, err = d.Open(t.Context(), address, link.Header{Kind: link.KindMove, Sandbox: "sb-1", Epoch: 2})
	if err != nil {
		t.Fatal(err)
	}
	return source, <-got
}

// content is a file of pages: some of zeros, some of text, some of noise.
func content(seed uint64, size int, zeros, text float64) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, size)
	for at := 0; at < size; at += pageSize {
		page := b[at:min(at+pageSize, size)]
		switch x := r.Float64(); {
		case x < zeros:
		case x < zeros+text:
			for i := range page {
				page[i] = "sand and wind "[r.IntN(14)]
			}
		default:
			for i := range page {
				page[i] = byte(r.Uint32())
			}
		}
	}
	return b
}

func folder(t testing.TB, files map[string][]byte) string {
	t.Helper()
	dir := t.TempDir()
	for name, b := range files {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// read returns the files of a folder.
func read(t testing.TB, dir string) map[string][]byte {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		files[e.Name()] = b
	}
	return files
}

func wantFiles(t testing.TB, dir string, want map[string][]byte) {
	t.Helper()
	got := read(t, dir)
	if len(got) != len(want) {
		t.Errorf("%d files came, want %d", len(got), len(want))
	}
	for name, b := range want {
		if !bytes.Equal(got[name], b) {
			t.Errorf("file %s differs", name)
		}
	}
}

// blocks is how much room a file takes, in bytes.
func blocks(t testing.TB, path string) int64 {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return st.Sys().(*syscall.Stat_t).Blocks * 512
}

var checkpoint = map[string][]byte{
	"manifest.json":   []byte(`{"version":"x"}`),
	"checkpoint.img":  content(1, 300<<10+17, 0, 1),
	"pages_meta.img":  nil,
	"pages.img":       content(2, 9<<20+5, 0.5, 0.25),
	"only zeros":      make([]byte, 3<<20),
	"one byte of all": {7},
}

// both runs the two sides at once.
func both(t testing.TB, source, target func() error) (serr, terr error) {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- target() }()
	serr = source()
	return serr, <-done
}

func record(epoch uint64) *siroccov1.Sandbox {
	return &siroccov1.Sandbox{Id: "sb-1", Tenant: "acme", Placement: &siroccov1.Placement{Epoch: epoch}}
}

// move goes through all steps.
func move(t *testing.T, sc, tc net.Conn) {
	dir, parcel := t.TempDir(), &nodev1.Parcel{Sandbox: record(2), Secret: []byte("s"), ImageDigest: "sha256:x"}
	from := folder(t, checkpoint)
	var sent Sent
	var received Received
	serr, terr := both(t, func() (err error) {
		s := NewSource(sc, Options{})
		if err := s.Offer(t.Context(), parcel); err != nil {
			return err
		}
		if sent, err = s.Files(t.Context(), from); err != nil {
			return err
		}
		if err := s.AwaitRestored(t.Context()); err != nil {
			return err
		}
		if err := s.Proceed(t.Context(), record(3)); err != nil {
			return err
		}
		at, err := s.AwaitArrived(t.Context())
		if diff := cmp.Diff(record(4), at, protocmp.Transform()); diff != "" {
			t.Errorf("arrived: %s", diff)
		}
		return err
	}, func() error {
		g := NewTarget(tc, Options{})
		got, err := g.AwaitParcel(t.Context())
		if err != nil {
			return err
		}
		if diff := cmp.Diff(parcel, got, protocmp.Transform()); diff != "" {
			t.Errorf("parcel: %s", diff)
		}
		if err := g.Accept(t.Context()); err != nil {
			return err
		}
		if received, err = g.Files(t.Context(), dir); err != nil {
			return err
		}
		wantFiles(t, dir, checkpoint)
		if err := g.Restored(t.Context()); err != nil {
			return err
		}
		proceed, err := g.AwaitProceed(t.Context())
		if err != nil {
			return err
		}
		if diff := cmp.Diff(record(3), proceed, protocmp.Transform()); diff != "" {
			t.Errorf("proceed: %s", diff)
		}
		return g.Arrived(t.Context(), record(4))
	})
	if serr != nil || terr != nil {
		t.Fatalf("source: %v; target: %v", serr, terr)
	}
	want := Received{Files: sent.Files, Bytes: sent.Bytes, Content: sent.Content, Wire: sent.Wire}
	if received != want || sent.Files != len(checkpoint) {
		t.Errorf("sent %+v, received %+v", sent, received)
	}
	if sent.Wire > 6<<20 {
		t.Errorf("%d bytes went over the wire: zeros were sent", sent.Wire)
	}
	if n := blocks(t, filepath.Join(dir, "only zeros")); n > 64<<10 {
		t.Errorf("3 MiB of zeros take %d bytes at the target", n)
	}
}

func TestMove(t *testing.T) {
	t.Run("pipe", func(t *testing.T) { sc, tc := pipe(t); move(t, sc, tc) })
	t.Run("tls", func(t *testing.T) { sc, tc := streams(t, false); move(t, sc, tc) })
	t.Run("local", func(t *testing.T) { sc, tc := streams(t, true); move(t, sc, tc) })
}

// A sparse file is sent by its data alone, wherever that is.
func TestHoles(t *testing.T) {
	const size = 40 << 30
	from := t.TempDir()
	f, err := os.Create(filepath.Join(from, "pages.img"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	at := map[int64]string{0: "first", 5<<20 - 2: "across parts", 30 << 30: "far", size - 4: "last"}
	for off, s := range at {
		if _, err := f.WriteAt([]byte(s), off); err != nil {
			t.Fatal(err)
		}
	}
	sc, tc := pipe(t)
	dir := t.TempDir()
	var sent Sent
	serr, terr := both(t, func() (err error) {
		sent, err = NewSource(sc, Options{}).Files(t.Context(), from)
		return err
	}, func() error { _, err := NewTarget(tc, Options{}).Files(t.Context(), dir); return err })
	if serr != nil || terr != nil {
		t.Fatalf("source: %v; target: %v", serr, terr)
	}
	path := filepath.Join(dir, "pages.img")
	got, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = got.Close() }()
	for off, s := range at {
		b := make([]byte, len(s))
		if _, err := got.ReadAt(b, off); err != nil && !errors.Is(err, io.EOF) || string(b) != s {
			t.Errorf("at %d is %q (%v), want %q", off, b, err, s)
		}
	}
	if st, _ := got.Stat(); st.Size() != size || sent.Wire > 100<<10 || blocks(t, path) > 1<<20 {
		t.Errorf("%d bytes came, %d over the wire, which take %d", st.Size(), sent.Wire, blocks(t, path))
	}
}

// Whatever one side says when it gives up, the other hears as it was, at any step.
func TestGivingUp(t *testing.T) {
	why := &fault.Fault{Code: fault.NoCapacity, Scope: "node", Message: "no memory"}
	heard := func(t *testing.T, err error) {
		t.Helper()
		var g *GaveUp
		if !errors.As(err, &g) || *g.Fault != *why {
			t.Errorf("heard %v, want %v", err, why)
		}
	}
	from := folder(t, checkpoint)
	for name, wait := range map[string]func(*Source) error{
		"offer":    func(s *Source) error { return s.Offer(t.Context(), &nodev1.Parcel{}) },
		"files":    func(s *Source) error { _, err := s.Files(t.Context(), from); return err },
		"restored": func(s *Source) error { return s.AwaitRestored(t.Context()) },
		"arrived":  func(s *Source) error { _, err := s.AwaitArrived(t.Context()); return err },
	} {
		t.Run("target/"+name, func(t *testing.T) {
			sc, tc := streams(t, true)
			serr, terr := both(t, func() error { return wait(NewSource(sc, Options{})) }, func() error {
				err := NewTarget(tc, Options{}).Fail(why)
				_ = tc.Close()
				return err
			})
			heard(t, serr)
			if terr != nil {
				t.Error(terr)
			}
		})
	}
	for name, wait := range map[string]func(*Target) error{
		"parcel":  func(g *Target) error { _, err := g.AwaitParcel(t.Context()); return err },
		"files":   func(g *Target) error { _, err := g.Files(t.Context(), t.TempDir()); return err },
		"proceed": func(g *Target) error { _, err := g.AwaitProceed(t.Context()); return err },
	} {
		t.Run("source/"+name, func(t *testing.T) {
			sc, tc := streams(t, true)
			serr, terr := both(t, func() error {
				err := NewSource(sc, Options{}).Stop(why)
				_ = sc.Close()
				return err
			}, func() error { return wait(NewTarget(tc, Options{})) })
			heard(t, terr)
			if serr != nil {
				t.Error(serr)
			}
		})
	}
}
