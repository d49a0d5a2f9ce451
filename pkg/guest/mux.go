package guest

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"time"

	"github.com/hashicorp/yamux"
)

// errGuestOpens: a guest opened a stream or pinged, which no supervisor does.
var errGuestOpens = errors.New("guest: stream or ping opened by the guest")

// Parts of a yamux header: version(1) type(1) flags(2) stream(4) length(4).
const (
	muxHeader   = 12
	muxData     = 0
	muxGoAway   = 3
	muxSYN      = 1
	muxCloseFor = 30 * time.Second
)

func muxConfig() *yamux.Config {
	c := yamux.DefaultConfig()
	c.EnableKeepAlive = false
	c.LogOutput = io.Discard
	// How long a write may be stuck in the connection itself. It is also how
	// long a call on a client may outlast its context.
	c.ConnectionWriteTimeout = 10 * time.Second
	c.StreamOpenTimeout = muxCloseFor
	c.StreamCloseTimeout = muxCloseFor
	return c
}

// joiner sends the header and the body of a yamux frame in one write. Only one
// goroutine writes.
type joiner struct {
	net.Conn
	pending []byte
}

func (j *joiner) Write(p []byte) (int, error) {
	if len(j.pending) == 0 {
		if len(p) == muxHeader && p[1] == muxData && binary.BigEndian.Uint32(p[8:]) > 0 {
			j.pending = append(j.pending, p...)
			return len(p), nil
		}
		return j.Conn.Write(p)
	}
	j.pending = append(j.pending, p...)
	_, err := j.Conn.Write(j.pending)
	j.pending = j.pending[:0]
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// guard reads from a guest and ends the connection when it would make the
// client's yamux work for it: each ping costs a goroutine there, each stream
// that a guest opens is kept.
type guard struct {
	joiner
	head [muxHeader]byte
	have int
	skip uint64
}

func (g *guard) Read(p []byte) (int, error) {
	n, err := g.Conn.Read(p)
	if bad := g.inspect(p[:n]); bad != nil {
		_ = g.Close()
		return 0, bad
	}
	return n, err
}

func (g *guard) inspect(p []byte) error {
	for len(p) > 0 {
		if g.skip > 0 {
			k := min(g.skip, uint64(len(p)))
			g.skip -= k
			p = p[k:]
			continue
		}
		k := copy(g.head[g.have:], p)
		g.have += k
		p = p[k:]
		if g.have < muxHeader {
			return nil
		}
		g.have = 0
		if binary.BigEndian.Uint16(g.head[2:])&muxSYN != 0 || g.head[1] > muxGoAway {
			return errGuestOpens
		}
		if g.head[1] == muxData {
			g.skip = uint64(binary.BigEndian.Uint32(g.head[8:]))
		}
	}
	return nil
}
