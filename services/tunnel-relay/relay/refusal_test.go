package relay

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/sandboxid"
	"github.com/sirocco-run/sirocco/pkg/tunnel"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

func hello(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }

// oldID is an id that nobody waits for: it was not made just now.
const oldID = "sb-060000000" + "1o" + "000000000000000"

func TestRefusals(t *testing.T) {
	g := newRig(t, Config{StartWait: 50 * time.Millisecond, ListenGrace: time.Millisecond})
	a := g.agent()
	sb := g.app(a, http.HandlerFunc(hello))
	if !sandboxid.Valid(oldID) {
		t.Fatal("the id of the test is not valid")
	}
	done := g.app(a, http.HandlerFunc(hello))
	code := int32(137)
	done = g.step(done, lifecycle.Finish{Epoch: 1, End: &siroccov1.End{Cause: siroccov1.Cause_CAUSE_OOM, Limit: "memory_bytes=1", ExitCode: &code}})
	stopping := g.step(g.app(a, http.HandlerFunc(hello)), lifecycle.Stop{Cause: siroccov1.Cause_CAUSE_IDLE})
	waiting := g.accept(&siroccov1.Port{Port: 8000})
	away := g.accept(&siroccov1.Port{Port: 8000})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	away = g.place(away, &agent{t: t, address: l.Addr().String(), runs: map[string]uint64{}})
	mixed := g.accept(&siroccov1.Port{Port: 1, Protocol: rawTCP}, &siroccov1.Port{Port: 2, Protocol: passthrough}, &siroccov1.Port{Port: 3})
	mixed = g.placed(mixed, a)
	for _, sb := range []*siroccov1.Sandbox{done, stopping, waiting, away} {
		g.known(sb)
	}
	rows := []struct {
		name, url string
		status    int
		reason    string
		text      string
	}{
		{"another domain", "https://elsewhere.example/", 404, ReasonNotATunnel, "elsewhere.example"},
		{"the domain itself", "https://sandbox.test/", 404, ReasonNotATunnel, ""},
		{"a name with dots", "https://a.b.sandbox.test/", 404, ReasonNotATunnel, ""},
		{"port 70000", "https://70000-" + sb.GetId() + ".sandbox.test/", 404, ReasonNotATunnel, ""},
		{"no such sandbox", "https://8000-" + oldID + ".sandbox.test/", 404, ReasonNoSuchSandbox, oldID},
		{"a young id that never comes", "https://8000-" + sandboxid.New() + ".sandbox.test/", 503, ReasonStillStarting, "has heard of"},
		{"port not published", g.urlPort(sb, 8001, "/"), 404, ReasonNotPublished, "8001"},
		{"raw TCP", g.urlPort(mixed, 1, "/"), 421, ReasonMisdirected, "raw TCP"},
		{"passthrough", g.urlPort(mixed, 2, "/"), 421, ReasonMisdirected, "passthrough"},
		{"nothing listens", g.urlPort(mixed, 3, "/"), 502, ReasonNothingListens, "port 3"},
		{"ended", g.url(done, "/"), 410, ReasonEnded, "oom (memory_bytes=1), exit code 137"},
		{"stopping", g.url(stopping, "/"), 410, ReasonEnded, "idle"},
		{"still starting", g.url(waiting, "/"), 503, ReasonStillStarting, "accepted"},
		{"node away", g.url(away, "/"), 503, ReasonNodeUnreachable, ""},
	}
	both(t, func(t *testing.T, h2 bool) {
		c := g.client(h2)
		c.Transport.(*http.Transport).TLSClientConfig.ServerName = "x.sandbox.test" // one connection for any host
		for _, row := range rows {
			t.Run(row.name, func(t *testing.T) {
				resp, body := get(t, c, row.url)
				wantReason(t, resp, row.status, row.reason)
				if !strings.Contains(body, row.text) || !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/plain") {
					t.Errorf("%s: %q", resp.Header.Get("Content-Type"), body)
				}
				if row.status == 503 && resp.Header.Get("Retry-After") == "" {
					t.Error("no Retry-After")
				}
			})
		}
	})
	t.Run("shapes", func(t *testing.T) {
		c := g.client(true)
		url := g.url(done, "/")
		resp, body := get(t, c, url, "Accept", "text/html,application/xhtml+xml,*/*;q=0.8")
		if !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/html") || !strings.Contains(body, "<h1>Sandbox ended</h1>") {
			t.Errorf("page: %q %q", resp.Header.Get("Content-Type"), body)
		}
		var got struct {
			Error struct{ Reason, Code, Message string }
		}
		_, body = get(t, c, url, "Accept", "application/json")
		if err := json.Unmarshal([]byte(body), &got); err != nil || got.Error.Reason != ReasonEnded || got.Error.Code != "failed_precondition" || got.Error.Message == "" {
			t.Errorf("JSON: %v %q", err, body)
		}
		req, _ := http.NewRequestWithContext(t.Context(), "POST", url, nil)
		req.Header.Set("Content-Type", "application/grpc")
		resp, _ = do(t, c, req)
		if resp.StatusCode != 200 || resp.Header.Get("Grpc-Status")+resp.Trailer.Get("Grpc-Status") != "9" {
			t.Errorf("gRPC: %d %v %v", resp.StatusCode, resp.Header, resp.Trailer)
		}
		wantReason(t, resp, 200, ReasonEnded)
	})
	t.Run("markup in a host is harmless", func(t *testing.T) {
		conn := g.tls("x.sandbox.test", "http/1.1")
		_, _ = fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: <script>\r\nAccept: text/html\r\n\r\n")
		raw, _ := io.ReadAll(io.LimitReader(conn, 4096))
		if strings.Contains(string(raw), "<script>") {
			t.Errorf("%s", raw)
		}
	})
}

