package sirocco

import (
	"context"
	"iter"
	"time"

	"connectrpc.com/connect"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/proto"
)

// Watch is WatchWith for every change of a sandbox, or with an empty id of all, from a
// sequence of the event stream of the region that is asked (0: only what comes).
func (c *Client) Watch(ctx context.Context, id string, fromSequence uint64) iter.Seq2[*siroccov1.SandboxEvent, error] {
	return c.WatchWith(ctx, &siroccov1.WatchSandboxesRequest{Id: id, FromSequence: fromSequence})
}

// WatchWith yields every change, in every region, that the request asks for. The events
// of one region come in order. A broken stream is taken up again behind the last event
// that was yielded; only before the first one may events be missed, if the request says
// not from where. It ends with ctx (without an error), or with an error as its last
// element.
//
// An event whose Away or Back is set is a notice: a region does not answer, or does
// again. To go on later, give the last event's Cursor.
func (c *Client) WatchWith(ctx context.Context, from *siroccov1.WatchSandboxesRequest) iter.Seq2[*siroccov1.SandboxEvent, error] {
	return func(yield func(*siroccov1.SandboxEvent, error) bool) {
		req := proto.CloneOf(from)
		if req == nil {
			req = &siroccov1.WatchSandboxesRequest{}
		}
		until := time.Now().Add(c.cfg.Resume)
		for n := 0; ; n++ {
			stream, err := c.sandboxes.Watch(ctx, connect.NewRequest(req))
			if err == nil {
				for stream.Receive() {
					event := stream.Msg()
					n, until = 0, time.Now().Add(c.cfg.Resume)
					if req.Cursor, req.FromSequence = event.GetCursor(), 0; req.Cursor == "" {
						req.FromSequence = event.GetSequence() + 1
					}
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
