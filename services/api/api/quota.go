package api

import (
	"sync"
	"time"

	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/quota"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

// seatTime is how long a seat is kept for a create that the view does not show: a
// command that was published is a record within it unless the schedulers are
// away, and one that a scheduler refuses never is.
const seatTime = time.Minute

// seats say who may have one more sandbox. A sandbox takes a seat of its tenant
// before it is written and has it until it has ended: so that a burst does not pass
// a limit while the view lags behind, what this process has let in counts from
// then on, under its idempotency key, until the view shows it. What another
// process has let in counts as soon as the view shows it, against the rate too.
//
// Safety: of what goes through this process, a tenant never has more than its
// limits, but for commands that wait in the queue for longer than seatTime.
// Liveness: a create that comes to nothing gives its seat back, at once or after
// seatTime.
type seats struct {
	limits func(tenant string) quota.Limits
	// began: what was accepted before says nothing about the rate.
	began time.Time

	mu      sync.Mutex
	tenants map[string]*tenancy
}

// tenancy is what is known of one tenant.
type tenancy struct {
	// live is about the sandboxes of the view that have not ended.
	live quota.Usage
	// shown counts the records of the view by idempotency key, ended ones too.
	shown map[string]int
	// coming holds, by idempotency key, the seats of what the view does not show
	// yet; taken is what they add up to.
	coming map[string]*seat
	taken  quota.Usage
	bucket quota.Bucket
}

// seat is what one key has taken.
type seat struct {
	use    quota.Usage
	takers int // calls with the key that have not failed
	until  time.Time
}

func newSeats(limits func(tenant string) quota.Limits) *seats {
	return &seats{limits: limits, began: time.Now(), tenants: map[string]*tenancy{}}
}

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
	s.mu.Lock()
	defer s.mu.Unlock()
	if old == nil {
		s.appear(now)
	}
	if old != nil {
		s.of(old.GetTenant()).show(old, -1)
	}
	if now != nil {
		s.of(now.GetTenant()).show(now, 1)
		return
	}
	t := s.of(old.GetTenant())
	if len(t.shown) == 0 && len(t.coming) == 0 && t.bucket.Full(s.limits(old.GetTenant()), time.Now()) {
		delete(s.tenants, old.GetTenant())
	}
}

// appear charges a tenant for a sandbox that this process has not let in.
func (s *seats) appear(sb *siroccov1.Sandbox) {
	t := s.of(sb.GetTenant())
	if t.coming[sb.GetIdempotencyKey()] == nil && lifecycle.Entered(sb, siroccov1.State_STATE_ACCEPTED).After(s.began) {
		t.bucket.Charge(s.limits(sb.GetTenant()), time.Now())
	}
}

func (t *tenancy) show(sb *siroccov1.Sandbox, n int) {
	key := sb.GetIdempotencyKey()
	if t.shown[key] += n; t.shown[key] == 0 {
		delete(t.shown, key)
	}
	if n > 0 {
		t.leave(key)
	}
	switch use := useOf(sb.GetSpec()); {
	case lifecycle.Ended(sb.GetState()):
	case n > 0:
		t.live = t.live.Add(use)
	default:
		t.live = t.live.Sub(use)
	}
}

// leave frees the seat of a key, if it has one.
func (t *tenancy) leave(key string) {
	if have := t.coming[key]; have != nil {
		t.taken = t.taken.Sub(have.use)
		delete(t.coming, key)
	}
}

// useOf is what a sandbox takes of its tenant's limits.
func useOf(spec *siroccov1.CreateSandboxRequest) quota.Usage {
	return quota.Usage{Live: 1, MemoryBytes: spec.GetResources().GetMemoryRequestBytes()}
}

// take takes a seat for what is to be made under a key. A key that has made
// something already needs none: the answer is that one. Errors: Quota.
func (s *seats) take(tenant, key string, use quota.Usage, now time.Time) error {
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
	limits := s.limits(tenant)
	f := limits.Admit(t.live.Add(t.taken), use, &t.bucket, now)
	if f != nil && f.Field != quota.CreateRate && t.expire(now) {
		f = limits.Admit(t.live.Add(t.taken), use, &t.bucket, now)
	}
	if f != nil {
		return f
	}
	t.coming[key] = &seat{use: use, takers: 1, until: now.Add(seatTime)}
	t.taken = t.taken.Add(use)
	return nil
}

// expire frees the seats whose time is over, and says whether there were any.
func (t *tenancy) expire(now time.Time) bool {
	before := len(t.coming)
	for key, have := range t.coming {
		if !now.Before(have.until) {
			t.leave(key)
		}
	}
	return len(t.coming) < before
}

// giveBack undoes take for a create that came to nothing. The seat is free once
// all calls with the key have come to nothing; the rate remembers it.
func (s *seats) giveBack(tenant, key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.of(tenant)
	if have := t.coming[key]; have != nil {
		if have.takers--; have.takers == 0 {
			t.leave(key)
		}
	}
}

// usage returns what each tenant has that has something: the sandboxes of the view.
func (s *seats) usage() map[string]quota.Usage {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string]quota.Usage{}
	for name, t := range s.tenants {
		if t.live != (quota.Usage{}) {
			out[name] = t.live
		}
	}
	return out
}