func TestAppThatBreaksOff(t *testing.T) {
	g := newRig(t, Config{})
	a := g.agent()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = c.Close() }()
				req, err := http.ReadRequest(bufio.NewReader(c))
				if err != nil {
					return
				}
				switch req.URL.Path {
				case "/garbage":
					_, _ = io.WriteString(c, "SSH-2.0-x\r\n")
				case "/half":
					_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
				}
			}()
		}
	}()
	sb := g.accept(&siroccov1.Port{Port: 8000})
	a.listen(sb.GetId(), 8000, l.Addr().String())
	g.placed(sb, a)
	both(t, func(t *testing.T, h2 bool) {
		c := g.client(h2)
		for _, path := range []string{"/close", "/garbage"} {
			resp, _ := get(t, c, g.url(sb, path))
			wantReason(t, resp, 502, ReasonAppBroke)
		}
		req, _ := http.NewRequestWithContext(t.Context(), "GET", g.url(sb, "/half"), nil)
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		if _, err := io.ReadAll(resp.Body); err == nil {
			t.Error("a body that was cut off looks whole")
		}
	})
	resp, _ := get(t, g.client(false), g.url(sb, "/garbage"), "Connection", "Upgrade", "Upgrade", "websocket")
	wantReason(t, resp, 502, ReasonAppBroke)
}

func TestTunnelToken(t *testing.T) {
	g := newRig(t, Config{})
	a := g.agent()
	sb := g.app(a, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintf(w, "%s|%s|%s", r.Header.Get("Authorization"), r.Header.Get(HeaderTunnelToken), r.Header.Get("Cookie"))
	}))
	sb = g.known(g.swap(sb, func(sb *siroccov1.Sandbox) { sb.Spec.Ports[0].BearerToken = tunnel.HashToken("s3cret") }))
	hash := sb.GetSpec().GetPorts()[0].GetBearerToken()
	both(t, func(t *testing.T, h2 bool) {
		c := g.client(h2)
		for name, header := range map[string][]string{
			"none": nil, "wrong": {"Authorization", "Bearer x"}, "empty": {"Authorization", "Bearer "}, "basic": {"Authorization", "Basic s3cret"},
			"the hash": {"Authorization", "Bearer " + hash}, "wrong cookie": {"Cookie", CookieTunnelToken + "=x"},
		} {
			resp, _ := get(t, c, g.url(sb, "/"), header...)
			if wantReason(t, resp, 401, ReasonUnauthorized); resp.Header.Get("Www-Authenticate") == "" {
				t.Errorf("%s: no WWW-Authenticate", name)
			}
		}
		for name, row := range map[string]struct {
			header []string
			seen   string
		}{
			"bearer":          {[]string{"Authorization", "bearer s3cret"}, "||"},
			"header":          {[]string{HeaderTunnelToken, "s3cret", "Authorization", "Bearer app's"}, "Bearer app's||"},
			"cookie":          {[]string{"Cookie", "a=1; " + CookieTunnelToken + "=s3cret; b=2", "Authorization", "Basic x"}, "Basic x||a=1; b=2"},
			"only the cookie": {[]string{"Cookie", CookieTunnelToken + "=s3cret"}, "||"},
		} {
			resp, body := get(t, c, g.url(sb, "/"), row.header...)
			if resp.StatusCode != 200 || body != row.seen {
				t.Errorf("%s: %d, the app saw %q, want %q", name, resp.StatusCode, body, row.seen)
			}
		}
	})
	// Without the token nobody learns whether the sandbox still lives.
	g.known(g.step(sb, lifecycle.Finish{Epoch: 1}))
	resp, _ := get(t, g.client(true), g.url(sb, "/"))
	wantReason(t, resp, 401, ReasonUnauthorized)
	// A token is no way round for protocols that carry none.
	if _, f := decide(sb, want{id: sb.GetId(), port: 8000, protocol: https}); f == nil || f.reason != ReasonUnauthorized {
		t.Errorf("decide without a token: %v", f)
	}
}

