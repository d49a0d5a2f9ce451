package agent

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirocco-run/sirocco/pkg/link"
	"github.com/sirocco-run/sirocco/pkg/pki"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	"pgregory.net/rapid"
)

// crossing is a machine whose one port leads to a server here, and a relay's end of
// the link to it.
type crossing struct {
	*machine
	t      *testing.T
	dialer *link.Dialer
	at     string
}

func newCrossing(t *testing.T, app func(net.Conn)) *crossing {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	a := &Agent{name: "n", log: log}
	var err error
	if a.metrics, err = newMetrics(metricnoop.NewMeterProvider().Meter(""), a); err != nil {
		t.Fatal(err)
	}
	keys, err := pki.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	server, err := keys.ServerTLS()
	if err != nil {
		t.Fatal(err)
	}
	client, err := keys.ClientTLS()
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	x := &crossing{newMachine(a, placedAt(1, 10, siroccov1.State_STATE_RUNNING), &entry{}, 1), t, link.NewDialer(client, log), listener.Addr().String()}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		_ = link.Serve(ctx, listener, server, log, func(ctx context.Context, h link.Header) (func(net.Conn), error) {
			inside, outside := tcpPair(t)
			go app(inside)
			return func(c net.Conn) { x.splice(ctx, c, outside, h) }, nil
		})
	})
	t.Cleanup(func() { x.dialer.Close(); cancel(); wg.Wait() })
	return x
}

func tcpPair(t *testing.T) (net.Conn, net.Conn) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Error(err)
		return net.Pipe()
	}
	defer func() { _ = l.Close() }()
	out, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Error(err)
		return net.Pipe()
	}
	in, err := l.Accept()
	if err != nil {
		t.Error(err)
	}
	return in, out
}

func (x *crossing) open(requests bool) *link.Conn {
	x.t.Helper()
	c, err := x.dialer.Open(x.t.Context(), x.at, link.Header{Kind: link.KindPort, Requests: requests})
	if err != nil {
		x.t.Fatal(err)
	}
	return c.(*link.Conn)
}

// is changes the state of the record.
func (x *crossing) is(state siroccov1.State) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.record = placedAt(1, x.record.GetRevision()+1, state)
}

func (x *crossing) say(c net.Conn, text string) {
	x.t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		x.t.Fatal(err)
	}
}

func (x *crossing) hear(r *bufio.Reader, text string) {
	x.t.Helper()
	got := make([]byte, len(text))
	if _, err := io.ReadFull(r, got); err != nil || string(got) != text {
		x.t.Fatalf("%q, %v; want %q", got, err, text)
	}
}

func (x *crossing) underWay(n int) {
	x.t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		x.traffic.mu.Lock()
		got, _ := x.traffic.blocking(time.Now())
		x.traffic.mu.Unlock()
		if got == n {
			return
		}
		if time.Now().After(deadline) {
			x.t.Fatalf("%d under way, want %d", got, n)
		}
		select {
		case <-time.After(time.Millisecond):
		case <-x.t.Context().Done():
		}
	}
}

const post = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi"

