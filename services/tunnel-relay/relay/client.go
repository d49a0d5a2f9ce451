package relay

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// gate bounds the clients' connections, over all and for each address, and
// knows them, so that those left over at the end of a drain can be closed.
type gate struct {
	max, maxPerIP int
	stall         time.Duration
	meters        *meters

	mu    sync.Mutex
	perIP map[netip.Addr]int
	conns map[*clientConn]struct{}
}

func newGate(cfg Config, m *meters) *gate {
	return &gate{
		max: cfg.MaxConns, maxPerIP: cfg.MaxConnsPerIP, stall: cfg.StallTimeout, meters: m,
		perIP: map[netip.Addr]int{}, conns: map[*clientConn]struct{}{},
	}
}

func (g *gate) len() int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return int64(len(g.conns))
}

// admit takes a connection in, or closes it and returns nil when there are too
// many.
func (g *gate) admit(conn net.Conn) *clientConn {
	c := &clientConn{Conn: conn, gate: g, ip: addrOf(conn)}
	g.mu.Lock()
	ok := len(g.conns) < g.max && g.perIP[c.ip] < g.maxPerIP
	if ok {
		g.perIP[c.ip]++
		g.conns[c] = struct{}{}
	}
	g.mu.Unlock()
	if !ok {
		if tc, is := conn.(*net.TCPConn); is {
			_ = tc.SetLinger(0) // a flood must not leave sockets behind
		}
		_ = conn.Close()
		return nil
	}
	return c
}

func (g *gate) closeAll() {
	g.mu.Lock()
	left := make([]*clientConn, 0, len(g.conns))
	for c := range g.conns {
		left = append(left, c)
	}
	g.mu.Unlock()
	for _, c := range left {
		_ = c.Close()
	}
}

func addrOf(conn net.Conn) netip.Addr {
	ap, err := netip.ParseAddrPort(conn.RemoteAddr().String())
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap()
}

// clientConn is a client's connection: counted, and closed when the client
// takes nothing for too long.
type clientConn struct {
	net.Conn
	gate *gate
	ip   netip.Addr
	once sync.Once
	// stallSet is when the write deadline was last moved, in Unix nanoseconds.
	stallSet atomic.Int64
}

// NetConn returns the connection below.
func (c *clientConn) NetConn() net.Conn { return c.Conn }

func (c *clientConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.gate.meters.in.Add(int64(n))
	return n, err
}

func (c *clientConn) Write(b []byte) (int, error) {
	// Moved seldom: the deadline is a bound on stalling, not a clock.
	if now := time.Now(); now.UnixNano()-c.stallSet.Load() > int64(c.gate.stall/8) {
		c.stallSet.Store(now.UnixNano())
		_ = c.SetWriteDeadline(now.Add(c.gate.stall))
	}
	n, err := c.Conn.Write(b)
	c.gate.meters.out.Add(int64(n))
	return n, err
}

// SetDeadline sets the read deadline, and lifts the write deadline only until
// the next write.
func (c *clientConn) SetDeadline(t time.Time) error {
	c.stallSet.Store(0)
	return c.Conn.SetDeadline(t)
}

// CloseWrite ends the direction to the client.
func (c *clientConn) CloseWrite() error {
	if tc, ok := c.Conn.(*net.TCPConn); ok {
		return tc.CloseWrite()
	}
	return c.Close()
}

// Close closes the connection. It may be called more than once.
func (c *clientConn) Close() error {
	c.once.Do(func() {
		g := c.gate
		g.mu.Lock()
		delete(g.conns, c)
		if g.perIP[c.ip]--; g.perIP[c.ip] <= 0 {
			delete(g.perIP, c.ip)
		}
		g.mu.Unlock()
	})
	return c.Conn.Close()
}
