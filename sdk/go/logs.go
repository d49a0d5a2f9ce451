package sirocco

import (
	"context"
	"errors"
	"io"
	"time"

	"connectrpc.com/connect"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/genproto/googleapis/api/httpbody"
)

// Logs returns both outputs of the sandbox's own command in the order they
// came; with follow it goes on until the command ends. A connection that breaks,
// because the sandbox moves for instance, is taken up again at the byte. The caller
// closes the reader.
func (s *Sandbox) Logs(ctx context.Context, follow bool) (io.ReadCloser, error) {
	if err := s.data(ctx); err != nil {
		return nil, err
	}
	l := &logReader{ctx: ctx, sandbox: s, follow: follow}
	if err := l.open(); err != nil {
		return nil, err
	}
	return l, nil
}

// logReader reads the logs, and knows how far it has come.
type logReader struct {
	ctx     context.Context //nolint:containedctx // of the call that made the reader, which has no other
	sandbox *Sandbox
	follow  bool
	at      int64
	stream  io.ReadCloser // nil while it is broken
	// tries is how many in a row brought nothing, and until when there may be more.
	tries int
	until time.Time
}

func (l *logReader) open() (err error) {
	l.stream, err = newBody(l.ctx, func(ctx context.Context) (*connect.ServerStreamForClient[httpbody.HttpBody], error) {
		return l.sandbox.logs.Read(ctx, connect.NewRequest(&siroccov1.ReadLogsRequest{SandboxId: l.sandbox.ID, Follow: l.follow, Offset: l.at}))
	})
	return err
}

// Read implements io.Reader.
func (l *logReader) Read(p []byte) (int, error) {
	for {
		n, err := l.readOnce(p)
		l.at += int64(n)
		switch {
		case n > 0 || err == nil:
			l.tries, l.until = 0, time.Time{}
			return n, nil
		case errors.Is(err, io.EOF) || l.ctx.Err() != nil:
			return 0, err
		}
		_ = l.Close()
		if l.until.IsZero() {
			l.until = time.Now().Add(l.sandbox.client.cfg.Resume)
		}
		if l.sandbox.forget(err) {
			continue
		}
		if !passing(err) || !l.sandbox.client.reached.Load() || !pause(l.ctx, l.tries, err, l.until) {
			return 0, err
		}
		l.tries++
	}
}

func (l *logReader) readOnce(p []byte) (int, error) {
	if l.stream == nil {
		if err := l.sandbox.data(l.ctx); err != nil {
			return 0, err
		}
		if err := l.open(); err != nil {
			return 0, err
		}
	}
	return l.stream.Read(p)
}

// Close implements io.Closer. It does not read what is left.
func (l *logReader) Close() error {
	if l.stream == nil {
		return nil
	}
	err := l.stream.Close()
	l.stream = nil
	return err
}
