package scheduler

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sirocco-run/sirocco/services/scheduler/placement"
)

// room is where creates wait for capacity. What comes free is offered to tenants
// in turn, and to the creates of one tenant in the order in which they came: not
// to who happens to look first. A smaller one may overtake a larger one that does
// not fit.
type room struct {
	// try looks for a node, and counts the sandbox on the one it has found.
	try func(*waiter) placement.Plan

	mu sync.Mutex
	// lines are who waits, by tenant and in order; turns are the tenants, who was
	// served longest ago first.
	lines  map[string][]*waiter
	turns  []string
	shapes map[shape]int // how many wait of each
}

// shape is what decides whether a sandbox fits: where one does not, no other of
// its shape does.
type shape struct {
	need    placement.Amount
	regions string
}

// waiter is one create that looks for a node.
type waiter struct {
	tenant, template string
	req              placement.Request
	shape            shape
	// The room's lock guards the rest. plan is what the last try has found; found
	// is closed once there are candidates in it.
	plan  placement.Plan
	tried bool
	found chan struct{}
	gone  bool
}

func newRoom(try func(*waiter) placement.Plan) *room {
	return &room{try: try, lines: map[string][]*waiter{}, shapes: map[shape]int{}}
}

func newWaiter(tenant, template string, req placement.Request) *waiter {
	return &waiter{tenant: tenant, template: template, req: req, shape: shape{req.Need, strings.Join(req.Regions, " ")}}
}

// holds says whether one of the same shape waits: who comes now waits behind it.
func (r *room) holds(w *waiter) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.shapes[w.shape] > 0
}

// wait returns the plan with candidates that the waiter gets when it is its turn
// and something fits. Without one until then, it is the last that there was.
func (r *room) wait(ctx context.Context, w *waiter, until time.Time) (placement.Plan, error) {
	r.mu.Lock()
	r.enter(w)
	r.mu.Unlock()
	over := time.NewTimer(time.Until(until))
	defer over.Stop()
	var err error
	select {
	case <-w.found:
	case <-over.C:
	case <-ctx.Done():
		err = ctx.Err()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(w.plan.Candidates) == 0 {
		r.leave(w)
		if err == nil && !w.tried {
			w.plan = r.try(w)
		}
	}
	return w.plan, err
}

// enter puts a waiter at the end of its tenant's line.
func (r *room) enter(w *waiter) {
	w.found, w.plan, w.tried = make(chan struct{}), placement.Plan{}, false
	if r.lines[w.tenant] == nil {
		r.turns = append(r.turns, w.tenant)
	}
	r.lines[w.tenant] = append(r.lines[w.tenant], w)
	r.shapes[w.shape]++
}

// leave takes a waiter out; its place in the line is skipped.
func (r *room) leave(w *waiter) {
	w.gone = true
	if r.shapes[w.shape]--; r.shapes[w.shape] == 0 {
		delete(r.shapes, w.shape)
	}
}

// offer gives away what is free, one to each tenant in turn, until nobody's fits.
func (r *room) offer() {
	r.mu.Lock()
	defer r.mu.Unlock()
	full, from := map[shape]placement.Plan{}, map[string]int{}
	for turns := slices.Clone(r.turns); len(turns) > 0; turns = turns[1:] {
		tenant := turns[0]
		if !r.serve(tenant, from, full) {
			continue
		}
		turns = append(turns, tenant)
		at := slices.Index(r.turns, tenant)
		r.turns = append(slices.Delete(r.turns, at, at+1), tenant)
	}
	for tenant, line := range r.lines {
		if r.lines[tenant] = slices.DeleteFunc(line, func(w *waiter) bool { return w.gone }); len(r.lines[tenant]) == 0 {
			delete(r.lines, tenant)
		}
	}
	r.turns = slices.DeleteFunc(r.turns, func(tenant string) bool { return r.lines[tenant] == nil })
}

// serve gives the first of a tenant's line that fits what it needs, and says
// whether there was one. full is what is known not to fit, from whom in each line
// it has not been tried yet.
func (r *room) serve(tenant string, from map[string]int, full map[shape]placement.Plan) bool {
	line := r.lines[tenant]
	for from[tenant] < len(line) {
		w := line[from[tenant]]
		from[tenant]++
		if w.gone {
			continue
		}
		plan, known := full[w.shape]
		if !known {
			plan = r.try(w)
		}
		w.plan, w.tried = plan, true
		if len(plan.Candidates) > 0 {
			r.leave(w)
			close(w.found)
			return true
		}
		full[w.shape] = plan
	}
	return false
}

// run offers what there is until ctx ends.
func (r *room) run(ctx context.Context) error {
	tick := time.NewTicker(capacityPoll)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			r.offer()
		}
	}
}
