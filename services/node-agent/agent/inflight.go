package agent

import (
	"bytes"
	"context"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirocco-run/sirocco/pkg/link"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

// How a sandbox that is to be moved comes to rest. The door is shut: a request that comes
// from then on is sent back unheard, and its relay tries again until it knows where the
// sandbox is. What relays mark as requests (link.Header.Requests) and is inside already is
// waited for until it is answered, and so are calls of the data services. The door is open
// again as soon as the record says that the move was called off.

const (
	// stillMoving is how recent the last byte of an answer is that is still coming.
	stillMoving = time.Second
	// lastWord is how long a stream that is no request is left to the relay once the
	// sandbox is gone: the relay ends it when it hears of the move. It is longer than
	// a relay that is not cut off from the bus is behind.
	lastWord = 5 * time.Second
)

// traffic is what relays have under way to one sandbox. The zero value is ready.
type traffic struct {
	mu    sync.Mutex
	flows map[*flow]struct{} // those that may block a move
	calls int
	// eased is closed when something blocks no more; nil while nobody waits.
	eased chan struct{}
	// shut: nothing new comes in, as long as the sandbox is leaving.
	shut atomic.Bool
}

// quiet shuts the door, waits until no request to the sandbox is under way, for so long at
// most, and returns how many are. The door stays shut until the record says that the
// sandbox is not moved, or reopen. The record must say already that it is leaving.
//
// Under way is a request without an answer, an answer of which bytes passed within the
// last second, unless it is a stream of events, and any call of the data services but
// those that may be long and are taken up again (waits).
func (m *machine) quiet(ctx context.Context, limit time.Duration) (blocking int) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	t := &m.traffic
	t.mu.Lock()
	t.shut.Store(true)
	t.mu.Unlock()
	for {
		t.mu.Lock()
		blocking, next := t.blocking(time.Now())
		if blocking == 0 {
			t.mu.Unlock()
			return 0
		}
		eased := make(chan struct{})
		t.eased = eased
		t.mu.Unlock()
		timer := time.NewTimer(next)
		select {
		case <-eased:
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return blocking
		}
		timer.Stop()
	}
}

// reopen opens the door that a move has shut which was called off: the next one lets
// requests in until it comes to quiet.
func (m *machine) reopen() { m.traffic.shut.Store(false) }

// blocking counts what is under way, and says when that may change by itself.
func (t *traffic) blocking(now time.Time) (n int, next time.Duration) {
	n, next = t.calls, stillMoving
	for f := range t.flows {
		if f.waiting.Load() {
			n++
		} else if rest := stillMoving - now.Sub(time.Unix(0, f.moved.Load())); rest > 0 && !f.events.Load() {
			n++
			next = min(next, rest)
		}
	}
	return n, next
}

// ease wakes whoever waits in quiet.
func (t *traffic) ease() {
	if t.eased != nil {
		close(t.eased)
		t.eased = nil
	}
}

// closed says whether the door is shut: the sandbox is at rest, and leaving, or has left.
func (m *machine) closed() bool {
	return m.traffic.shut.Load() && m.current().GetState() == siroccov1.State_STATE_MIGRATING
}

// departed says whether the sandbox has left, and nothing of it is here any more.
func (m *machine) departed() bool { return m.closed() && m.over() }

// flow is one stream between a relay and a port of a sandbox.
type flow struct {
	m *machine
	// requests: it carries HTTP requests, one after another, until it is upgraded.
	requests bool
	upgraded atomic.Bool
	h2       *h2calls // nil unless they are HTTP/2
	fresh    bool     // nothing has come yet; only the inward direction has it
	// waiting: the last request has no answer yet.
	waiting atomic.Bool
	events  atomic.Bool  // the last answer is a stream of events
	moved   atomic.Int64 // when bytes last passed, in Unix nanoseconds; 0 for never
}

