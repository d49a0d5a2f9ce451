package sirocco_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	sirocco "github.com/sirocco-run/sirocco/sdk/go"
)

func create(t *testing.T, c *sirocco.Client) *sirocco.Sandbox {
	t.Helper()
	s, err := c.Create(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestCreateIsSentAgainWithTheSameKey(t *testing.T) {
	f, c := newFake(t)
	f.outages = 3
	if s := create(t, c); s.ID != "sb-1" {
		t.Fatalf("got %q", s.ID)
	}
	if len(f.keys) != 4 || f.keys[0] == "" || slices.ContainsFunc(f.keys, func(k string) bool { return k != f.keys[0] }) {
		t.Fatalf("want one key four times, got %q", f.keys)
	}
}

func TestErrorsKeepEveryField(t *testing.T) {
	_, c := newFake(t)
	_, err := c.Create(t.Context(), &siroccov1.CreateSandboxRequest{Resources: &siroccov1.Resources{MemoryLimitBytes: -1}})
	var e *sirocco.Error
	if !errors.As(err, &e) || e.Code != sirocco.InvalidArgument || e.Field != "resources.memory_limit_bytes" || e.Message != "it is negative" {
		t.Fatalf("got %#v", err)
	}
}

func TestNothingListens(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	c, err := sirocco.New(sirocco.Config{API: "http://" + l.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	_, err = c.Get(t.Context(), "sb-1")
	if sirocco.CodeOf(err) != sirocco.Unavailable || !sirocco.Unreachable(err) {
		t.Fatalf("want an unreachable fault, got %v", err)
	}
	if time.Since(began) > 5*time.Second {
		t.Error("a client that has reached nothing must not keep trying")
	}
}

func TestBadConfig(t *testing.T) {
	for _, cfg := range []sirocco.Config{{API: "127.0.0.1:7070"}, {API: "ftp://x"}, {CAFile: "/does/not/exist"}, {CAFile: "client_test.go"}} {
		if _, err := sirocco.New(cfg); sirocco.CodeOf(err) != sirocco.InvalidArgument {
			t.Errorf("%+v: got %v", cfg, err)
		}
	}
}

// What can't be sent is not worth a second try.
func TestTextThatIsNotUTF8(t *testing.T) {
	_, c := newFake(t)
	if _, err := c.Create(t.Context(), &siroccov1.CreateSandboxRequest{Env: map[string]string{"A": "a\xff"}}); sirocco.CodeOf(err) != sirocco.InvalidArgument {
		t.Errorf("create: %v", err)
	}
	if _, err := create(t, c).Run(t.Context(), sirocco.Command{Args: []string{"a\xff"}}); sirocco.CodeOf(err) != sirocco.InvalidArgument {
		t.Errorf("run: %v", err)
	}
}

func TestOutputGoesOnWhereItBroke(t *testing.T) {
	f, c := newFake(t)
	f.output, f.piece = []byte(strings.Repeat("0123456789", 10)), 33
	var out bytes.Buffer
	end, err := create(t, c).Run(t.Context(), sirocco.Command{Args: []string{"x"}, Stdout: &out})
	if err != nil || end.GetExitCode() != 7 {
		t.Fatalf("got %v, %v", end, err)
	}
	if !bytes.Equal(out.Bytes(), f.output) {
		t.Fatalf("output was changed by the breaks: %q", out.String())
	}
	if want := []int64{0, 33, 66, 99}; !slices.Equal(f.attached, want) {
		t.Fatalf("attached at %v, want %v", f.attached, want)
	}
}

func TestWriterErrorEndsAttach(t *testing.T) {
	f, c := newFake(t)
	f.output, f.piece = []byte("abc"), 10
	r, w := io.Pipe()
	r.CloseWithError(io.ErrNoProgress)
	_, err := create(t, c).Run(t.Context(), sirocco.Command{Stdout: w})
	if !errors.Is(err, io.ErrNoProgress) {
		t.Fatalf("got %v", err)
	}
}

func TestInputArrivesOnce(t *testing.T) {
	f, c := newFake(t)
	const text = "a line of input that is longer than one bite"
	p := create(t, c).Process("p")
	if err := p.Input(t.Context(), iotest.OneByteReader(strings.NewReader(text))); err != nil {
		t.Fatal(err)
	}
	if got := f.input.String(); got != text || !f.closed {
		t.Fatalf("got %q, closed %v", got, f.closed)
	}
	// In one piece, which is taken in bites.
	f.input.Reset()
	f.closed = false
	if err := create(t, c).Process("q").Input(t.Context(), strings.NewReader(text)); err != nil {
		t.Fatal(err)
	}
	if got := f.input.String(); got != text || !f.closed {
		t.Fatalf("got %q, closed %v", got, f.closed)
	}
}

func TestTokenIsReplaced(t *testing.T) {
	f, c := newFake(t)
	f.tokenTTL = 30 * time.Second // below the margin: stale at once
	s := create(t, c)
	f.tokenTTL = time.Hour
	if _, err := s.Start(t.Context(), sirocco.Command{Args: []string{"x"}}); err != nil {
		t.Fatal(err)
	}
	if f.tokens != 2 {
		t.Fatalf("want a second token, got %d", f.tokens)
	}
	f.revoked["Bearer t2sb-1"] = true
	if _, err := s.Start(t.Context(), sirocco.Command{Args: []string{"x"}}); err != nil {
		t.Fatalf("a token that is refused is replaced: %v", err)
	}
	if f.tokens != 3 {
		t.Fatalf("want a third token, got %d", f.tokens)
	}
}

func TestListReadsEveryPage(t *testing.T) {
	_, c := newFake(t)
	var ids []string
	for sb, err := range c.List(t.Context(), nil) {
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, sb.GetId())
	}
	if want := []string{"sb-1", "sb-2", "sb-3"}; !slices.Equal(ids, want) {
		t.Fatalf("got %v", ids)
	}
}

func TestWatchGoesOnBehindTheLastEvent(t *testing.T) {
	f, c := newFake(t)
	var seen []uint64
	var last error
	for event, err := range c.Watch(t.Context(), "", 0) {
		if err != nil {
			last = err
			break
		}
		seen = append(seen, event.GetSequence())
	}
	if want := []uint64{7, 8, 9, 10}; !slices.Equal(seen, want) {
		t.Fatalf("got %v", seen)
	}
	if want := []uint64{0, 9, 11}; !slices.Equal(f.watched, want) {
		t.Fatalf("asked from %v", f.watched)
	}
	if sirocco.CodeOf(last) != sirocco.PermissionDenied {
		t.Fatalf("got %v", last)
	}
}

func TestWatchGoesOnByCursor(t *testing.T) {
	f, c := newFake(t)
	for _, err := range c.WatchWith(t.Context(), &siroccov1.WatchSandboxesRequest{Id: "far", FromSequence: 7}) {
		if err != nil {
			break
		}
	}
	if want := []string{"", "eu:7,us:1", "eu:7,us:2"}; !slices.Equal(f.cursors, want) {
		t.Errorf("asked from %q", f.cursors)
	}
	if want := []uint64{7, 0, 0}; !slices.Equal(f.watched, want) {
		t.Errorf("asked from %v", f.watched)
	}
}

func TestFilesGoThere(t *testing.T) {
	f, c := newFake(t)
	s := create(t, c)
	content := bytes.Repeat([]byte("sand"), 200_000)
	info, err := s.WriteFile(t.Context(), "/tmp/a", bytes.NewReader(content), sirocco.WriteOptions{})
	if err != nil || info.GetSize() != int64(len(content)) {
		t.Fatalf("got %v, %v", info, err)
	}
	r, err := s.ReadFile(t.Context(), "/tmp/a", 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(got, content) {
		t.Fatalf("read %d bytes, %v", len(got), err)
	}
	if _, err := s.WriteFile(t.Context(), "/tmp/empty", strings.NewReader(""), sirocco.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	if data, ok := f.files["/tmp/empty"]; !ok || len(data) != 0 {
		t.Error("an empty file was not made")
	}
}

func TestFileIsNotMadeWhenItsSourceFails(t *testing.T) {
	f, c := newFake(t)
	source := io.MultiReader(bytes.NewReader(make([]byte, 1<<20)), iotest.ErrReader(io.ErrNoProgress))
	_, err := create(t, c).WriteFile(t.Context(), "/tmp/half", source, sirocco.WriteOptions{})
	if !errors.Is(err, io.ErrNoProgress) {
		t.Fatalf("got %v", err)
	}
	if len(f.files) != 0 {
		t.Error("a half file was made")
	}
}

func TestReadOfAMissingFile(t *testing.T) {
	_, c := newFake(t)
	r, err := create(t, c).ReadFile(t.Context(), "/nothing", 0, 0)
	if err == nil {
		_, err = io.ReadAll(r)
		r.Close()
	}
	if sirocco.CodeOf(err) != sirocco.NotFound {
		t.Fatalf("got %v", err)
	}
}
