package evacuator

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/sirocco-run/sirocco/pkg/evacuation"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

const (
	// maxAttempts is how often a sandbox is tried before it is given up.
	maxAttempts = 4
	// firstRetry is how long the second attempt waits; each further one twice as long.
	firstRetry = time.Second
	// answerLimit is how long a command may show no effect: longer than one waits that a
	// scheduler took with it when it died (30 s), and a move after that.
	answerLimit = time.Minute
	// lookElsewhere is when a sandbox that has left for another region is looked for
	// there: usually its record here follows before.
	lookElsewhere = 500 * time.Millisecond
	// pausesKept is how many times the percentiles are of.
	pausesKept = 10_000
)

// campaign is an order with what has become of each sandbox. All of it is rebuilt from
// the records by whoever takes the order over, but for refusals, which are found again
// by asking again.
type campaign struct {
	order    *siroccov1.Evacuation
	revision uint64

	tries  map[string]*try
	moved  int64
	failed int64
	slow   int64
	// pauses are those of the newest moves, in a ring.
	pauses []time.Duration
	next   int
	// lastFailure is the sentence about the newest failure.
	lastFailure string
	// before are counts that whoever drove the order before had, and that can't be seen
	// in the records any more.
	before struct{ moved, failed, slow int64 }
	// word is what the regions have been told.
	word word
}

// try is one sandbox's.
type try struct {
	// sent is the last attempt that was asked for, at; open until it is known how it
	// ended.
	sent int
	at   time.Time
	open bool
	// failed is how many attempts have failed, the last at failedAt, and why.
	failed       int
	failedAt     time.Time
	code, reason string
	moved        bool
}

func newCampaign(order *siroccov1.Evacuation, revision uint64) *campaign {
	return &campaign{order: order, revision: revision, tries: map[string]*try{}}
}

// rebuilt is called once everything that is in the records has been settled. Those that
// have left count as if they had arrived: whoever drove before may have seen that.
func (c *campaign) rebuilt(lookup func(id string) *siroccov1.Sandbox) {
	var left int64
	for id, t := range c.tries {
		if sb := lookup(id); t.open && sb != nil && !c.about(sb) {
			left++
		}
	}
	c.before.moved = max(0, c.order.GetMoved()-c.moved-left)
	c.before.failed = max(0, c.order.GetFailed()-c.failed)
	c.before.slow = max(0, c.order.GetSlow()-c.slow)
}

func (c *campaign) try(id string) *try {
	t := c.tries[id]
	if t == nil {
		t = &try{}
		c.tries[id] = t
	}
	return t
}

// settle takes in what a record says about a move of this order.
func (c *campaign) settle(sb *siroccov1.Sandbox, now time.Time) {
	order, id, n, err := evacuation.ParseKey(sb.GetMove().GetKey())
	if err != nil || order != c.order.GetId() || id != sb.GetId() {
		return
	}
	t, move := c.try(id), sb.GetMove()
	if n > t.sent {
		t.sent, t.at, t.open = n, now, true
	}
	c.fail(id, n-1, now, t.code, t.reason) // else it would not have been asked for again
	switch {
	case move.GetEnded() == nil:
		if lifecycle.Ended(sb.GetState()) && n == t.sent {
			t.open = false // it ended on the way: nothing is left to move
		}
	case move.GetFailure() == "" && move.GetFailureCode() == "":
		c.arrive(t, move.GetPause().AsDuration())
	case lifecycle.Ended(sb.GetState()):
		t.open = t.open && n != t.sent
	default:
		c.fail(id, n, now, move.GetFailureCode(), move.GetFailure())
	}
}

// refuse takes in that a command was refused. That the sandbox has ended is no failure.
func (c *campaign) refuse(id string, n int, code, reason string, sb *siroccov1.Sandbox, now time.Time) {
	if sb == nil || lifecycle.Ended(sb.GetState()) || ending(sb) {
		c.try(id).open = false
		return
	}
	c.fail(id, n, now, code, reason)
}

func (c *campaign) arrive(t *try, pause time.Duration) {
	t.open = false
	if t.moved {
		return
	}
	t.moved = true
	c.moved++
	if pause > c.order.GetMaxPause().AsDuration() {
		c.slow++
	}
	if len(c.pauses) < pausesKept {
		c.pauses = append(c.pauses, pause)
		return
	}
	c.pauses[c.next%pausesKept] = pause
	c.next++
}

