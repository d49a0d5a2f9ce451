package relay

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// both runs a test over HTTP/1.1 and over h2.
func both(t *testing.T, f func(t *testing.T, h2 bool)) {
	t.Run("http1", func(t *testing.T) { f(t, false) })
	t.Run("h2", func(t *testing.T) { f(t, true) })
}

func TestRequestPassesAsItIs(t *testing.T) {
	g := newRig(t, Config{})
	a := g.agent()
	sb := g.app(a, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Seen", r.Method+" "+r.Host+" "+r.RequestURI)
		w.Header().Set("Sirocco-Error", "forged")
		for _, name := range []string{"X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "Forwarded", "X-Hop", "Te", "User-Agent", "Authorization", "Accept-Encoding"} {
			w.Header().Set("Saw-"+name, strings.Join(r.Header.Values(name), "|"))
		}
		body, _ := io.ReadAll(r.Body)
		w.WriteHeader(http.StatusTeapot)
		_, _ = w.Write(bytes.ToUpper(body))
	}))
	both(t, func(t *testing.T, h2 bool) {
		req, _ := http.NewRequestWithContext(t.Context(), "PATCH", g.url(sb, "/a%2Fb//c?x=1;y=%zz&&"), strings.NewReader("body"))
		for name, value := range map[string]string{
			"X-Forwarded-For": "6.6.6.6", "X-Forwarded-Proto": "gopher", "X-Forwarded-Host": "evil", "Forwarded": "for=6.6.6.6",
			"User-Agent": "me", "Authorization": "Basic abc",
		} {
			req.Header.Set(name, value)
		}
		if !h2 {
			req.Header.Set("Connection", "X-Hop, X-Forwarded-Proto")
			req.Header.Set("X-Hop", "1")
		}
		resp, body := do(t, g.client(h2), req)
		if resp.StatusCode != http.StatusTeapot || body != "BODY" {
			t.Fatalf("%d %q", resp.StatusCode, body)
		}
		host := g.front.Host(8000, sb.GetId())
		want := map[string]string{
			"X-Seen": "PATCH " + host + " /a%2Fb//c?x=1;y=%zz&&", "Sirocco-Error": "",
			"Saw-X-Forwarded-For": "127.0.0.1", "Saw-X-Forwarded-Proto": "https", "Saw-X-Forwarded-Host": host, "Saw-Forwarded": "",
			"Saw-X-Hop": "", "Saw-Te": "", "Saw-User-Agent": "me", "Saw-Authorization": "Basic abc", "Saw-Accept-Encoding": "",
		}
		for name, value := range want {
			if got := resp.Header.Get(name); got != value {
				t.Errorf("%s: %q, want %q", name, got, value)
			}
		}
		h := a.lastHeader()
		if h.Tenant != "acme" || h.Sandbox != sb.GetId() || h.Epoch != 1 || h.Port != 8000 || !strings.HasPrefix(h.Client, "127.0.0.1:") {
			t.Errorf("header of the stream: %+v", h)
		}
	})
}

func TestServerSentEventsAreNotBuffered(t *testing.T) {
	g := newRig(t, Config{})
	next := make(chan struct{})
	sb := g.app(g.agent(), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		w.WriteHeader(200)
		for i := range 3 {
			_, _ = fmt.Fprintf(w, "data: %d\n\n", i)
			_ = http.NewResponseController(w).Flush()
			select {
			case <-next:
			case <-r.Context().Done():
				return
			}
		}
	}))
	both(t, func(t *testing.T, h2 bool) {
		req, _ := http.NewRequestWithContext(t.Context(), "GET", g.url(sb, "/"), nil)
		resp, err := g.client(h2).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		lines := bufio.NewScanner(resp.Body)
		for i := range 3 {
			if !lines.Scan() || lines.Text() != fmt.Sprintf("data: %d", i) || !lines.Scan() {
				t.Fatalf("event %d: %q, %v", i, lines.Text(), lines.Err())
			}
			next <- struct{}{} // the next event is made only after this one has come
		}
		if lines.Scan() {
			t.Fatalf("more: %q", lines.Text())
		}
	})
}

func TestFullDuplex(t *testing.T) {
	g := newRig(t, Config{})
	sb := g.app(g.agent(), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := http.NewResponseController(w)
		_ = c.EnableFullDuplex()
		w.WriteHeader(200)
		_ = c.Flush()
		lines := bufio.NewScanner(r.Body)
		for lines.Scan() {
			_, _ = fmt.Fprintf(w, "<%s>\n", lines.Text())
			_ = c.Flush()
		}
	}))
	both(t, func(t *testing.T, h2 bool) {
		pr, pw := io.Pipe()
		req, _ := http.NewRequestWithContext(t.Context(), "POST", g.url(sb, "/"), pr)
		resp, err := g.client(h2).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		lines := bufio.NewScanner(resp.Body)
		for i := range 5 {
			_, _ = fmt.Fprintf(pw, "%d\n", i)
			if !lines.Scan() || lines.Text() != fmt.Sprintf("<%d>", i) {
				t.Fatalf("echo %d: %q, %v", i, lines.Text(), lines.Err())
			}
		}
		_ = pw.Close()
		if lines.Scan() {
			t.Fatalf("more: %q", lines.Text())
		}
	})
}

