package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/hashicorp/yamux"
)

// unaryTimeout limits a call that answers at once and whose context has no
// deadline.
const unaryTimeout = 30 * time.Second

// ErrBroken: the connection to the guest is gone, or the guest does not keep to
// the protocol. The cause is wrapped beside it. Dial again and repeat; every
// operation except Signal and Move may be repeated without harm.
var ErrBroken = errors.New("guest: connection broken")

// Client speaks with one supervisor over one connection. It does not reconnect:
// when Done is closed, Dial again; processes and their output are still there.
// Every method may be called from any goroutine. A cancelled context ends a
// call, at the latest 10 s later when the connection itself is stuck.
type Client struct {
	session *yamux.Session
}

// Dial connects with dial, proves and checks the secret and returns a client.
// Errors: ErrHandshake when the other side is not the supervisor that the
// secret was given to, those of dial, those of ctx.
func Dial(ctx context.Context, dial func(context.Context) (net.Conn, error), secret []byte) (*Client, error) {
	ctx, cancel := context.WithTimeout(ctx, HandshakeTimeout)
	defer cancel()
	conn, err := dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("dial guest: %w", err)
	}
	// Closing also stops a connection that has no deadlines.
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	err = greetGuest(conn, secret)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		_ = conn.Close()
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, fmt.Errorf("greet guest: %w", err)
	}
	session, err := yamux.Client(&guard{joiner: joiner{Conn: conn}}, muxConfig())
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("greet guest: %w", err)
	}
	return &Client{session: session}, nil
}

// Close ends the connection and every call on it. What runs in the sandbox goes
// on.
func (c *Client) Close() error { return c.session.Close() }

// Done is closed when the connection has ended.
func (c *Client) Done() <-chan struct{} { return c.session.CloseChan() }

// call is one request of a client.
type call struct {
	ctx    context.Context
	cancel context.CancelFunc
	stop   func() bool
	stream *yamux.Stream
	buf    []byte
	taken  int
	// whole is the limit on all payloads together; 0: none.
	whole int
}

func request(op Op) *encoder {
	e := newEncoder(kindRequest)
	e.byte(byte(op))
	return e
}

// open sends a request. limit is the longest that the call may take unless ctx
// has a deadline; 0: no limit.
func (c *Client) open(ctx context.Context, limit time.Duration, e *encoder) (*call, error) {
	if len(e.b)-prefix > MaxRequest {
		return nil, Fail(CodeInvalid, "request is too large")
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	k := &call{ctx: ctx, cancel: func() {}}
	if _, ok := ctx.Deadline(); !ok && limit > 0 {
		k.ctx, k.cancel = context.WithTimeout(ctx, limit)
	}
	stream, err := c.session.OpenStream()
	if err != nil {
		k.cancel()
		return nil, fmt.Errorf("%w: %w", ErrBroken, err)
	}
	k.stream = stream
	k.stop = context.AfterFunc(k.ctx, func() { _ = stream.SetDeadline(time.Unix(1, 0)) })
	if _, err := stream.Write(e.frame()); err != nil {
		err = k.broken(err)
		k.close()
		return nil, err
	}
	return k, nil
}

func (k *call) close() {
	k.stop()
	k.cancel()
	_ = k.stream.Close()
}

func (k *call) broken(err error) error {
	if cause := k.ctx.Err(); cause != nil {
		return cause
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("%w: %w", ErrBroken, err)
}

// recv returns the next frame; an error frame becomes an error.
func (k *call) recv() (kind, *decoder, error) {
	for {
		kd, p, err := readFrame(k.stream, k.buf)
		k.buf = p[:0]
		if err != nil {
			return 0, nil, k.broken(err)
		}
		d := &decoder{b: p}
		switch kd {
		case kindError:
			e := &Error{Code: Code(word(d)), Text: text(clip(d.bytes(), maxErrorText))}
			if d.bad {
				return 0, nil, k.broken(errMalformed)
			}
			return 0, nil, e
		case kindOK, kindData, kindStdout, kindStderr:
			return kd, d, nil
		case kindItem:
			k.taken += len(p) + prefix
			if k.whole > 0 && k.taken > k.whole {
				return 0, nil, k.broken(errTooLong)
			}
			return kd, d, nil
		default:
			return 0, nil, k.broken(errMalformed)
		}
	}
}

// result waits for the ok frame of a call that has no other.
func (k *call) result() (*decoder, error) {
	kd, d, err := k.recv()
	if err != nil {
		return nil, err
	}
	if kd != kindOK {
		return nil, k.broken(errMalformed)
	}
	return d, nil
}

// unary does a whole call that has one answer.
func (c *Client) unary(ctx context.Context, limit time.Duration, e *encoder, read func(*decoder)) error {
	k, err := c.open(ctx, limit, e)
	if err != nil {
		return err
	}
	defer k.close()
	d, err := k.result()
	if err != nil {
		return err
	}
	if read != nil {
		read(d)
	}
	if d.bad {
		return k.broken(errMalformed)
	}
	return nil
}

// Ping asks who is there.
func (c *Client) Ping(ctx context.Context) (Info, error) {
	var i Info
	err := c.unary(ctx, unaryTimeout, request(OpPing), i.decode)
	return i, err
}

// Configure sets the sandbox up. It may be repeated until the sandbox's command
// has been started, and after that with the same setup. Errors: ErrConfigured,
// ErrUnknownUser, ErrInvalid, and those of writing files.
func (c *Client) Configure(ctx context.Context, s Setup) error {
	e := request(OpConfigure)
	s.encode(e)
	return c.unary(ctx, unaryTimeout, e, nil)
}

// Shutdown sends SIGTERM to every process, waits at most grace for all to end
// and kills the rest. No process can be started afterwards. It returns when
// nothing runs any more; the supervisor goes on to answer.
func (c *Client) Shutdown(ctx context.Context, grace time.Duration) error {
	e := request(OpShutdown)
	e.string("")
	e.duration(grace)
	return c.unary(ctx, grace+unaryTimeout, e, nil)
}

// Events follows the sandbox as a whole: fn gets the state at once, then each
// change, at most one a second except for the end of the sandbox's command,
// which comes at once. It returns when fn fails, with that error, or when the
// connection or ctx ends.
func (c *Client) Events(ctx context.Context, fn func(Event) error) error {
	k, err := c.open(ctx, 0, request(OpEvents))
	if err != nil {
		return err
	}
	defer k.close()
	for {
		kd, d, err := k.recv()
		if err != nil {
			return err
		}
		var v Event
		v.decode(d)
		if kd != kindItem || d.bad {
			return k.broken(errMalformed)
		}
		if err := fn(v); err != nil {
			return err
		}
	}
}