func (c *campaign) fail(id string, n int, now time.Time, code, reason string) {
	t := c.try(id)
	if n <= t.failed || t.moved {
		return
	}
	c.failed += int64(n - t.failed)
	t.failed, t.failedAt, t.code, t.reason = n, now, code, reason
	if n >= t.sent {
		t.sent, t.open = n, false
	}
	if reason != "" {
		c.lastFailure = reason
	}
}

// gone forgets a sandbox that has ended.
func (c *campaign) gone(id string) {
	if t := c.tries[id]; t != nil {
		t.open = false
	}
}

// candidates are sandboxes that may be moved now, in the order in which they are.
type candidates struct{ fresh, due []*siroccov1.Sandbox }

// place says where a sandbox could go: hindrance says why nowhere now, barred why never.
type place func(sb *siroccov1.Sandbox) (hindrance, barred string)

// look counts what there is.
func (c *campaign) look(each func(func(*siroccov1.Sandbox) bool), where place, now time.Time) (evacuation.Seen, candidates) {
	var can candidates
	s := evacuation.Seen{
		Moved: max(c.before.moved+c.moved, c.order.GetMoved()), Failed: c.before.failed + c.failed, Slow: c.before.slow + c.slow, GivenBack: c.word.givenBack,
	}
	left, nodes := map[string]*siroccov1.EvacuationLeft{}, map[string]struct{}{}
	leave := func(code, reason string) {
		l := left[code]
		if l == nil {
			l = &siroccov1.EvacuationLeft{Code: code, Reason: reason}
			left[code] = l
		}
		l.Count++
	}
	each(func(sb *siroccov1.Sandbox) bool {
		t := c.tries[sb.GetId()]
		if t == nil {
			t = &try{}
		}
		moving := sb.GetState() == siroccov1.State_STATE_MIGRATING
		if lifecycle.Ended(sb.GetState()) || !c.about(sb) {
			if t.open && moving {
				s.UnderWay++ // it has left, and is about to arrive
			}
			return true
		}
		nodes[sb.GetPlacement().GetNode()] = struct{}{}
		if t.open && !moving && now.Sub(t.at) > answerLimit {
			c.fail(sb.GetId(), t.sent, now, string(fault.Deadline), fmt.Sprintf("nothing became of the command within %v", answerLimit))
			s.Failed = c.before.failed + c.failed
		}
		hindrance, barred := where(sb)
		running := sb.GetState() == siroccov1.State_STATE_RUNNING
		switch {
		case t.open:
			s.UnderWay++
		case ending(sb):
			s.Ending++
		case barred != "":
			s.Barred++
			leave(string(fault.FailedPrecondition), barred)
		case t.failed >= maxAttempts:
			s.GivenUp++
			leave(t.code, t.reason)
		case t.failed > 0:
			s.Again++
			if running && hindrance == "" && now.Sub(t.failedAt) >= firstRetry<<(t.failed-1) {
				s.Due++
				can.due = append(can.due, sb)
			}
		default:
			s.Fresh++
			if running && hindrance == "" {
				s.Ready++
				can.fresh = append(can.fresh, sb)
			} else if hindrance != "" {
				s.Hindrance = hindrance
			}
		}
		return true
	})
	for _, l := range left {
		s.Left = append(s.Left, l)
	}
	slices.SortFunc(s.Left, func(x, y *siroccov1.EvacuationLeft) int { return cmp.Compare(x.GetCode(), y.GetCode()) })
	s.Nodes, s.LastFailure = len(nodes), c.lastFailure
	s.P50, s.P99 = percentiles(c.pauses)
	return s, can
}

// about says whether a sandbox is where the order wants none.
func (c *campaign) about(sb *siroccov1.Sandbox) bool {
	p := sb.GetPlacement()
	if c.order.GetNode() != "" {
		return p.GetRegion() == c.order.GetRegion() && p.GetNode() == c.order.GetNode()
	}
	return p == nil || p.GetRegion() == c.order.GetRegion()
}

// ending says whether a sandbox is about to end.
func ending(sb *siroccov1.Sandbox) bool {
	return sb.GetDesired().GetStop() || sb.GetState() == siroccov1.State_STATE_STOPPING
}

// percentiles returns the median and the 99th percentile.
func percentiles(pauses []time.Duration) (p50, p99 time.Duration) {
	if len(pauses) == 0 {
		return 0, 0
	}
	sorted := slices.Sorted(slices.Values(pauses))
	at := func(share float64) time.Duration { return sorted[min(int(share*float64(len(sorted))), len(sorted)-1)] }
	return at(0.5), at(0.99)
}
