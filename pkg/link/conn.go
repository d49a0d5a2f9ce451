package link

import (
	"net"

	"github.com/libp2p/go-yamux/v5"
)

// Conn is one stream. It is safe to read, write and close it from different
// goroutines.
type Conn struct{ *yamux.Stream }

// CloseWrite ends the writing direction: the other side reads to the end of
// what was written. Reading goes on.
func (c *Conn) CloseWrite() error { return c.Stream.CloseWrite() }

// Close ends both directions. What was written still reaches the peer; what
// the peer writes from now on fails there.
func (c *Conn) Close() error {
	err := c.Stream.CloseWrite()
	// A peer that has been told of the end keeps what it received before; the
	// reset then only stops its writing. It is a no-op once both have ended.
	_ = c.Stream.Reset()
	return err
}

var _ net.Conn = (*Conn)(nil)
