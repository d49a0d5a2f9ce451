package link

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/pki"
)

var quiet = slog.New(slog.DiscardHandler)

func keys(t testing.TB) (server, client *tls.Config) {
	t.Helper()
	folder, err := pki.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	server, err = folder.ServerTLS()
	if err != nil {
		t.Fatal(err)
	}
	client, err = folder.ClientTLS()
	if err != nil {
		t.Fatal(err)
	}
	return server, client
}

// serve runs an agent's end at an address until stop is called.
func serve(t testing.TB, cfg *tls.Config, address string, handle Handler) (at string, stop func()) {
	t.Helper()
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	return listener.Addr().String(), serveOn(t, listener, cfg, handle)
}

func serveOn(t testing.TB, listener net.Listener, cfg *tls.Config, handle Handler) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, listener, cfg, quiet, handle) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func dialer(t testing.TB, cfg *tls.Config) *Dialer {
	d := NewDialer(cfg, quiet)
	t.Cleanup(d.Close)
	return d
}

func open(t testing.TB, d *Dialer, address string, h Header) *Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	conn, err := d.Open(ctx, address, h)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn.(*Conn)
}

func echo(context.Context, Header) (func(net.Conn), error) {
	return func(c net.Conn) {
		_, _ = io.Copy(c, c)
		_ = c.(*Conn).CloseWrite()
	}, nil
}

func TestHalfCloseBothWays(t *testing.T) {
	server, client := keys(t)
	got := make(chan Header, 1)
	address, _ := serve(t, server, "127.0.0.1:0", func(_ context.Context, h Header) (func(net.Conn), error) {
		got <- h
		return func(c net.Conn) {
			// Speaks only once the other side has ended, and long after.
			body, _ := io.ReadAll(c)
			_, _ = c.Write(bytes.ToUpper(body))
		}, nil
	})
	want := Header{Kind: KindPort, Tenant: "t", Sandbox: "sb-1", Epoch: 7, Port: 80, Client: "1.2.3.4:5", Trace: "00-x"}
	c := open(t, dialer(t, client), address, want)
	if h := <-got; h != want {
		t.Fatalf("header %+v, want %+v", h, want)
	}
	_, _ = io.WriteString(c, "hello")
	_ = c.CloseWrite()
	if body, err := io.ReadAll(c); err != nil || string(body) != "HELLO" {
		t.Fatalf("read %q, %v", body, err)
	}
}

// What a handler wrote before it returned arrives whole, however late it is
// read, though the stream is closed behind it.
func TestCloseLosesNothing(t *testing.T) {
	server, client := keys(t)
	closed := make(chan struct{}, 1)
	payload := bytes.Repeat([]byte("x"), 200<<10) // below the first window
	address, _ := serve(t, server, "127.0.0.1:0", func(context.Context, Header) (func(net.Conn), error) {
		return func(c net.Conn) {
			_, _ = c.Write(payload)
			_ = c.Close()
			closed <- struct{}{}
		}, nil
	})
	c := open(t, dialer(t, client), address, Header{Kind: KindPort})
	<-closed
	// The reset comes after the end; writing fails once it is here.
	for {
		if _, err := c.Write([]byte("y")); err != nil {
			break
		}
	}
	body, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(body, payload) {
		t.Fatalf("read %d bytes, %v; want %d", len(body), err, len(payload))
	}
}

func TestRefusals(t *testing.T) {
	server, client := keys(t)
	address, _ := serve(t, server, "127.0.0.1:0", func(_ context.Context, h Header) (func(net.Conn), error) {
		switch h.Port {
		case 1:
			return nil, NothingListens(1)
		case 2:
			return nil, NotHere("sb-x", 3)
		}
		return nil, errors.New(strings.Repeat("secret ", 1000))
	})
	d := dialer(t, client)
	for port, check := range map[uint16]func(error) bool{
		1: IsNothingListens, 2: IsNotHere,
		3: func(err error) bool {
			return fault.CodeOf(err) == fault.Internal && !strings.Contains(err.Error(), "secret")
		},
	} {
		_, err := d.Open(context.Background(), address, Header{Kind: KindPort, Port: port})
		if !check(err) {
			t.Errorf("port %d: %v", port, err)
		}
	}
}

func TestAgentRestart(t *testing.T) {
	server, client := keys(t)
	address, stop := serve(t, server, "127.0.0.1:0", echo)
	d := dialer(t, client)
	c := open(t, d, address, Header{Kind: KindPort})
	stop()
	if _, err := io.ReadAll(c); err == nil {
		t.Error("the stream of an agent that is gone ended as if whole")
	}
	if _, err := d.Open(context.Background(), address, Header{Kind: KindPort}); fault.CodeOf(err) != fault.Unavailable {
		t.Fatalf("open to a stopped agent: %v", err)
	}
	serve(t, server, address, echo)
	c = open(t, d, address, Header{Kind: KindPort})
	_, _ = io.WriteString(c, "again")
	_ = c.CloseWrite()
	if body, err := io.ReadAll(c); err != nil || string(body) != "again" {
		t.Fatalf("read %q, %v", body, err)
	}
}

