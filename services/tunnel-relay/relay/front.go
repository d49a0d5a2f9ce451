package relay

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"github.com/sirocco-run/sirocco/pkg/cork"
	"github.com/sirocco-run/sirocco/pkg/sandboxid"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

// issueTimeout is how long an ACME authority may take for a certificate.
const issueTimeout = time.Minute

// errPassthrough stops the TLS server at the ClientHello, before it answers.
var errPassthrough = errors.New("relay: the sandbox speaks TLS itself")

// helloConn keeps what a client sends until the server name is known. Then it
// is either a plain connection again (TLS ends here) or gives back every byte
// (TLS passes through), having sent none.
//
// It is used by one goroutine until the handshake is over.
type helloConn struct {
	*clientConn
	out     *cork.Writer
	name    string // the server name, once it is known
	hello   bytes.Buffer
	decided bool
	passing bool
}

func newHelloConn(c *clientConn) *helloConn { return &helloConn{clientConn: c, out: cork.New(c)} }

func (c *helloConn) Read(b []byte) (int, error) {
	n, err := c.clientConn.Read(b)
	if !c.decided {
		c.hello.Write(b[:n])
	}
	return n, err
}

// Write drops what TLS wants to say (an alert) to a client that is passed on.
func (c *helloConn) Write(b []byte) (int, error) {
	if c.passing {
		return len(b), nil
	}
	return c.out.Write(b)
}

// terminate forgets the bytes: the handshake goes on here.
func (c *helloConn) terminate() {
	c.decided = true
	c.hello = bytes.Buffer{}
}

func (c *helloConn) pass() { c.decided, c.passing = true, true }

// accept takes connections from listener until it is closed; each is served in
// its own goroutine.
func (r *Relay) accept(ctx context.Context, listener net.Listener, serve func(*clientConn)) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			r.log.Warn("accept", "listener", listener.Addr().String(), "err", err)
			select {
			case <-time.After(50 * time.Millisecond): // out of descriptors: others must end first
			case <-ctx.Done():
			}
			continue
		}
		if c := r.gate.admit(conn); c != nil {
			if !r.clients.run(func() { serve(c) }) {
				_ = c.Close()
			}
		}
	}
}

// serveTLS shakes hands, or passes the connection on untouched.
func (r *Relay) serveTLS(c *clientConn) {
	hello := newHelloConn(c)
	limit := r.cfg.HeaderTimeout
	if r.cfg.ACME {
		// The first handshake of a name waits for its certificate; the hello
		// itself must come as soon as any.
		limit += issueTimeout
		_ = c.SetReadDeadline(time.Now().Add(r.cfg.HeaderTimeout))
	}
	ctx, cancel := context.WithTimeout(r.streams, limit)
	defer cancel()
	conn := tls.Server(hello, r.tlsConfig)
	err := conn.HandshakeContext(ctx)
	switch {
	case errors.Is(err, errPassthrough):
		r.servePassthrough(hello)
	case err != nil:
		r.log.Debug("TLS handshake", "client", c.RemoteAddr().String(), "server_name", clip(hello.name), "err", err)
		_ = c.Close()
	default:
		r.https.hand(conn)
	}
}

// decide is tls.Config.GetConfigForClient: it says, once the server name is
// known, whether TLS ends here. All connections share one config, or no session
// of one could be resumed by the next.
func (r *Relay) decide(h *tls.ClientHelloInfo) (*tls.Config, error) {
	c := h.Conn.(*helloConn) //nolint:errcheck // serveTLS makes nothing else
	c.name = h.ServerName
	if r.cfg.ACME {
		_ = c.SetReadDeadline(time.Time{})
	}
	if r.passes(h.Context(), c.name) {
		c.pass()
		return nil, errPassthrough
	}
	c.terminate()
	return nil, nil
}

// passes says whether a server name belongs to a port whose TLS is not ended
// here.
func (r *Relay) passes(ctx context.Context, name string) bool {
	port, id, err := r.env.Front.ParseHost(name)
	if err != nil {
		return false
	}
	sb, _ := r.router.find(ctx, id)
	return published(sb, port, siroccov1.Protocol_PROTOCOL_TLS_PASSTHROUGH).GetProtocol() == siroccov1.Protocol_PROTOCOL_TLS_PASSTHROUGH
}

// TLS alerts (RFC 8446, section 6), for clients that are refused before anybody
// speaks TLS with them.
var (
	alertUnrecognizedName = []byte{21, 3, 3, 0, 2, 2, 112}
	alertInternalError    = []byte{21, 3, 3, 0, 2, 2, 80}
)

func (r *Relay) servePassthrough(c *helloConn) {
	ctx, span, trace := r.startSpan(r.streams, "relay.passthrough")
	defer span.End()
	port, id, _ := r.env.Front.ParseHost(c.name)
	app, f := r.router.connect(ctx, want{id: id, port: port, protocol: siroccov1.Protocol_PROTOCOL_TLS_PASSTHROUGH}, c.RemoteAddr().String(), trace)
	if f != nil {
		r.refused(ctx, kindPassthrough, id, f)
		alert := alertInternalError
		if f.status < 500 {
			alert = alertUnrecognizedName
		}
		_, _ = c.clientConn.Write(alert)
		_ = c.Close()
		return
	}
	r.meters.answered(ctx, kindPassthrough, 0)
	hello := c.hello.Bytes()
	c.hello = bytes.Buffer{}
	if _, err := app.Write(hello); err != nil {
		_ = c.Close()
		_ = app.Close()
		return
	}
	splice(c.clientConn, app, app, 0)
}

// serveRaw carries one connection to a public TCP port.
func (r *Relay) serveRaw(c *clientConn, id string, port uint16) {
	ctx, span, trace := r.startSpan(r.streams, "relay.tcp")
	defer span.End()
	app, f := r.router.connect(ctx, want{id: id, port: port, protocol: siroccov1.Protocol_PROTOCOL_TCP}, c.RemoteAddr().String(), trace)
	if f != nil {
		r.refused(ctx, kindTCP, id, f)
		if tc, ok := underTCP(c); ok {
			_ = tc.SetLinger(0)
		}
		_ = c.Close()
		return
	}
	r.meters.answered(ctx, kindTCP, 0)
	splice(c, app, app, 0)
}

// handoff is a listener that is given its connections.
type handoff struct {
	addr  net.Addr
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newHandoff(addr net.Addr) *handoff {
	return &handoff{addr: addr, conns: make(chan net.Conn), done: make(chan struct{})}
}

func (h *handoff) hand(c net.Conn) {
	select {
	case h.conns <- c:
	case <-h.done:
		_ = c.Close()
	}
}

// Accept returns the next connection.
func (h *handoff) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.done:
		return nil, net.ErrClosed
	}
}

// Close ends Accept; it closes no connection.
func (h *handoff) Close() error {
	h.once.Do(func() { close(h.done) })
	return nil
}

// Addr is the address of the listener that the connections come from.
func (h *handoff) Addr() net.Addr { return h.addr }

var (
	_ halfConn     = (*tls.Conn)(nil)
	_ halfConn     = (*clientConn)(nil)
	_ io.Writer    = (*helloConn)(nil)
	_ net.Listener = (*handoff)(nil)
)

// validName says cheaply whether a server name can be one of ours; used before
// anything is looked up or asked for it.
func (r *Relay) validName(name string) (id string, ok bool) {
	if name == r.env.Front.DataHost() {
		return "", true
	}
	_, id, err := r.env.Front.ParseHost(name)
	return id, err == nil && sandboxid.Valid(id)
}
