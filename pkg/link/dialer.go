package link

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/yamux"
	"github.com/sirocco-run/sirocco/pkg/fault"
)

// Dialer opens streams to agents and keeps one connection to each. It is safe
// for concurrent use.
type Dialer struct {
	tls *tls.Config
	log *slog.Logger

	mu    sync.Mutex
	nodes map[string]*node
}

// node is the connection to one agent; dialing it is done once for all who
// want it.
type node struct {
	mu      sync.Mutex
	session *yamux.Session
}

// NewDialer makes a dialer. The TLS config holds the client's certificate and
// the authority that signs agents'.
func NewDialer(cfg *tls.Config, log *slog.Logger) *Dialer {
	return &Dialer{tls: cfg, log: log, nodes: map[string]*node{}}
}

// Open opens a stream to the agent at address. Errors: the agent's own fault,
// or Unavailable when it can't be reached.
func (d *Dialer) Open(ctx context.Context, address string, h Header) (net.Conn, error) {
	stream, err := d.stream(ctx, address)
	if err != nil {
		return nil, err
	}
	deadline := time.Now().Add(openTimeout)
	if t, ok := ctx.Deadline(); ok && t.Before(deadline) {
		deadline = t
	}
	_ = stream.SetDeadline(deadline)
	stop := context.AfterFunc(ctx, func() { _ = stream.SetDeadline(time.Unix(1, 0)) })
	err = writeHeader(stream, h)
	if err == nil {
		err = readAnswer(stream)
	}
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		_ = stream.Close()
		if cerr := ctx.Err(); cerr != nil {
			return nil, fault.From(cerr)
		}
		return nil, err
	}
	_ = stream.SetDeadline(time.Time{})
	return &Conn{Stream: stream}, nil
}

func (d *Dialer) stream(ctx context.Context, address string) (*yamux.Stream, error) {
	d.mu.Lock()
	n := d.nodes[address]
	if n == nil {
		n = &node{}
		d.nodes[address] = n
	}
	d.mu.Unlock()

	n.mu.Lock()
	defer n.mu.Unlock()
	// An old connection may be found dead only now: then dial once more.
	for fresh := false; ; fresh = true {
		if n.session == nil || n.session.IsClosed() {
			session, err := d.dial(ctx, address)
			if err != nil {
				return nil, &fault.Fault{Code: fault.Unavailable, Message: "the node can't be reached", RetryAfter: time.Second, Cause: err}
			}
			n.session, fresh = session, true
		}
		stream, err := n.session.OpenStream()
		if err == nil {
			return stream, nil
		}
		_ = n.session.Close()
		if fresh {
			return nil, &fault.Fault{Code: fault.Unavailable, Message: "the node can't be reached", RetryAfter: time.Second, Cause: err}
		}
	}
}

func (d *Dialer) dial(ctx context.Context, address string) (*yamux.Session, error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	dialer := &tls.Dialer{Config: d.tls, NetDialer: &net.Dialer{KeepAlive: 15 * time.Second}}
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("dial agent at %s: %w", address, err)
	}
	session, err := yamux.Client(conn, muxConfig(d.log))
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("dial agent at %s: %w", address, err)
	}
	return session, nil
}

// Close closes every connection.
func (d *Dialer) Close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, n := range d.nodes {
		n.mu.Lock()
		if n.session != nil {
			_ = n.session.Close()
		}
		n.mu.Unlock()
	}
	clear(d.nodes)
}
