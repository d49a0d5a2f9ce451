package natsserver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// gate stands between a server and all of its clients and can hold up what passes, as a
// server that hangs or a slow network would: connections stay, and what is sent waits in
// the buffers of their sockets.
//
// Concurrency: one goroutine accepts, two pass on the bytes of each connection; close
// waits for all.
type gate struct {
	listener net.Listener
	srv      *server.Server
	ctx      context.Context //nolint:containedctx // ends the goroutines; close cancels it
	cancel   context.CancelFunc
	running  sync.WaitGroup

	mu   sync.Mutex
	hold Hold
	// changed is closed, and replaced, when hold changes.
	changed chan struct{}
}

// Hold is what a gate does to what passes. The zero value lets everything pass at once.
type Hold struct {
	// From StopFrom on until Stop nothing passes, in either direction.
	StopFrom, Stop time.Time
	// Latency is by how much later everything comes that the server sends, until Until.
	Latency time.Duration
	Until   time.Time
}

// wait is how long something waits now. A stop may be over sooner than that.
func (h Hold) wait(now time.Time, fromServer bool) time.Duration {
	var d time.Duration
	if fromServer && now.Before(h.Until) {
		d = h.Latency
	}
	if now.Before(h.StopFrom) {
		return d
	}
	return max(d, h.Stop.Sub(now), 0)
}

func listen(host string, port int) (net.Listener, error) {
	l, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(max(port, 0))))
	if err != nil {
		return nil, fmt.Errorf("port %d: %w (%w)", port, ErrPortTaken, err)
	}
	return l, nil
}

func openGate(l net.Listener, srv *server.Server) *gate {
	g := &gate{listener: l, srv: srv, changed: make(chan struct{})}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	g.running.Go(g.accept)
	return g
}

func (g *gate) accept() {
	for {
		client, err := g.listener.Accept()
		if errors.Is(err, net.ErrClosed) || g.ctx.Err() != nil {
			return
		}
		if err != nil {
			continue
		}
		behind, err := g.srv.InProcessConn()
		if err != nil {
			_ = client.Close() // it is shutting down
			continue
		}
		end := context.AfterFunc(g.ctx, func() { _, _ = client.Close(), behind.Close() })
		var both sync.WaitGroup
		both.Go(func() { g.pass(behind, client, false) })
		both.Go(func() { g.pass(client, behind, true) })
		g.running.Go(func() {
			both.Wait()
			end()
		})
	}
}

// passBytes is how much passes at once.
const passBytes = 64 << 10

// pass copies until either side ends, and then ends both.
func (g *gate) pass(to, from net.Conn, fromServer bool) {
	defer func() { _, _ = to.Close(), from.Close() }()
	buffer := make([]byte, passBytes)
	for {
		n, err := from.Read(buffer)
		if n > 0 {
			g.wait(fromServer)
			if _, err := to.Write(buffer[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// wait returns when what was read now may go on.
func (g *gate) wait(fromServer bool) {
	began := time.Now()
	for {
		g.mu.Lock()
		hold, changed := g.hold, g.changed
		g.mu.Unlock()
		left := hold.wait(began, fromServer) - time.Since(began)
		if left <= 0 {
			return
		}
		timer := time.NewTimer(left)
		select {
		case <-timer.C:
		case <-changed:
		case <-g.ctx.Done():
			timer.Stop()
			return
		}
		timer.Stop()
	}
}

func (g *gate) set(h Hold) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.hold = h
	close(g.changed)
	g.changed = make(chan struct{})
}

func (g *gate) close() {
	_ = g.listener.Close()
	g.cancel()
	g.running.Wait()
}
