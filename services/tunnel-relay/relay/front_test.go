package relay

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/tunnel"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

func echoSocket(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/no" {
		w.Header().Set("X-Why", "because")
		http.Error(w, "no sockets here", http.StatusForbidden)
		return
	}
	c, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{"echo"}, InsecureSkipVerify: true})
	if err != nil {
		return
	}
	defer func() { _ = c.CloseNow() }()
	c.SetReadLimit(16 << 20)
	for {
		kind, data, err := c.Read(r.Context())
		if err != nil {
			return
		}
		if string(data) == "bye" {
			_ = c.Close(4001, "bye")
			return
		}
		if err := c.Write(r.Context(), kind, data); err != nil {
			return
		}
	}
}

func (g *rig) websocket(sb *siroccov1.Sandbox, path string) (*websocket.Conn, *http.Response, error) {
	ctx, cancel := context.WithTimeout(g.t.Context(), 30*time.Second)
	defer cancel()
	return websocket.Dial(ctx, "wss"+strings.TrimPrefix(g.url(sb, path), "https"), &websocket.DialOptions{
		HTTPClient: g.client(false), Subprotocols: []string{"echo"},
	})
}

func TestWebSocket(t *testing.T) {
	g := newRig(t, Config{})
	sb := g.app(g.agent(), http.HandlerFunc(echoSocket))
	c, resp, err := g.websocket(sb, "/")
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != 101 || c.Subprotocol() != "echo" {
		t.Errorf("%d, subprotocol %q", resp.StatusCode, c.Subprotocol())
	}
	c.SetReadLimit(16 << 20)
	for _, size := range []int{0, 1, 1000, 1024, 1025, 70_000, 3 << 20} {
		want := bytes.Repeat([]byte("x"), size)
		if err := c.Write(t.Context(), websocket.MessageBinary, want); err != nil {
			t.Fatal(err)
		}
		if _, got, err := c.Read(t.Context()); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%d bytes: got %d, %v", size, len(got), err)
		}
	}
	_ = c.Write(t.Context(), websocket.MessageText, []byte("bye"))
	if _, _, err := c.Read(t.Context()); websocket.CloseStatus(err) != 4001 {
		t.Errorf("close: %v", err)
	}
	eventually(t, "both connections are closed", func() bool { return g.relay.gate.len() == 0 && g.relay.router.conns.count.Load() == 0 })
	_, resp, err = g.websocket(sb, "/no")
	if err == nil || resp.StatusCode != http.StatusForbidden || resp.Header.Get("X-Why") != "because" {
		t.Errorf("declined: %v, %v", resp, err)
	}
}

// Bytes that come right behind the request, or the answer, are not lost.
func TestUpgradeKeepsEarlyBytes(t *testing.T) {
	g := newRig(t, Config{})
	a := g.agent()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer func() { _ = c.Close() }()
		br := bufio.NewReader(c)
		if _, err := http.ReadRequest(br); err != nil {
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nX-App: 1\r\n\r\nfirst")
		rest, _ := io.ReadAll(br)
		_, _ = fmt.Fprintf(c, "|%s", rest)
	}()
	sb := g.accept(&siroccov1.Port{Port: 8000})
	a.listen(sb.GetId(), 8000, l.Addr().String())
	g.placed(sb, a)
	host := g.front.Host(8000, sb.GetId())
	conn := g.tls(host, "http/1.1")
	_, _ = fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\nearly", host)
	br := bufio.NewReader(conn)
	resp, err := http.ReadResponse(br, nil)
	if err != nil || resp.StatusCode != 101 || resp.Header.Get("X-App") != "1" {
		t.Fatalf("%v %v", resp, err)
	}
	_, _ = io.WriteString(conn, " and late")
	_ = conn.CloseWrite()
	if got, err := io.ReadAll(br); string(got) != "first|early and late" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}

// A client that comes again need not pay for a whole handshake.
func TestSessionsResume(t *testing.T) {
	g := newRig(t, Config{})
	sb := g.app(g.agent(), http.HandlerFunc(hello))
	client := g.client(false)
	tr := client.Transport.(*http.Transport)
	tr.TLSClientConfig.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	for i := range 2 {
		resp, _ := get(t, client, g.url(sb, "/"))
		if resp.TLS.DidResume != (i > 0) {
			t.Errorf("connection %d: resumed is %v", i, resp.TLS.DidResume)
		}
		tr.CloseIdleConnections()
	}
}

