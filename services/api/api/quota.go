package api

import (
	"maps"
	"sync"
	"time"

	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

// seatTime is how long a seat is kept for a create that the view does not show: a
// command that was published is a record within it unless the schedulers are
// away, and one that a scheduler refuses never is.
const seatTime = time.Minute

// seats say who may have one more sandbox. A sandbox takes a seat of its tenant
// before it is written and has it until it has ended: so that a burst does not pass
// the limit while the view lags behind, what this process has let in counts from
// then on, under its idempotency key, until the view shows it.
//
// Safety: of what goes through this process, a tenant never has more than most,
// but for commands that wait in the queue for longer than seatTime. Liveness: a
// create that comes to nothing gives its seat back, at once or after seatTime.
type seats struct {
	most int // of each tenant; 0: any number

	mu      sync.Mutex
	tenants map[string]*tenancy
}

// tenancy is what is known of one tenant.
type tenancy struct {
	// live counts the sandboxes of the view that have not ended.
	live int
	// shown counts the records of the view by idempotency key, ended ones too.
	shown map[string]int
	// coming holds, by idempotency key, the seats of what the view does not show
	// yet.
	coming map[string]*seat
}

// seat is what one key has taken.
type seat struct {
	takers int // calls with the key that have not failed
	until  time.Time
}

func newSeats(most int) *seats { return &seats{most: most, tenants: map[string]*tenancy{}} }

func (s *seats) of(tenant string) *tenancy {
	t := s.tenants[tenant]
	if t == nil {
		t = &tenancy{shown: map[string]int{}, coming: map[string]*seat{}}
		s.tenants[tenant] = t
	}
	return t
}

// change follows the view of the records, in order.
func (s *seats) change(old, now *siroccov1.Sandbox) {
	if s.most == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if old != nil {
		s.of(old.GetTenant()).show(old, -1)
	}
	if now != nil {
		s.of(now.GetTenant()).show(now, 1)
		return
	}
	if t := s.of(old.GetTenant()); len(t.shown) == 0 && len(t.coming) == 0 {
		delete(s.tenants, old.GetTenant())
	}
}

func (t *tenancy) show(sb *siroccov1.Sandbox, n int) {
	key := sb.GetIdempotencyKey()
	if t.shown[key] += n; t.shown[key] == 0 {
		delete(t.shown, key)
	}
	if n > 0 {
		delete(t.coming, key)
	}
	if !lifecycle.Ended(sb.GetState()) {
		t.live += n
	}
}

// take takes a seat for what is to be made under a key. A key that has made
// something already needs none: the answer is that one. Errors: Quota.
func (s *seats) take(tenant, key string, now time.Time) error {
	if s.most == 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.of(tenant)
	if t.shown[key] > 0 {
		return nil
	}
	if have := t.coming[key]; have != nil {
		have.takers, have.until = have.takers+1, now.Add(seatTime)
		return nil
	}
	if t.live+len(t.coming) >= s.most {
		maps.DeleteFunc(t.coming, func(_ string, x *seat) bool { return !now.Before(x.until) })
	}
	if taken := t.live + len(t.coming); taken >= s.most {
		f := fault.New(fault.Quota, "you have %d sandboxes that have not ended; %d are allowed", taken, s.most)
		f.Scope, f.RetryAfter = "tenant", 5*time.Second
		return f
	}
	t.coming[key] = &seat{takers: 1, until: now.Add(seatTime)}
	return nil
}

// giveBack undoes take for a create that came to nothing. The seat is free once
// all calls with the key have come to nothing.
func (s *seats) giveBack(tenant, key string) {
	if s.most == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	coming := s.of(tenant).coming
	if have := coming[key]; have != nil {
		if have.takers--; have.takers == 0 {
			delete(coming, key)
		}
	}
}
