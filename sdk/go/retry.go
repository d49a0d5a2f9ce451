package sirocco

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"time"

	"connectrpc.com/connect"
)

// typedOrEOF is typed for streams, where io.EOF is no error.
func typedOrEOF(err error) error {
	if errors.Is(err, io.EOF) && !errors.As(err, new(*connect.Error)) {
		return err
	}
	return typed(err)
}

// pause waits before the n-th try, from 0: what the platform asked for, or 50 ms
// doubling up to 2 s, with jitter. It returns false when ctx ends first, or
// when until would pass.
func pause(ctx context.Context, n int, err error, until time.Time) bool {
	d := min(50*time.Millisecond<<min(n, 6), 2*time.Second)
	var e *Error
	if errors.As(err, &e) && e.RetryAfter > 0 {
		d = e.RetryAfter
	}
	d += rand.N(d/4 + 1)
	if time.Now().Add(d).After(until) {
		return false
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// call makes a call that does nothing twice, and makes it again while it fails
// in a way that passes.
func call[Req, Res any](ctx context.Context, c *Client, do func(context.Context, *connect.Request[Req]) (*connect.Response[Res], error), req *Req) (*Res, error) {
	until := time.Now().Add(c.cfg.Retry)
	for n := 0; ; n++ {
		resp, err := do(ctx, connect.NewRequest(req))
		if err == nil {
			return resp.Msg, nil
		}
		if ctx.Err() != nil {
			return nil, typed(ctx.Err())
		}
		if !passing(err) || !c.reached.Load() || !pause(ctx, n, err, until) {
			return nil, err
		}
	}
}

// once is call for what must not be repeated.
func once[Req, Res any](ctx context.Context, do func(context.Context, *connect.Request[Req]) (*connect.Response[Res], error), req *Req) (*Res, error) {
	resp, err := do(ctx, connect.NewRequest(req))
	if err != nil {
		return nil, err
	}
	return resp.Msg, nil
}
