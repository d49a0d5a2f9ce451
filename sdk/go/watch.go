package sirocco

import (
	"context"
	"iter"
	"time"

	"connectrpc.com/connect"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

// Watch yields every change of a sandbox, or with an empty id of all, from a
// sequence of the event stream (0: only what comes). A broken stream is taken
// up again behind the last event that was yielded; only before the first one
// may events be missed, if fromSequence is 0. It ends with ctx (without an
// error), or with an error as its last element.
func (c *Client) Watch(ctx context.Context, id string, fromSequence uint64) iter.Seq2[*siroccov1.SandboxEvent, error] {
	return func(yield func(*siroccov1.SandboxEvent, error) bool) {
		req := &siroccov1.WatchSandboxesRequest{Id: id, FromSequence: fromSequence}
		until := time.Now().Add(c.cfg.Resume)
		for n := 0; ; n++ {
			stream, err := c.sandboxes.Watch(ctx, connect.NewRequest(req))
			if err == nil {
				for stream.Receive() {
					event := stream.Msg()
					n, until = 0, time.Now().Add(c.cfg.Resume)
					req.FromSequence = event.GetSequence() + 1
					if !yield(event, nil) {
						_ = stream.Close()
						return
					}
				}
				err = stream.Err()
				_ = stream.Close()
				if err == nil {
					err = &Error{Code: Unavailable, Message: "the stream of events ended"}
				}
			}
			if ctx.Err() != nil {
				return
			}
			if !passing(err) || !c.reached.Load() || !pause(ctx, n, err, until) {
				if ctx.Err() == nil {
					yield(nil, err)
				}
				return
			}
		}
	}
}