// One of several connections breaks: its streams end with an error, those of the
// others go on, and new ones open.
func TestOneConnectionBreaks(t *testing.T) {
	server, client := keys(t)
	address, _ := serve(t, server, "127.0.0.1:0", echo)
	d := dialer(t, client)
	sessions := func() []session {
		d.mu.Lock()
		defer d.mu.Unlock()
		return slices.Clone(d.nodes[address].sessions)
	}
	streams := []*Conn{open(t, d, address, Header{Kind: KindPort})}
	for len(sessions()) < 2 {
		streams = append(streams, open(t, d, address, Header{Kind: KindPort}))
	}
	streams = append(streams, open(t, d, address, Header{Kind: KindPort})) // on the newest, the least used
	broken := sessions()[0].Session
	_ = broken.Close()
	for i, c := range append(streams, open(t, d, address, Header{Kind: KindPort})) {
		_, werr := io.WriteString(c, "on")
		_ = c.CloseWrite()
		body, err := io.ReadAll(c)
		if c.Session() == broken {
			if err == nil {
				t.Errorf("stream %d ended as if whole, though its connection broke", i)
			}
		} else if werr != nil || err != nil || string(body) != "on" {
			t.Errorf("stream %d of another connection: %q, %v, %v", i, body, werr, err)
		}
	}
}

// A reader that takes nothing stops its own stream only.
func TestSlowReaderBlocksNobody(t *testing.T) {
	server, client := keys(t)
	address, _ := serve(t, server, "127.0.0.1:0", func(_ context.Context, h Header) (func(net.Conn), error) {
		if h.Port == 1 {
			return func(c net.Conn) { _, _ = io.Copy(c, zeros{}) }, nil
		}
		return echo(t.Context(), h)
	})
	d := dialer(t, client)
	slow := open(t, d, address, Header{Kind: KindPort, Port: 1})
	one := make([]byte, 1)
	if _, err := io.ReadFull(slow, one); err != nil {
		t.Fatal(err)
	}
	for {
		c := open(t, d, address, Header{Kind: KindPort})
		payload := bytes.Repeat([]byte("x"), 1<<20) // more than a window
		go func() { _, _ = c.Write(payload); _ = c.CloseWrite() }()
		if body, err := io.ReadAll(c); err != nil || !bytes.Equal(body, payload) {
			t.Fatalf("read %d bytes, %v", len(body), err)
		}
		if c.Session() == slow.Session() {
			return // it went past the stream that stands still
		}
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// Many who want a node that does not answer share one attempt, and one who
// leaves early is let go at once.
func TestUnreachableIsDialedOnce(t *testing.T) {
	_, client := keys(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0") // takes connections, never speaks TLS
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	d := dialer(t, client)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if _, err := d.Open(ctx, listener.Addr().String(), Header{Kind: KindPort}); err == nil {
				t.Error("open: no error")
			}
		})
	}
	conn, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	cancel()
	wg.Wait()
	_ = listener.(*net.TCPListener).SetDeadline(time.Now().Add(50 * time.Millisecond))
	if second, err := listener.Accept(); err == nil {
		_ = second.Close()
		t.Error("a second connection was made while the first was tried")
	}
}

func TestStrangerIsRefused(t *testing.T) {
	server, _ := keys(t)
	_, stranger := keys(t)
	address, _ := serve(t, server, "127.0.0.1:0", echo)
	stranger.InsecureSkipVerify = true //nolint:gosec // the server must refuse, whatever the client accepts
	_, err := dialer(t, stranger).Open(context.Background(), address, Header{Kind: KindPort})
	if fault.CodeOf(err) != fault.Unavailable {
		t.Fatalf("open with another authority's certificate: %v", err)
	}
}

func TestOpenEndsWithContext(t *testing.T) {
	server, client := keys(t)
	entered := make(chan struct{})
	address, _ := serve(t, server, "127.0.0.1:0", func(ctx context.Context, _ Header) (func(net.Conn), error) {
		close(entered)
		<-ctx.Done()
		return nil, ctx.Err()
	})
	ctx, cancel := context.WithCancel(context.Background())
	go func() { <-entered; cancel() }()
	if _, err := dialer(t, client).Open(ctx, address, Header{Kind: KindPort}); err == nil {
		t.Fatal("open: no error")
	}
}

func FuzzReadHeader(f *testing.F) {
	var b bytes.Buffer
	_ = writeHeader(&b, Header{Kind: KindPort, Sandbox: "sb-1", Epoch: 1, Port: 80})
	f.Add(b.Bytes())
	b.Reset()
	_ = writeHeader(&b, Header{Kind: KindMove, Tenant: "t", Sandbox: "sb-1", Epoch: 2})
	f.Add(b.Bytes())
	f.Add([]byte{0xff, 0xff})
	f.Add([]byte{0, 2, '{', '}'})
	f.Fuzz(func(t *testing.T, raw []byte) {
		h, err := ReadHeader(bytes.NewReader(raw))
		if err != nil {
			return
		}
		var again bytes.Buffer
		if err := writeHeader(&again, h); err != nil {
			return // grows past the limit when escaped
		}
		if back, err := ReadHeader(&again); err != nil || back != h {
			t.Fatalf("%+v became %+v, %v", h, back, err)
		}
	})
}
