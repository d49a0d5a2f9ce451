package relay

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"

	"github.com/sirocco-run/sirocco/pkg/link"
)

// connSet knows every open stream by sandbox: those to a placement that is left
// are retired, and parted with once the sandbox has gone.
type connSet struct {
	mu    sync.Mutex
	byID  map[string]map[*routeConn]struct{}
	count atomic.Int64
}

func newConnSet() *connSet {
	return &connSet{byID: map[string]map[*routeConn]struct{}{}}
}

// use says what a stream is for.
type use int

const (
	// useRaw: bytes that the relay does not look into.
	useRaw use = iota
	// useUpgrade: one request that asks for another protocol; raw if it gets it.
	useUpgrade
	// usePool and usePoolH2: requests, as a transport sends them.
	usePool
	usePoolH2
)

// pooled says whether a transport has the stream.
func (u use) pooled() bool { return u >= usePool }

// routeConn is a stream to one target.
type routeConn struct {
	*link.Conn
	target target
	use    use
	set    *connSet
	once   sync.Once
	// parted: the sandbox has gone, see part. why: the agent broke the stream off.
	parted atomic.Bool
	why    atomic.Uint32

	// mu guards how many requests are under way, how many of them have no answer
	// yet, whether there may be more, and whether the stream was closed for want of
	// any.
	mu           sync.Mutex
	users, asked int
	retired, off bool
}

func (s *connSet) add(t target, conn net.Conn, u use) *routeConn {
	c := &routeConn{Conn: conn.(*link.Conn), target: t, use: u, set: s} //nolint:errcheck // Dialer.Open documents the type
	s.mu.Lock()
	m := s.byID[t.id]
	if m == nil {
		m = map[*routeConn]struct{}{}
		s.byID[t.id] = m
	}
	m[c] = struct{}{}
	s.mu.Unlock()
	s.count.Add(1)
	return c
}

// Read reads from the sandbox. To whoever the relay parts the stream from, it
// ends after what was received.
func (c *routeConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err == nil {
		return n, nil
	}
	c.broke(err)
	var late net.Error
	if c.parted.Load() && errors.As(err, &late) && late.Timeout() {
		if n > 0 {
			return n, nil
		}
		return 0, errParted
	}
	return n, err
}

// Write writes to the sandbox. What comes when it has gone is dropped.
func (c *routeConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	if err == nil {
		return n, nil
	}
	c.broke(err)
	if c.parted.Load() && !c.use.pooled() {
		return len(b), nil
	}
	return n, err
}

// CloseWrite ends the direction to the sandbox, if there still is one.
func (c *routeConn) CloseWrite() error {
	if err := c.Conn.CloseWrite(); err != nil && !c.parted.Load() {
		return err
	}
	return nil
}

func (c *routeConn) broke(err error) {
	if why := link.WhyBroken(err); why != link.BrokeUnknown {
		c.why.Store(uint32(why))
	}
}

// lost says whether a request on the stream was cut off because the sandbox has
// gone, or is going.
func (c *routeConn) lost() bool { return c != nil && (c.parted.Load() || c.why.Load() != 0) }

// unheard says whether the last request on the stream has not reached the
// sandbox.
func (c *routeConn) unheard() bool {
	return c != nil && link.Break(c.why.Load()) == link.BrokeUnheard
}

// begin joins a request. When it returns false the stream is closed already:
// nothing of the request can have been sent.
func (c *routeConn) begin() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.users++
	c.asked++
	if c.parted.Load() {
		c.expire()
	}
	return !c.off
}

// answered says that one of the requests has its answer.
func (c *routeConn) answered() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked--
}

// end takes a request off that begin has joined. The last one on a retired stream
// closes it.
func (c *routeConn) end(answered bool) {
	c.mu.Lock()
	c.users--
	if !answered {
		c.asked--
	}
	c.off = c.off || c.retired && c.users == 0
	off := c.off
	c.mu.Unlock()
	if off {
		_ = c.Close()
	}
}

// retire lets no request on the stream that is not under way, and closes it when
// there is none.
func (c *routeConn) retire() {
	c.mu.Lock()
	c.retired = true
	c.off = c.off || c.users == 0
	off := c.off
	c.mu.Unlock()
	if off {
		_ = c.Close()
	}
}

// Close closes the stream. It may be called more than once.
func (c *routeConn) Close() error {
	c.once.Do(func() {
		s := c.set
		s.mu.Lock()
		m := s.byID[c.target.id]
		delete(m, c)
		if len(m) == 0 {
			delete(s.byID, c.target.id)
		}
		s.mu.Unlock()
		s.count.Add(-1)
	})
	return c.Conn.Close()
}

// of returns the streams of a sandbox that fit.
func (s *connSet) of(id string, fits func(*routeConn) bool) []*routeConn {
	s.mu.Lock()
	defer s.mu.Unlock()
	var some []*routeConn
	for c := range s.byID[id] {
		if fits(c) {
			some = append(some, c)
		}
	}
	return some
}

// retire retires the pooled streams that were opened in another phase of the
// sandbox: new requests have a pool of their own (target.host).
func (s *connSet) retire(id string, now phase) {
	for _, c := range s.of(id, func(c *routeConn) bool { return c.use.pooled() && c.target.phase != now }) {
		c.retire()
	}
}

// leave parts with the streams of a sandbox to any epoch older than newest. It
// returns how many there were of those that carry no requests.
func (s *connSet) leave(id string, newest uint64) int {
	raw := 0
	for _, c := range s.of(id, func(c *routeConn) bool { return c.target.epoch < newest }) {
		if !c.use.pooled() {
			raw++
		}
		c.part()
	}
	return raw
}