func TestPassthrough(t *testing.T) {
	g := newRig(t, Config{StartWait: 50 * time.Millisecond, ListenGrace: 20 * time.Millisecond})
	a := g.agent()
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.TLS.ServerName)
	}))
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(server.Close)
	sb := g.accept(&siroccov1.Port{Port: 8443, Protocol: passthrough}, &siroccov1.Port{Port: 9, Protocol: passthrough})
	a.listen(sb.GetId(), 8443, server.Listener.Addr().String())
	sb = g.placed(sb, a)
	name := g.front.Host(8443, sb.GetId())
	tr := &http.Transport{DialContext: g.dial, ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}} //nolint:gosec // the certificate is looked at below
	t.Cleanup(tr.CloseIdleConnections)
	resp, body := get(t, &http.Client{Transport: tr}, "https://"+name+"/")
	if body != name || resp.ProtoMajor != 2 {
		t.Errorf("%q over %s", body, resp.Proto)
	}
	if got := resp.TLS.PeerCertificates[0]; !bytes.Equal(got.Raw, server.Certificate().Raw) {
		t.Errorf("the certificate is %v's, not the sandbox's", got.Subject)
	}
	// A ClientHello that comes in small pieces, and one larger than a record.
	raw, err := g.dial(t.Context(), "", "")
	if err != nil {
		t.Fatal(err)
	}
	protos := make([]string, 3000)
	for i := range protos {
		protos[i] = "proto-" + strconv.Itoa(i)
	}
	conn := tls.Client(&dripConn{Conn: raw}, &tls.Config{InsecureSkipVerify: true, ServerName: name, NextProtos: append(protos, "http/1.1")}) //nolint:gosec // as above
	if err := conn.HandshakeContext(t.Context()); err != nil {
		t.Errorf("a large hello in pieces: %v", err)
	}
	_ = conn.Close()
	// What can't be served says so before anybody speaks TLS.
	bad := tls.Client(must(g.dial(t.Context(), "", "")), &tls.Config{InsecureSkipVerify: true, ServerName: g.front.Host(9, sb.GetId())}) //nolint:gosec // as above
	if err := bad.HandshakeContext(t.Context()); err == nil || err.Error() != "remote error: tls: internal error" {
		t.Errorf("nothing listens: %v", err)
	}
	_ = bad.Close()
	g.known(g.step(sb, lifecycle.Finish{Epoch: 1}))
	bad = tls.Client(must(g.dial(t.Context(), "", "")), &tls.Config{InsecureSkipVerify: true, ServerName: name}) //nolint:gosec // as above
	if err := bad.HandshakeContext(t.Context()); err == nil || err.Error() != "remote error: tls: unrecognized name" {
		t.Errorf("ended: %v", err)
	}
	_ = bad.Close()
}

func must(c net.Conn, err error) net.Conn {
	if err != nil {
		panic(err)
	}
	return c
}

// dripConn writes in pieces of 100 bytes.
type dripConn struct{ net.Conn }

func (c *dripConn) Write(b []byte) (int, error) {
	for n := 0; n < len(b); n += 100 {
		if _, err := c.Conn.Write(b[n:min(n+100, len(b))]); err != nil {
			return n, err
		}
	}
	return len(b), nil
}

func (g *rig) rawPort(sb *siroccov1.Sandbox) string {
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(int(tunnel.PublicPort(sb.GetTunnels()[0]))))
}

// tcpApp serves each connection with f on port 5432 of a new sandbox.
func (g *rig) tcpApp(a *agent, f func(*net.TCPConn)) *siroccov1.Sandbox {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go f(c.(*net.TCPConn))
		}
	}()
	sb := g.accept(&siroccov1.Port{Port: 5432, Protocol: rawTCP})
	a.listen(sb.GetId(), 5432, l.Addr().String())
	return g.placed(sb, a)
}

func (g *rig) dialRaw(sb *siroccov1.Sandbox) *net.TCPConn {
	g.t.Helper()
	var conn net.Conn
	eventually(g.t, "the public port is open", func() bool {
		var err error
		conn, err = net.Dial("tcp", g.rawPort(sb))
		return err == nil
	})
	g.t.Cleanup(func() { _ = conn.Close() })
	return conn.(*net.TCPConn)
}