// A request under way is waited for until its answer has passed, and not longer than
// until the relay ends the stream. What comes after that is sent back unheard, until
// the move is called off.
func TestQuietWaitsForTheAnswer(t *testing.T) {
	answers, heard := make(chan string), make(chan string, 10)
	x := newCrossing(t, func(c net.Conn) {
		for r := bufio.NewReader(c); ; {
			req, err := http.ReadRequest(r)
			if err != nil {
				_ = c.Close()
				return
			}
			body, _ := io.ReadAll(req.Body)
			heard <- req.Method + string(body)
			for answer := range answers {
				_, _ = io.WriteString(c, answer)
				if !strings.HasPrefix(answer, "HTTP/1.1 1") {
					break
				}
			}
		}
	})
	c, idle, late := x.open(true), x.open(true), x.open(true)
	in := bufio.NewReader(c)
	x.say(c, post)
	if got := <-heard; got != "POSThi" {
		t.Fatalf("%q", got)
	}
	x.is(siroccov1.State_STATE_MIGRATING)
	if n := x.quiet(t.Context(), 20*time.Millisecond); n != 1 {
		t.Fatalf("%d under way, want 1", n)
	}
	done := make(chan int, 1)
	go func() { done <- x.quiet(t.Context(), 20*time.Second) }()
	const hints, answer = "HTTP/1.1 103 Early Hints\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	answers <- hints // is no answer
	x.hear(in, hints)
	x.underWay(1)
	answers <- answer
	x.hear(in, answer)
	_ = c.Close()
	if n := <-done; n != 0 {
		t.Fatalf("%d under way after the answer", n)
	}

	for _, c := range []*link.Conn{late, idle} {
		x.say(c, post)
		if _, err := c.Read(make([]byte, 1)); link.WhyBroken(err) != link.BrokeUnheard {
			t.Errorf("a request after the door was shut: %v", err)
		}
	}
	x.is(siroccov1.State_STATE_RUNNING)
	c = x.open(true)
	x.say(c, post)
	answers <- answer
	x.hear(bufio.NewReader(c), answer)
	<-heard
	select {
	case got := <-heard:
		t.Errorf("the sandbox has heard %q", got)
	default:
	}
}

// A download blocks while it flows. What may go on for ever does not.
func TestQuietDoesNotWaitForEver(t *testing.T) {
	x := newCrossing(t, func(c net.Conn) {
		r := bufio.NewReader(c)
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				_ = c.Close()
				return
			}
			switch {
			case strings.HasPrefix(line, "GET /socket"):
				_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\n\r\n")
			case strings.HasPrefix(line, "GET /events"):
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
			case strings.HasPrefix(line, "GET /download"):
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\npart")
			case strings.HasPrefix(line, "raw"):
				_, _ = io.WriteString(c, "HTTP/1.1 is none here\n")
			}
		}
	})
	x.is(siroccov1.State_STATE_MIGRATING)
	streams := map[string]*bufio.Reader{}
	for path, last := range map[string]string{"GET /socket": "\r\n\r\n", "GET /events": "1\n\n", "raw": "here\n"} {
		c := x.open(path != "raw")
		x.say(c, path+" HTTP/1.1\r\n\r\n")
		streams[path] = bufio.NewReader(c)
		for text := ""; !strings.HasSuffix(text, last); {
			b, err := streams[path].ReadByte()
			if err != nil {
				t.Fatal(err)
			}
			text += string(b)
		}
	}
	x.underWay(0)
	c := x.open(true)
	x.say(c, "GET /download HTTP/1.1\r\n\r\n")
	_, _ = bufio.NewReader(c).Peek(1)
	began := time.Now()
	if n := x.quiet(t.Context(), 20*time.Second); n != 0 || time.Since(began) < stillMoving/2 {
		t.Errorf("%d under way, after %v", n, time.Since(began))
	}
}

// When the sandbox has left, whoever waits for an answer learns it from the way the
// stream ends; other streams are left to the relay.
func TestStreamsOfASandboxThatHasLeft(t *testing.T) {
	die := make(chan struct{})
	x := newCrossing(t, func(c net.Conn) {
		b := make([]byte, 1000)
		n, _ := c.Read(b)
		if strings.HasPrefix(string(b[:n]), "raw") {
			_, _ = io.WriteString(c, "last words")
		}
		<-die
		_ = c.Close()
	})
	x.is(siroccov1.State_STATE_MIGRATING)
	c, raw := x.open(true), x.open(false)
	x.say(c, post)
	x.say(raw, "raw")
	x.underWay(1)
	x.traffic.shut.Store(true) // as if the answer were not waited for
	close(die)
	if _, err := c.Read(make([]byte, 1)); link.WhyBroken(err) != link.BrokeMoved {
		t.Errorf("the request: %v", err)
	}
	in := bufio.NewReader(raw)
	x.hear(in, "last words")
	_ = raw.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	var late net.Error
	if _, err := in.ReadByte(); !errors.As(err, &late) || !late.Timeout() {
		t.Errorf("the raw stream: %v", err)
	}
	_ = raw.Close()
}

