package link

import (
	"context"
	"crypto/tls"
	"net"

	"github.com/sirocco-run/sirocco/pkg/cork"
)

// corkConn is the TCP connection below TLS.
type corkConn struct {
	net.Conn
	out *cork.Writer
}

// Write sends, or gathers.
func (c *corkConn) Write(b []byte) (int, error) { return c.out.Write(b) }

// secureConn is a TLS connection that sends each message in one system call.
// Only one goroutine may write, which is how the mux works.
type secureConn struct {
	*tls.Conn
	below *corkConn
}

// Write sends one message.
func (c *secureConn) Write(b []byte) (int, error) {
	if len(b) <= cork.Record {
		return c.Conn.Write(b)
	}
	return c.below.out.Gather(func() (int, error) { return c.Conn.Write(b) })
}

// secure shakes hands over a TCP connection, which it closes on failure.
func secure(ctx context.Context, conn net.Conn, cfg *tls.Config, end func(net.Conn, *tls.Config) *tls.Conn) (net.Conn, error) {
	below := &corkConn{Conn: conn, out: cork.New(conn)}
	c := &secureConn{Conn: end(below, cfg), below: below}
	if err := c.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return c, nil
}

// isBulk says whether both ends agreed on that.
func isBulk(conn net.Conn) bool {
	c, ok := conn.(*secureConn)
	return ok && c.ConnectionState().NegotiatedProtocol == bulkProtocol
}