func TestTrailersAndInformational(t *testing.T) {
	g := newRig(t, Config{})
	sb := g.app(g.agent(), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</x.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Trailer", "Announced")
		w.Header().Set("X-Client-Trailer", r.Trailer.Get("Client-Sum"))
		w.WriteHeader(200)
		_, _ = io.WriteString(w, "body")
		w.Header().Set("Announced", "yes")
		w.Header().Set(http.TrailerPrefix+"Late", "also")
	}))
	both(t, func(t *testing.T, h2 bool) {
		var hints []int
		ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, _ textproto.MIMEHeader) error {
			hints = append(hints, code)
			return nil
		}})
		req, _ := http.NewRequestWithContext(ctx, "POST", g.url(sb, "/"), io.MultiReader(strings.NewReader("in")))
		req.Trailer = http.Header{"Client-Sum": {"42"}}
		resp, body := do(t, g.client(h2), req)
		if body != "body" || resp.Trailer.Get("Announced") != "yes" || resp.Trailer.Get("Late") != "also" || resp.Header.Get("X-Client-Trailer") != "42" {
			t.Errorf("body %q, trailer %v, client's trailer %q", body, resp.Trailer, resp.Header.Get("X-Client-Trailer"))
		}
		if len(hints) != 1 || hints[0] != http.StatusEarlyHints {
			t.Errorf("informational answers: %v", hints)
		}
	})
}

// A gibibyte passes in each direction whole, and the process does not grow.
func TestBigStreamsInBoundedMemory(t *testing.T) {
	const size = 1 << 30
	g := newRig(t, Config{})
	chunk := make([]byte, 1<<20)
	_, _ = rand.Read(chunk)
	want := sha256.New()
	for range size / len(chunk) {
		want.Write(chunk)
	}
	sum := hex.EncodeToString(want.Sum(nil))
	sb := g.app(g.agent(), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut {
			got := sha256.New()
			_, _ = io.Copy(got, r.Body)
			_, _ = io.WriteString(w, hex.EncodeToString(got.Sum(nil)))
			return
		}
		for range size / len(chunk) {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	}))
	stop := make(chan struct{})
	var peak uint64
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				peak = max(peak, m.HeapInuse)
			}
		}
	})
	check := func(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)) }
	both(t, func(t *testing.T, h2 bool) {
		c := g.client(h2)
		if h2 { // one direction over each protocol: a gibibyte takes a while under -race
			req, _ := http.NewRequestWithContext(t.Context(), "PUT", g.url(sb, "/"), io.LimitReader(&repeat{chunk: chunk}, size))
			req.ContentLength = size
			if resp, body := do(t, c, req); body != sum {
				t.Fatalf("up: %d %q", resp.StatusCode, body)
			}
			return
		}
		req, _ := http.NewRequestWithContext(t.Context(), "GET", g.url(sb, "/"), nil)
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		got := sha256.New()
		if n, err := io.Copy(got, resp.Body); n != size || err != nil || check(got) != sum {
			t.Fatalf("down: %d bytes, %v", n, err)
		}
	})
	close(stop)
	wg.Wait()
	if peak > 128<<20 {
		t.Errorf("the heap grew to %d MiB", peak>>20)
	}
}

type repeat struct {
	chunk []byte
	off   int
}

func (r *repeat) Read(b []byte) (int, error) {
	n := copy(b, r.chunk[r.off:])
	r.off = (r.off + n) % len(r.chunk)
	return n, nil
}

// The app answers early and reads no more, the client sends no more: neither
// holds the other, or the relay, up.
func TestEarlyAnswerEndsTheRequest(t *testing.T) {
	g := newRig(t, Config{})
	sb := g.app(g.agent(), http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Connection", "close")
		w.WriteHeader(http.StatusRequestEntityTooLarge)
		_, _ = io.WriteString(w, "no")
	}))
	conn := g.tls(g.front.Host(8000, sb.GetId()), "http/1.1")
	_, _ = fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: %s\r\nContent-Length: 1000000\r\n\r\nstart", g.front.Host(8000, sb.GetId()))
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	if body, err := io.ReadAll(resp.Body); resp.StatusCode != 413 || string(body) != "no" || err != nil {
		t.Fatalf("%d %q %v", resp.StatusCode, body, err)
	}
	eventually(t, "the connection is closed", func() bool { return g.relay.gate.len() == 0 })
}

// When the client leaves, the app is told.
func TestClientGoneReachesTheApp(t *testing.T) {
	g := newRig(t, Config{})
	entered, gone := make(chan struct{}, 2), make(chan struct{}, 2)
	sb := g.app(g.agent(), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(200)
		_ = http.NewResponseController(w).Flush()
		entered <- struct{}{}
		<-r.Context().Done()
		gone <- struct{}{}
	}))
	both(t, func(t *testing.T, h2 bool) {
		ctx, cancel := context.WithCancel(t.Context())
		req, _ := http.NewRequestWithContext(ctx, "GET", g.url(sb, "/"), nil)
		resp, err := g.client(h2).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		<-entered
		cancel()
		<-gone
	})
}

func TestConnectionsToAppsAreReusedAndBounded(t *testing.T) {
	g := newRig(t, Config{})
	a := g.agent()
	sb := g.app(a, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	c := g.client(true)
	for range 50 {
		get(t, c, g.url(sb, "/"))
	}
	a.mu.Lock()
	n := len(a.headers)
	a.mu.Unlock()
	if n > 3 {
		t.Errorf("50 requests in a row took %d streams", n)
	}
	if n := g.relay.router.conns.count.Load(); n > 3 {
		t.Errorf("%d streams are open", n)
	}
}