// What one reader takes for one request and another for two must not pass.
func TestSmuggling(t *testing.T) {
	g := newRig(t, Config{})
	paths := make(chan string, 100)
	sb := g.app(g.agent(), http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		paths <- r.URL.Path
	}))
	host := g.front.Host(8000, sb.GetId())
	for name, raw := range map[string]string{
		"both lengths": "POST /a HTTP/1.1\r\nHost: H\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: H\r\n\r\n",
		"two lengths":  "POST /a HTTP/1.1\r\nHost: H\r\nContent-Length: 0\r\nContent-Length: 40\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: H\r\n\r\n",
		"odd encoding": "POST /a HTTP/1.1\r\nHost: H\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: H\r\n\r\n",
		"space before": "POST /a HTTP/1.1\r\nHost: H\r\nContent-Length : 40\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: H\r\n\r\n",
		"two hosts":    "GET /smuggled HTTP/1.1\r\nHost: H\r\nHost: x\r\n\r\n",
		"h2c":          "GET /a HTTP/1.1\r\nHost: H\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n",
		"connect":      "CONNECT H:443 HTTP/1.1\r\nHost: H\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			conn := g.tls(host, "http/1.1")
			_, _ = io.WriteString(conn, strings.ReplaceAll(raw, "H\r\n", host+"\r\n"))
			_ = conn.CloseWrite()
			_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
			answers, _ := io.ReadAll(conn)
			if strings.Contains(string(answers), "101 ") {
				t.Errorf("answers: %s", answers)
			}
			for {
				select {
				case p := <-paths:
					if strings.Contains(p, "smuggled") && name != "both lengths" {
						t.Errorf("the app saw %s; answers: %s", p, answers)
					}
					continue
				default:
				}
				break
			}
		})
	}
}

func TestHugeHeadersAndSlowClients(t *testing.T) {
	g := newRig(t, Config{HeaderTimeout: 300 * time.Millisecond, MaxHeaderBytes: 16 << 10, IdleTimeout: 300 * time.Millisecond})
	sb := g.app(g.agent(), http.HandlerFunc(hello))
	resp, _ := get(t, g.client(false), g.url(sb, "/"), "X-Big", strings.Repeat("x", 100<<10))
	if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("a header of 100 KiB: %d", resp.StatusCode)
	}
	host := g.front.Host(8000, sb.GetId())
	slow := map[string]func() net.Conn{
		"no hello": func() net.Conn {
			c, err := g.dial(t.Context(), "", "")
			if err != nil {
				t.Fatal(err)
			}
			_, _ = c.Write([]byte{22, 3, 1})
			return c
		},
		"half a header": func() net.Conn {
			c := g.tls(host, "http/1.1")
			_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost:")
			return c
		},
		"no request":  func() net.Conn { return g.tls(host, "http/1.1") },
		"no h2 frame": func() net.Conn { return g.tls(host, "h2") },
	}
	for name, open := range slow {
		c := open()
		_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
		if _, err := io.Copy(io.Discard, c); err != nil && strings.Contains(err.Error(), "timeout") {
			t.Errorf("%s: still open: %v", name, err)
		}
		_ = c.Close()
	}
}

func TestConnectionCaps(t *testing.T) {
	g := newRig(t, Config{MaxConnsPerIP: 3})
	sb := g.app(g.agent(), http.HandlerFunc(hello))
	host := g.front.Host(8000, sb.GetId())
	for range 3 {
		g.tls(host)
	}
	c, err := g.dial(t.Context(), "", "")
	if err != nil {
		return // reset before the dial had returned
	}
	defer func() { _ = c.Close() }()
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("a fourth connection was served")
	}
}
