package sim

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/sirocco-run/sirocco/pkg/runtime"
)

// Sandbox implements runtime.Sandbox.
type Sandbox struct {
	r *Runtime
	m *machine
}

var _ runtime.Sandbox = (*Sandbox)(nil)

// ID implements runtime.Sandbox.
func (s *Sandbox) ID() string { return s.m.spec.ID }

// Done implements runtime.Sandbox.
func (s *Sandbox) Done() <-chan struct{} { return s.m.done }

// Exit implements runtime.Sandbox. Before the end it is zero.
func (s *Sandbox) Exit() runtime.Exit {
	s.r.host.mu.Lock()
	defer s.r.host.mu.Unlock()
	return s.m.exit
}

// Stats implements runtime.Sandbox.
func (s *Sandbox) Stats(ctx context.Context) (runtime.Stats, error) {
	h := s.r.host
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.running[s.ID()] != s.m {
		return runtime.Stats{}, fmt.Errorf("stats of sandbox %s: %w", s.ID(), runtime.ErrNotFound)
	}
	return s.m.stats, ctx.Err()
}

// Dial implements runtime.Sandbox. The connection has a CloseWrite that works if
// the Handler's connection has one, as those of Pipe do.
func (s *Sandbox) Dial(ctx context.Context, port uint16) (net.Conn, error) {
	fail := func(err error) (net.Conn, error) {
		return nil, fmt.Errorf("dial port %d of sandbox %s: %w", port, s.ID(), err)
	}
	if err := ctx.Err(); err != nil {
		return fail(err)
	}
	if s.r.isClosed() {
		return fail(ErrClosed)
	}
	if err := s.awaitResume(ctx); err != nil {
		return fail(err)
	}
	h := s.r.host
	h.mu.Lock()
	serve, ended := s.m.handler, s.m.ended
	h.mu.Unlock()
	switch {
	case ended:
		return fail(runtime.ErrNotFound)
	case serve == nil:
		return fail(runtime.ErrRefused)
	}
	inner, err := serve(port)
	if err != nil {
		return fail(err)
	}
	c, err := h.track(s.m, inner)
	if err != nil {
		return fail(err)
	}
	return c, nil
}

// Foreground implements runtime.Sandbox. A simulated one takes no time.
func (s *Sandbox) Foreground() {}

// Destroy implements runtime.Sandbox.
func (s *Sandbox) Destroy(ctx context.Context) error {
	if s.r.isClosed() {
		return fmt.Errorf("destroy sandbox %s: %w", s.ID(), ErrClosed)
	}
	if err := sleep(ctx, s.r.cfg.Destroy.sample(s.r.draw("destroy", s.ID()))); err != nil {
		return fmt.Errorf("destroy sandbox %s: %w", s.ID(), err)
	}
	h := s.r.host
	h.mu.Lock()
	ours := h.running[s.ID()] == s.m
	h.mu.Unlock()
	// The id may belong to a later sandbox by now.
	h.remove(s.m)
	if ours {
		s.r.leave(s.ID())
	}
	return nil
}

// conn is a connection that ends with its sandbox.
type conn struct {
	net.Conn
	h *Host
	m *machine
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.h.mu.Lock()
	delete(c.m.conns, c)
	c.h.mu.Unlock()
	return c.Conn.Close()
}

// CloseWrite ends the direction to the sandbox. Error: errors.ErrUnsupported, if
// the Handler's connection can't.
func (c *conn) CloseWrite() error {
	if hc, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return hc.CloseWrite()
	}
	return errors.ErrUnsupported
}
