package link

import (
	"context"
	"crypto/tls"
	"net"
	"sync"
)

// tlsRecord is the most that one TLS record carries; tls.Conn makes one system
// call of each.
const tlsRecord = 16 << 10

var corkBuffers = sync.Pool{New: func() any { b := make([]byte, 0, 72<<10); return &b }}

// corkConn is the TCP connection below TLS. While it is corked it gathers the
// records of one message, which then leave in one system call.
type corkConn struct {
	net.Conn
	mu     sync.Mutex
	corked *[]byte // nil when not
}

// Write sends, or gathers.
func (c *corkConn) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.corked != nil {
		*c.corked = append(*c.corked, b...)
		return len(b), nil
	}
	return c.Conn.Write(b)
}

func (c *corkConn) cork() {
	buf := corkBuffers.Get().(*[]byte) //nolint:errcheck // the pool holds nothing else
	c.mu.Lock()
	c.corked = buf
	c.mu.Unlock()
}

func (c *corkConn) uncork() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	buf := c.corked
	c.corked = nil
	_, err := c.Conn.Write(*buf)
	*buf = (*buf)[:0]
	corkBuffers.Put(buf)
	return err
}

// secureConn is a TLS connection that sends each message in one system call.
// Only one goroutine may write, which is how the mux works.
type secureConn struct {
	*tls.Conn
	below *corkConn
}

// Write sends one message.
func (c *secureConn) Write(b []byte) (int, error) {
	if len(b) <= tlsRecord {
		return c.Conn.Write(b)
	}
	c.below.cork()
	n, err := c.Conn.Write(b)
	if uerr := c.below.uncork(); err == nil && uerr != nil {
		return 0, uerr
	}
	return n, err
}

// secure shakes hands over a TCP connection, which it closes on failure.
func secure(ctx context.Context, conn net.Conn, cfg *tls.Config, end func(net.Conn, *tls.Config) *tls.Conn) (net.Conn, error) {
	below := &corkConn{Conn: conn}
	c := &secureConn{Conn: end(below, cfg), below: below}
	if err := c.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return c, nil
}