// join adds a stream. leave takes it off.
func (m *machine) join(h link.Header) *flow {
	f := &flow{m: m, requests: h.Requests, fresh: true}
	if h.HTTP2 {
		f.h2 = newH2Calls()
	}
	if h.Requests {
		t := &m.traffic
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.flows == nil {
			t.flows = map[*flow]struct{}{}
		}
		t.flows[f] = struct{}{}
	}
	return f
}

func (f *flow) leave() {
	t := &f.m.traffic
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.flows, f)
	t.ease()
}

// inward takes note of bytes for the sandbox, and returns false for those that must not
// reach it: the beginning of a request for which the door is shut.
func (f *flow) inward(b []byte) bool {
	if !f.requests || f.upgraded.Load() {
		return true
	}
	if f.h2 != nil {
		return f.inwardH2(b)
	}
	begins := f.fresh || begins(b)
	f.fresh = false
	if f.waiting.Load() {
		f.moved.Store(time.Now().UnixNano())
		return true
	}
	t := &f.m.traffic
	t.mu.Lock()
	defer t.mu.Unlock()
	if begins && f.m.closed() {
		return false
	}
	f.moved.Store(time.Now().UnixNano())
	f.waiting.Store(true)
	return true
}

// begins says whether bytes that follow an answer begin a request. A relay sends the
// head of a request as the first of one write.
func begins(b []byte) bool {
	line, _, _ := bytes.Cut(b, []byte("\n"))
	return bytes.HasSuffix(bytes.TrimSuffix(line, []byte("\r")), []byte(" HTTP/1.1"))
}

// outward takes note of bytes from the sandbox.
func (f *flow) outward(b []byte) {
	if !f.requests || f.upgraded.Load() {
		return
	}
	if f.h2 != nil {
		f.outwardH2(b)
		return
	}
	f.moved.Store(time.Now().UnixNano())
	if !f.waiting.Load() {
		return
	}
	status, head := finalAnswer(b)
	switch status {
	case "":
		return
	case "101":
		// From here on it carries anything but requests, and blocks nothing.
		f.upgraded.Store(true)
		f.leave()
	}
	f.events.Store(bytes.Contains(bytes.ToLower(head), []byte("\ncontent-type: text/event-stream")))
	t := &f.m.traffic
	t.mu.Lock()
	defer t.mu.Unlock()
	f.waiting.Store(false)
	t.ease()
}

// finalAnswer looks for the answer in the first bytes after a request: behind those
// that are informational, such as 100. It returns its status and head; an empty status
// if there is none yet, and "?" where there is no telling.
func finalAnswer(b []byte) (status string, head []byte) {
	for {
		rest, is := bytes.CutPrefix(b, []byte("HTTP/1.1 "))
		if !is || len(rest) < 3 {
			return "?", nil
		}
		status = string(rest[:3])
		head, after, whole := bytes.Cut(b, []byte("\r\n\r\n"))
		if status[0] != '1' || status == "101" {
			return status, head
		}
		if b = after; !whole || len(b) == 0 {
			return "", nil
		}
	}
}

// end says what becomes of a stream when the direction from the sandbox has ended. It
// returns when the stream may be closed. Where the sandbox has left, a request learns
// that its answer is lost with it, and whatever else is on the stream is for the relay
// to end.
func (f *flow) end(ctx context.Context, outside net.Conn, relayDone <-chan struct{}) {
	if !f.m.closed() {
		return
	}
	if f.waiting.Load() {
		breakOff(outside, link.BrokeMoved)
		return
	}
	timer := time.NewTimer(lastWord)
	defer timer.Stop()
	select {
	case <-relayDone:
	case <-timer.C:
	case <-ctx.Done():
	}
}

// breakOff ends a stream and says why.
func breakOff(c net.Conn, why link.Break) {
	if b, ok := c.(interface{ Break(why link.Break) error }); ok {
		_ = b.Break(why)
		return
	}
	_ = c.Close()
}
