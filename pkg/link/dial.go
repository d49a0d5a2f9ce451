package link

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-yamux/v5"
	"github.com/sirocco-run/sirocco/pkg/fault"
)

// spread is how many streams one connection carries before another is made,
// up to maxSessions. One connection is one TCP window and, at either end, one
// goroutine that encrypts; more than a few bring nothing (see the benchmark).
const (
	spread      = 8
	maxSessions = 4
)

// Dialer opens streams to agents and keeps a few connections to each. It is
// safe for concurrent use. A node that can't be reached is dialed by one
// goroutine at a time, however many wait for it.
type Dialer struct {
	tls    *tls.Config
	log    *slog.Logger
	ctx    context.Context // ends with Close; dialing belongs to the dialer, not to a caller
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu     sync.Mutex
	nodes  map[string]*node
	local  map[string]string // the sockets by the agents' addresses
	closed bool
}

// node holds the connections to one agent. It is guarded by Dialer.mu.
type node struct {
	sessions []session
	dialing  *dialing
}

// session is one connection. It was made when local was the agent's socket, which
// may have failed.
type session struct {
	*yamux.Session
	local string
}

// dialing is one attempt that many may wait for. err is set before done is
// closed.
type dialing struct {
	done chan struct{}
	err  error
}

// NewDialer makes a dialer. The TLS config holds the client's certificate and
// the authority that signs agents'.
func NewDialer(cfg *tls.Config, log *slog.Logger) *Dialer {
	ctx, cancel := context.WithCancel(context.Background())
	return &Dialer{tls: fullRecords(cfg), log: log, ctx: ctx, cancel: cancel, nodes: map[string]*node{}, local: map[string]string{}}
}

// NewBulkDialer is NewDialer for streams that carry much, such as the memory of a sandbox:
// each may buffer more at the other end. Local sockets are not for them.
func NewBulkDialer(cfg *tls.Config, log *slog.Logger) *Dialer {
	d := NewDialer(cfg, log)
	d.tls.NextProtos = []string{bulkProtocol}
	return d
}

// Local says by which socket (see ListenLocal) the agent at address can be reached
// on this machine; "" for none any more. New streams go that way, those that are
// open stay where they are. When the socket can't be used, mutual TLS is.
func (d *Dialer) Local(address, path string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if path == "" {
		delete(d.local, address)
		return
	}
	d.local[address] = path
}

// fullRecords stops TLS from starting with small records: between services the
// first byte need not come early, and a message is 64 KiB.
func fullRecords(cfg *tls.Config) *tls.Config {
	cfg = cfg.Clone()
	cfg.DynamicRecordSizingDisabled = true
	return cfg
}

// Open opens a stream to the agent at address; it is a *Conn. Errors: the
// agent's own fault, Unavailable when it can't be reached, Deadline when ctx
// ends first.
func (d *Dialer) Open(ctx context.Context, address string, h Header) (net.Conn, error) {
	for again := true; ; again = false {
		conn, err := d.open(ctx, address, h)
		var lost errNoAnswer
		if err == nil || !errors.As(err, &lost) {
			return conn, err
		}
		if cerr := ctx.Err(); cerr != nil {
			return nil, fault.From(cerr)
		}
		// Nothing was carried yet, so it is safe to ask once more: the agent
		// may have been started anew.
		if !again {
			return nil, unreachable(err)
		}
	}
}

func (d *Dialer) open(ctx context.Context, address string, h Header) (net.Conn, error) {
	stream, err := d.stream(ctx, address)
	if err != nil {
		return nil, err
	}
	_ = stream.SetDeadline(time.Now().Add(openTimeout))
	stop := context.AfterFunc(ctx, func() { _ = stream.SetDeadline(time.Unix(1, 0)) })
	err = writeHeader(stream, h)
	if err != nil {
		err = errNoAnswer{err}
	} else {
		err = readAnswer(stream)
	}
	if !stop() && err == nil {
		err = fault.From(ctx.Err())
	}
	if err != nil {
		_ = stream.Reset()
		return nil, err
	}
	_ = stream.SetDeadline(time.Time{})
	return &Conn{Stream: stream}, nil
}