func TestRawTCP(t *testing.T) {
	g := newRig(t, Config{ListenGrace: 20 * time.Millisecond})
	a := g.agent()
	t.Run("the client ends first", func(t *testing.T) {
		sb := g.tcpApp(a, func(c *net.TCPConn) {
			body, _ := io.ReadAll(c)
			_, _ = c.Write(bytes.ToUpper(body))
			_ = c.Close()
		})
		c := g.dialRaw(sb)
		_, _ = io.WriteString(c, "hello")
		_ = c.CloseWrite()
		if got, err := io.ReadAll(c); string(got) != "HELLO" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
	})
	t.Run("the app ends first", func(t *testing.T) {
		got := make(chan string, 1)
		sb := g.tcpApp(a, func(c *net.TCPConn) {
			_, _ = io.WriteString(c, "banner")
			_ = c.CloseWrite()
			body, _ := io.ReadAll(c)
			got <- string(body)
			_ = c.Close()
		})
		c := g.dialRaw(sb)
		if b, err := io.ReadAll(c); string(b) != "banner" || err != nil {
			t.Fatalf("%q, %v", b, err)
		}
		_, _ = io.WriteString(c, "late answer")
		_ = c.Close()
		if s := <-got; s != "late answer" {
			t.Errorf("the app read %q", s)
		}
	})
	t.Run("a client's reset reaches the app", func(t *testing.T) {
		ended := make(chan error, 1)
		sb := g.tcpApp(a, func(c *net.TCPConn) {
			_, _ = io.WriteString(c, "x")
			for {
				if _, err := c.Write(make([]byte, 1000)); err != nil {
					ended <- err
					return
				}
			}
		})
		c := g.dialRaw(sb)
		_, _ = io.ReadFull(c, make([]byte, 10))
		_ = c.SetLinger(0)
		_ = c.Close()
		if err := <-ended; err == nil {
			t.Error("no error")
		}
	})
	t.Run("the port closes with the sandbox and changes hands", func(t *testing.T) {
		sb := g.tcpApp(a, func(c *net.TCPConn) { _, _ = io.WriteString(c, "one"); _ = c.Close() })
		if b, _ := io.ReadAll(g.dialRaw(sb)); string(b) != "one" {
			t.Errorf("%q", b)
		}
		g.step(sb, lifecycle.Finish{Epoch: 1})
		eventually(t, "the public port is closed", func() bool {
			c, err := net.Dial("tcp", g.rawPort(sb))
			if err == nil {
				_ = c.Close()
			}
			return errors.Is(err, syscall.ECONNREFUSED)
		})
		next := g.tcpApp(a, func(c *net.TCPConn) { _, _ = io.WriteString(c, "two"); _ = c.Close() })
		next = g.swap(next, func(n *siroccov1.Sandbox) { n.Tunnels = sb.GetTunnels() })
		if b, _ := io.ReadAll(g.dialRaw(next)); string(b) != "two" {
			t.Errorf("%q", b)
		}
	})
	t.Run("a port in use is tried again", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		sb := g.tcpApp(a, func(c *net.TCPConn) { _, _ = io.WriteString(c, "mine"); _ = c.Close() })
		public := uint16(l.Addr().(*net.TCPAddr).Port)
		sb = g.known(g.swap(sb, func(n *siroccov1.Sandbox) {
			n.Tunnels[0] = g.front.Tunnel(n.GetId(), n.GetSpec().GetPorts()[0], public)
		}))
		_ = l.Close()
		if b, _ := io.ReadAll(g.dialRaw(sb)); string(b) != "mine" {
			t.Errorf("%q", b)
		}
	})
	t.Run("nothing listens", func(t *testing.T) {
		sb := g.tcpApp(a, func(*net.TCPConn) {})
		a.listen(sb.GetId(), 5432, "")
		if _, err := io.ReadAll(g.dialRaw(sb)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("want a reset, not %v", err)
		}
	})
}

func TestPortSetFollowsChanges(t *testing.T) {
	s := newPortSet("127.0.0.1", tunnel.Front{TCPHost: "h"}, nil, nil)
	sb := func(id string, state siroccov1.State, port int) *siroccov1.Sandbox {
		return &siroccov1.Sandbox{Id: id, State: state, Tunnels: []*siroccov1.Tunnel{{Port: 1, Protocol: rawTCP, Url: fmt.Sprintf("tcp://h:%d", port)}}}
	}
	run, done := siroccov1.State_STATE_RUNNING, siroccov1.State_STATE_STOPPED
	one, two := sb("one", run, 7), sb("two", run, 7)
	s.changed(nil, one)
	s.changed(nil, two)                // the port went on before the end of one was seen
	s.changed(one, sb("one", done, 7)) // which must not close it
	if s.wanted[7].id != "two" {
		t.Errorf("port 7 leads to %q", s.wanted[7].id)
	}
	// One that has come from another region has its port there, not here.
	moved := sb("three", run, 7)
	moved.Tunnels[0].Url = "tcp://elsewhere:7"
	s.changed(nil, moved)
	if s.wanted[7].id != "two" {
		t.Errorf("port 7 leads to %q", s.wanted[7].id)
	}
	s.changed(two, nil)
	if len(s.wanted) != 0 {
		t.Errorf("left: %v", s.wanted)
	}
}
