package api

import (
	"context"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/rpc"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/sirocco-run/sirocco/services/api/cursor"
)

const (
	// keepAlive is how often a quiet stream of events says that it lives.
	keepAlive = 15 * time.Second
	// writeTime is how long a watcher may take to read what is sent.
	writeTime = 30 * time.Second
)

// serveEvents is Watch as server-sent events. The id of each is its position: in the
// event stream of this region where there is no other, and else its cursor. A browser
// sends the last one back by itself.
func (a *API) serveEvents(ctx context.Context, w *rpc.Writer, r *http.Request, c caller) error {
	if r.Method != http.MethodGet {
		w.Header().Set("Allow", http.MethodGet)
		w.WriteHeader(http.StatusMethodNotAllowed)
		return nil
	}
	req, err := eventsRequest(r)
	if err != nil {
		return err
	}
	ctx, cancel := a.untilStop(ctx)
	defer cancel()
	out := &eventWriter{w: w, control: http.NewResponseController(w.Unwrap()), cursors: len(a.env.Peers.Regions()) > 0}
	var beats sync.WaitGroup
	defer beats.Wait()
	defer cancel()
	started := func() error {
		h := w.Header()
		h.Set(contentType, "text/event-stream")
		h.Set("Cache-Control", "no-store")
		h.Set("X-Accel-Buffering", "no")
		w.WriteHeader(http.StatusOK)
		beats.Go(func() { out.beat(ctx, cancel) })
		return out.write([]byte(": sirocco events\n\n"))
	}
	err = a.watch(ctx, c, req, started, out.event)
	if w.Began() {
		return nil // the stream has begun: an error can't be told, the client comes again
	}
	return err
}

// eventsRequest reads ?id=, ?from=, ?cursor= and Last-Event-ID.
func eventsRequest(r *http.Request) (*siroccov1.WatchSandboxesRequest, error) {
	req := &siroccov1.WatchSandboxesRequest{}
	for name, values := range r.URL.Query() {
		value := values[len(values)-1]
		switch name {
		case "id":
			req.Id = value
		case "from", "from_sequence":
			n, err := strconv.ParseUint(value, 10, 64)
			if err != nil {
				return nil, fault.Invalid(name, "want a sequence of the event stream")
			}
			req.FromSequence = n
		case "cursor":
			req.Cursor = value
		default:
			return nil, fault.Invalid(name, "there is no such parameter: want id, from or cursor")
		}
	}
	if last := r.Header.Get("Last-Event-ID"); last != "" {
		// It comes with each try, and is newer than where the first began.
		req.FromSequence, req.Cursor = 0, ""
		if n, err := strconv.ParseUint(last, 10, 64); err == nil {
			req.FromSequence = n + 1
		} else if _, err := cursor.Parse(last); err == nil {
			req.Cursor = last
		} else {
			return nil, fault.Invalid("Last-Event-ID", "want the id of an event: a sequence of the event stream, or a cursor")
		}
	}
	return req, nil
}

// eventWriter writes events and signs of life, one at a time.
type eventWriter struct {
	w       http.ResponseWriter
	control *http.ResponseController
	// cursors: ids are cursors.
	cursors bool
	mu      sync.Mutex
}

func (o *eventWriter) event(e *siroccov1.SandboxEvent, name string) error {
	body, err := rpc.MarshalJSON(e)
	if err != nil {
		return err
	}
	if name == "" {
		name = "updated"
	}
	id := e.GetCursor()
	if !o.cursors {
		id = strconv.FormatUint(e.GetSequence(), 10)
	}
	out := append([]byte("id: "+id+"\nevent: "+name+"\ndata: "), body...)
	return o.write(append(out, "\n\n"...))
}

func (o *eventWriter) write(p []byte) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	_ = o.control.SetWriteDeadline(time.Now().Add(writeTime))
	if _, err := o.w.Write(p); err != nil {
		return err
	}
	return o.control.Flush()
}

// beat writes signs of life until ctx ends, and ends the stream when its
// client does not take them.
func (o *eventWriter) beat(ctx context.Context, cancel context.CancelFunc) {
	tick := time.NewTicker(keepAlive)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if o.write([]byte(": alive\n\n")) != nil {
				cancel()
				return
			}
		}
	}
}