func (d *Dialer) stream(ctx context.Context, address string) (*yamux.Stream, error) {
	for range 3 {
		session, wait, err := d.session(address)
		if err != nil {
			return nil, err
		}
		if session == nil {
			select {
			case <-wait.done:
				if wait.err != nil {
					return nil, unreachable(wait.err)
				}
			case <-ctx.Done():
				return nil, fault.From(ctx.Err())
			}
			continue
		}
		stream, err := session.OpenStream(ctx)
		if err == nil {
			return stream, nil
		}
		if cerr := ctx.Err(); cerr != nil {
			return nil, fault.From(cerr)
		}
		_ = session.Close() // dead, and found to be so only now
	}
	return nil, unreachable(errors.New("connections to it do not last"))
}

func unreachable(cause error) error {
	return &fault.Fault{Code: fault.Unavailable, Message: "the node can't be reached", RetryAfter: time.Second, Cause: cause}
}

// session returns the least used connection, or the attempt to make the first.
func (d *Dialer) session(address string) (*yamux.Session, *dialing, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, nil, unreachable(net.ErrClosed)
	}
	n := d.nodes[address]
	if n == nil {
		n = &node{}
		d.nodes[address] = n
	}
	local := d.local[address]
	n.sessions = slices.DeleteFunc(n.sessions, func(s session) bool {
		if s.outdated(local) && s.NumStreams() == 0 {
			_ = s.Close()
		}
		return s.IsClosed()
	})
	var best *yamux.Session
	least, usable := 0, 0
	for _, s := range n.sessions {
		if s.outdated(local) {
			continue
		}
		usable++
		if streams := s.NumStreams(); best == nil || streams < least {
			best, least = s.Session, streams
		}
	}
	if n.dialing == nil && (best == nil || least >= spread && usable < maxSessions) {
		attempt := &dialing{done: make(chan struct{})}
		n.dialing = attempt
		d.wg.Go(func() { d.dial(address, local, n, attempt) })
	}
	return best, n.dialing, nil
}

// outdated says whether there is a better way by now.
func (s session) outdated(local string) bool { return local != "" && s.local != local }

func (d *Dialer) dial(address, local string, n *node, result *dialing) {
	mux, err := d.connect(address, local)
	d.mu.Lock()
	defer d.mu.Unlock()
	n.dialing = nil
	switch {
	case err != nil:
		result.err = err
		if len(n.sessions) == 0 && d.nodes[address] == n {
			delete(d.nodes, address) // nodes come and go; what is not there costs nothing
		}
	case d.closed || d.nodes[address] != n: // closed or forgotten meanwhile
		result.err = net.ErrClosed
		_ = mux.Close()
	default:
		n.sessions = append(n.sessions, session{mux, local})
	}
	close(result.done)
}

func (d *Dialer) connect(address, local string) (*yamux.Session, error) {
	conn, err := d.reach(address, local)
	if err != nil {
		return nil, fmt.Errorf("dial agent at %s: %w", address, err)
	}
	mux, err := yamux.Client(conn, muxConfig(isBulk(conn), d.log), nil)
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("dial agent at %s: %w", address, err)
	}
	return mux, nil
}

// reach connects to an agent: by its local socket if it has one, by mutual TLS
// otherwise.
func (d *Dialer) reach(address, local string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(d.ctx, dialTimeout)
	defer cancel()
	if local != "" {
		lctx, done := context.WithTimeout(ctx, localTimeout)
		conn, err := dialLocal(lctx, local, ownUser())
		done()
		if err == nil {
			return conn, nil
		}
		d.log.Info("an agent's socket on this machine can't be used; going by mutual TLS", "node", address, "socket", local, "err", err)
	}
	dialer := &net.Dialer{KeepAlive: 15 * time.Second}
	raw, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	return secure(ctx, raw, d.tls, tls.Client)
}

// Forget closes the connections to an agent that nothing is routed to any more.
func (d *Dialer) Forget(address string) {
	d.mu.Lock()
	n := d.nodes[address]
	delete(d.nodes, address)
	d.mu.Unlock()
	if n != nil {
		closeAll(n.sessions)
	}
}

// Close closes every connection and returns once no goroutine of the dialer
// runs any more.
func (d *Dialer) Close() {
	d.cancel()
	d.mu.Lock()
	d.closed = true
	var sessions []session
	for _, n := range d.nodes {
		sessions = append(sessions, n.sessions...)
	}
	clear(d.nodes)
	d.mu.Unlock()
	closeAll(sessions)
	d.wg.Wait()
}

func closeAll(sessions []session) {
	for _, s := range sessions {
		_ = s.Close()
	}
}
