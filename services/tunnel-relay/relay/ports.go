package relay

import (
	"context"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/tunnel"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

// owner is whom a public TCP port leads to.
type owner struct {
	id   string
	port uint16
}

// portSet opens one listener for each public port that a living sandbox holds,
// and closes it when the sandbox has ended or gives the port up.
//
// Concurrency: changed is called by the view; run alone opens and closes.
type portSet struct {
	bind  string
	front tunnel.Front
	open  func(ctx context.Context, l net.Listener, o owner)
	warn  func(port uint16, err error)
	retry time.Duration

	mu     sync.Mutex
	wanted map[uint16]owner
	dirty  map[uint16]struct{}
	wake   chan struct{}
}

func newPortSet(bind string, front tunnel.Front, open func(context.Context, net.Listener, owner), warn func(uint16, error)) *portSet {
	return &portSet{
		bind: bind, front: front, open: open, warn: warn, retry: time.Second,
		wanted: map[uint16]owner{}, dirty: map[uint16]struct{}{}, wake: make(chan struct{}, 1),
	}
}

// publicPorts returns the public ports that a record holds now in the region of front.
// A sandbox that has come from another region keeps its address there: here, the same
// port may be another sandbox's.
func publicPorts(sb *siroccov1.Sandbox, front tunnel.Front) map[uint16]owner {
	if sb == nil || lifecycle.Ended(sb.GetState()) {
		return nil
	}
	var ports map[uint16]owner
	for _, t := range sb.GetTunnels() {
		if t.GetProtocol() != siroccov1.Protocol_PROTOCOL_TCP {
			continue
		}
		if p := tunnel.PublicPort(t); p != 0 && t.GetUrl() == front.Tunnel("", &siroccov1.Port{Protocol: t.GetProtocol()}, p).GetUrl() {
			if ports == nil {
				ports = map[uint16]owner{}
			}
			ports[p] = owner{id: sb.GetId(), port: uint16(t.GetPort())} //nolint:gosec // admission checks the range
		}
	}
	return ports
}

func (s *portSet) changed(old, now *siroccov1.Sandbox) {
	before, after := publicPorts(old, s.front), publicPorts(now, s.front)
	if len(before) == 0 && len(after) == 0 {
		return
	}
	s.mu.Lock()
	for p, o := range before {
		// The port may have gone to another sandbox already.
		if _, still := after[p]; !still && s.wanted[p].id == o.id {
			delete(s.wanted, p)
			s.dirty[p] = struct{}{}
		}
	}
	for p, o := range after {
		if s.wanted[p] != o {
			s.wanted[p] = o
			s.dirty[p] = struct{}{}
		}
	}
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// opened is a listener and what serves it.
type opened struct {
	owner    owner
	listener net.Listener
	done     chan struct{}
}

func (o *opened) close() {
	_ = o.listener.Close()
	<-o.done
}

// run opens and closes listeners until ctx ends, and then closes all of them.
func (s *portSet) run(ctx context.Context) {
	open := map[uint16]*opened{}
	defer func() {
		for _, o := range open {
			o.close()
		}
	}()
	var again <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
		case <-again:
			again = nil
		}
		s.mu.Lock()
		dirty := s.dirty
		s.dirty = map[uint16]struct{}{}
		todo := make(map[uint16]owner, len(dirty))
		for p := range dirty {
			todo[p] = s.wanted[p]
		}
		s.mu.Unlock()
		for p, wanted := range todo {
			if have := open[p]; have != nil {
				if have.owner == wanted {
					continue
				}
				have.close()
				delete(open, p)
			}
			if wanted == (owner{}) {
				continue
			}
			l, err := net.Listen("tcp", net.JoinHostPort(s.bind, strconv.Itoa(int(p))))
			if err != nil {
				s.warn(p, err)
				s.mu.Lock()
				s.dirty[p] = struct{}{}
				s.mu.Unlock()
				again = time.After(s.retry)
				continue
			}
			o := &opened{owner: wanted, listener: l, done: make(chan struct{})}
			open[p] = o
			go func() {
				defer close(o.done)
				s.open(ctx, l, wanted)
			}()
		}
	}
}
