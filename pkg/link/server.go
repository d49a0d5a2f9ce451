package link

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/libp2p/go-yamux/v5"
)

// Handler prepares a stream: it checks the header and returns what to do with
// the connection, or the fault with which the stream is refused.
type Handler func(ctx context.Context, h Header) (serve func(net.Conn), err error)

// Serve accepts connections and streams until ctx ends, then closes them all
// and returns once no handler runs any more. A listener that ListenLocal made
// takes peers by their user, any other by their certificate (cfg); all that
// follows is the same.
func Serve(ctx context.Context, listener net.Listener, cfg *tls.Config, log *slog.Logger, handle Handler) error {
	cfg = fullRecords(cfg)
	cfg.NextProtos = []string{bulkProtocol}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = listener.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		conn, err := listener.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			log.Warn("accept on the data listener", "err", err)
			select {
			case <-time.After(50 * time.Millisecond): // out of descriptors: others must end first
			case <-ctx.Done():
			}
			continue
		}
		wg.Go(func() { serveConn(ctx, conn, cfg, log, handle) })
	}
}

func serveConn(ctx context.Context, raw net.Conn, cfg *tls.Config, log *slog.Logger, handle Handler) {
	hctx, done := context.WithTimeout(ctx, openTimeout)
	conn, err := receive(hctx, raw, cfg)
	done()
	if err != nil {
		log.Info("refused a connection to the data listener", "peer", raw.RemoteAddr(), "err", err)
		return
	}
	session, err := yamux.Server(conn, muxConfig(isBulk(conn), log), nil)
	if err != nil {
		_ = conn.Close()
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = session.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		stream, err := session.AcceptStream()
		if err != nil {
			cancel()
			return
		}
		wg.Go(func() { serveStream(ctx, stream, log, handle) })
	}
}

// receive makes sure who the peer is, or closes the connection.
func receive(ctx context.Context, raw net.Conn, cfg *tls.Config) (net.Conn, error) {
	if local, ok := raw.(*net.UnixConn); ok {
		return admit(ctx, local, ownUser())
	}
	return secure(ctx, raw, cfg, tls.Server)
}

func serveStream(ctx context.Context, stream *yamux.Stream, log *slog.Logger, handle Handler) {
	c := &Conn{Stream: stream}
	defer func() { _ = c.Close() }()
	_ = stream.SetDeadline(time.Now().Add(openTimeout))
	h, err := ReadHeader(stream)
	if err != nil {
		log.Info("bad stream", "err", err)
		_ = writeAnswer(stream, fmt.Errorf("bad header: %w", err))
		return
	}
	serve, err := handle(ctx, h)
	if err != nil {
		_ = stream.SetDeadline(time.Now().Add(openTimeout))
		_ = writeAnswer(stream, err)
		return
	}
	_ = stream.SetDeadline(time.Now().Add(openTimeout))
	if err := writeAnswer(stream, nil); err != nil {
		serve(closedConn{c})
		return
	}
	_ = stream.SetDeadline(time.Time{})
	serve(c)
}

// closedConn lets a handler free what it prepared when the peer left before the
// answer.
type closedConn struct{ net.Conn }

func (closedConn) Read([]byte) (int, error)  { return 0, net.ErrClosed }
func (closedConn) Write([]byte) (int, error) { return 0, net.ErrClosed }
