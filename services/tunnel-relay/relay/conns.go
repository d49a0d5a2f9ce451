package relay

import (
	"net"
	"sync"
	"sync/atomic"

	"github.com/sirocco-run/sirocco/pkg/link"
)

// connSet knows every open stream by sandbox, so that those of an old epoch
// are cut as soon as a newer one is known.
type connSet struct {
	mu    sync.Mutex
	byID  map[string]map[*routeConn]struct{}
	count atomic.Int64
}

func newConnSet() *connSet {
	return &connSet{byID: map[string]map[*routeConn]struct{}{}}
}

// routeConn is a stream to one target.
type routeConn struct {
	*link.Conn
	target target
	set    *connSet
	once   sync.Once
}

func (s *connSet) add(t target, conn net.Conn) *routeConn {
	c := &routeConn{Conn: conn.(*link.Conn), target: t, set: s} //nolint:errcheck // Dialer.Open documents the type
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

// cut closes the streams of a sandbox to any epoch older than newest.
func (s *connSet) cut(id string, newest uint64) {
	s.mu.Lock()
	var old []*routeConn
	for c := range s.byID[id] {
		if c.target.epoch < newest {
			old = append(old, c)
		}
	}
	s.mu.Unlock()
	for _, c := range old {
		_ = c.Close()
	}
}