// On an HTTP/2 connection only calls without an answer block: a quiet stream does not,
// though the client has had the last word.
func TestQuietOverHTTP2(t *testing.T) {
	served := &http.Server{Protocols: new(http.Protocols)}
	served.Protocols.SetUnencryptedHTTP2(true)
	entered, finish := make(chan struct{}), make(chan struct{})
	served.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/call" {
			entered <- struct{}{}
			<-finish
			return
		}
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	feed := newConnListener()
	go func() { _ = served.Serve(feed) }()
	t.Cleanup(func() { _ = served.Close() })
	x := newCrossing(t, func(c net.Conn) { feed.serve(c, nil) })
	tr := &http.Transport{Protocols: new(http.Protocols), DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return x.dialer.Open(ctx, x.at, link.Header{Kind: link.KindPort, Requests: true, HTTP2: true})
	}}
	tr.Protocols.SetUnencryptedHTTP2(true)
	t.Cleanup(tr.CloseIdleConnections)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	get := func(path string) error {
		req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://app"+path, nil)
		resp, err := tr.RoundTrip(req)
		if err == nil && path == "/call" {
			_ = resp.Body.Close()
		}
		return err //nolint:bodyclose // the stream is to stay open
	}
	x.is(siroccov1.State_STATE_MIGRATING)
	if err := get("/stream"); err != nil {
		t.Fatal(err)
	}
	called := make(chan error, 1)
	go func() { called <- get("/call") }()
	<-entered
	if n := x.quiet(t.Context(), stillMoving+100*time.Millisecond); n != 1 {
		t.Errorf("%d under way, want 1", n)
	}
	done := make(chan int, 1)
	go func() { done <- x.quiet(t.Context(), 20*time.Second) }()
	close(finish)
	if err := <-called; err != nil {
		t.Error(err)
	}
	if n := <-done; n != 0 {
		t.Errorf("%d under way after the answer", n)
	}
	if err := get("/call"); link.WhyBroken(err) != link.BrokeUnheard {
		t.Errorf("a call after the door was shut: %v", err)
	}
}

// However the bytes are cut, the same frames are seen.
func TestFramesOfHTTP2(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type frame struct {
			kind, flags byte
			stream      uint32
		}
		var want, got []frame
		all := make([]byte, h2Preface)
		for range rapid.IntRange(0, 6).Draw(t, "frames") {
			f := frame{rapid.Byte().Draw(t, "kind"), rapid.Byte().Draw(t, "flags"), rapid.Uint32Range(0, 1<<31-1).Draw(t, "stream")}
			n := rapid.SampledFrom([]int{0, 1, 9, 300, 70_000}).Draw(t, "length")
			all = append(all, byte(n>>16), byte(n>>8), byte(n), f.kind, f.flags, byte(f.stream>>24), byte(f.stream>>16), byte(f.stream>>8), byte(f.stream))
			all, want = append(all, make([]byte, n)...), append(want, f)
		}
		frames := newH2Calls().in
		for rest := all; len(rest) > 0; {
			n := rapid.IntRange(1, len(rest)).Draw(t, "cut")
			frames.pass(rest[:n], func(kind, flags byte, stream uint32) { got = append(got, frame{kind, flags, stream}) })
			rest = rest[n:]
		}
		if !slices.Equal(got, want) {
			t.Fatalf("%v, want %v", got, want)
		}
	})
}

func TestFinalAnswer(t *testing.T) {
	for b, want := range map[string]string{
		"HTTP/1.1 200 OK\r\n":                                               "200",
		"HTTP/1.1 101 Switching Protocols\r\n\r\n":                          "101",
		"HTTP/1.1 100 Continue\r\n\r\n":                                     "",
		"HTTP/1.1 103 Early Hints\r\nLink: x\r\n":                           "",
		"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 404 No\r\n":    "404",
		"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n":     "",
		fmt.Sprintf("%c%c%c", 0, 0, 18):                                     "?",
		"HTTP/1.0 200 OK\r\n\r\n":                                           "?",
		"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 101 Switching Protocols\r\n": "101",
	} {
		if got, _ := finalAnswer([]byte(b)); got != want {
			t.Errorf("%q: %q, want %q", b, got, want)
		}
	}
}
