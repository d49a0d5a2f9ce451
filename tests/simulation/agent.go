package simulation

import (
	"errors"
	"time"

	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/move"
	nodev1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/node/v1"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/proto"
)

const (
	// reconcileEvery is how often an agent reads its records without being told to.
	reconcileEvery = 10 * time.Second
	streamTimeout  = 5 * time.Second
)

// agent is the node-agent of a machine. units and reserved die with it.
type agent struct {
	process
	m        *machine
	units    map[string]*unit
	reserved map[string]time.Time
	whole    bool
}

// unit is one sandbox in the hands of an agent: one task takes it through its life.
type unit struct {
	a *agent
	t *task
	e *entry
	// record is the newest of this region that is known.
	record        *siroccov1.Sandbox
	ready, broken bool // see move.Source
	told          *siroccov1.Sandbox
	// stopped is the end that its user wants, told to the node alone.
	stopped *siroccov1.End
}

// adopt begins an agent's life with what the one before has left.
func (a *agent) adopt() {
	a.units, a.reserved, a.whole = map[string]*unit{}, map[string]time.Time{}, true
	for _, id := range sorted(a.m.copies) {
		if a.m.journal[id] == nil {
			a.m.destroy(a.m.copies[id])
		}
	}
	for _, id := range sorted(a.m.journal) {
		a.launch(a.m.journal[id], true)
	}
}

func (a *agent) launch(e *entry, adopted bool) *unit {
	u := &unit{a: a, e: e, record: e.record, broken: adopted}
	a.units[e.id] = u
	u.t = a.spawn(func(t *task) {
		u.t = t
		u.live(t, adopted)
		delete(a.units, e.id)
	})
	return u
}

func (u *unit) copy() *execution { return u.a.m.copies[u.e.id] }

// save is a write of the journal, after which the agent may crash.
func (u *unit) save(t *task) {
	u.a.m.journal[u.e.id] = u.e
	u.e.record = u.record
	t.step()
}

// drop forgets the sandbox on this machine.
func (u *unit) drop(t *task) {
	u.a.m.destroy(u.copy())
	t.step()
	delete(u.a.m.journal, u.e.id)
}

// live takes a sandbox from the node's yes, or from an agent before this one, to its end.
func (u *unit) live(t *task, adopted bool) {
	if u.e.end == nil && u.e.waits {
		if u.copy() == nil || !u.awaitCommit(t) {
			u.drop(t)
			return
		}
	}
	if u.e.end == nil && !u.e.ready {
		if !u.start(t) {
			u.drop(t)
			return
		}
	}
	if u.e.end == nil && adopted && u.copy() == nil {
		u.e.end = &siroccov1.End{Cause: siroccov1.Cause_CAUSE_NODE_LOST}
	}
	if u.e.end == nil {
		end, theirs := u.watch(t)
		t.limit = 0
		if theirs {
			u.drop(t)
			return
		}
		u.e.end = end
		u.save(t)
	}
	u.a.m.destroy(u.copy())
	t.step()
	for !u.land(t) {
		t.rest(2 * time.Second)
	}
	for {
		_, err := update(t, u.a.region.bus, u.e.id, u.record, lifecycle.Finish{Epoch: u.e.epoch, End: u.e.end})
		if err == nil || errors.Is(err, errNone) {
			break
		}
		t.rest(2 * time.Second)
	}
	delete(u.a.m.journal, u.e.id)
}

// start makes the sandbox. It returns false if nobody wants it any more.
func (u *unit) start(t *task) bool {
	w := u.a.w
	// Nothing is waited for beyond the deadline, and nothing begun after it.
	left := u.record.GetDesired().GetDeadline().AsTime().Sub(u.a.clock())
	t.limit = w.now + max(left, time.Nanosecond)
	defer func() { t.limit = 0 }()
	if u.copy() == nil && left > 0 {
		t.sleep(w.between(20*time.Millisecond, time.Second))
		u.save(t)
		u.a.m.begin(&execution{id: u.e.id, epoch: u.e.epoch, runs: true})
		t.step()
	}
	for {
		if t.late() {
			u.e.end = &siroccov1.End{Cause: siroccov1.Cause_CAUSE_MAX_LIFETIME}
			u.e.landed = true
			return true
		}
		sb, err := update(t, u.a.region.bus, u.e.id, u.record, lifecycle.Run{Observed: &siroccov1.Observed{Epoch: u.e.epoch}})
		switch {
		case errors.Is(err, errNone), err == nil && u.superseded(sb):
			return false
		case err == nil:
			u.see(sb)
			u.e.ready, u.e.landed = true, true
			u.save(t)
			u.copy().ready = true
			w.watchExecution(u.copy())
			return true
		}
		t.rest(min(time.Second, t.limit-w.now))
	}
}

// see takes over a record unless it is older than what is known.
func (u *unit) see(sb *siroccov1.Sandbox) {
	if sb.GetRevision() > u.record.GetRevision() {
		u.record = sb
	}
}

// superseded says whether a record has moved past this execution.
func (u *unit) superseded(sb *siroccov1.Sandbox) bool {
	return lifecycle.Ended(sb.GetState()) || sb.GetPlacement().GetEpoch() > u.e.epoch ||
		sb.GetPlacement().GetEpoch() == u.e.epoch && sb.GetPlacement().GetNode() != u.a.m.node
}

// watch watches over a running sandbox. It returns how it ended, or that its record
// belongs to somebody else by now.
func (u *unit) watch(t *task) (end *siroccov1.End, theirs bool) {
	a := u.a
	t.poked = true
	if x := u.copy(); u.e.note.Phase == move.Idle || u.e.note.Phase == move.Returned || a.w.broken.AdoptRunning {
		a.m.resume(x)
	}
	for {
		if u.stopped != nil {
			return u.stopped, false
		}
		deadline := u.record.GetDesired().GetDeadline().AsTime()
		left := deadline.Sub(a.clock())
		if left <= 0 {
			return &siroccov1.End{Cause: siroccov1.Cause_CAUSE_MAX_LIFETIME}, false
		}
		if !a.w.broken.MoveBeforeDeadline {
			t.limit = a.w.now + left // whatever it waits for from here on
		}
		pause := min(left, reconcileEvery)
		if u.e.note.Phase != move.Idle || !u.e.landed {
			pause = min(left, time.Second)
		}
		t.rest(pause)
		if !u.land(t) {
			continue
		}
		sb, err := get(t, a.region.bus, u.e.id)
		forgotten := errors.Is(err, errNone)
		if err == nil {
			u.see(sb)
		}
		if forgotten || u.superseded(u.record) && u.record.GetPlacement().GetEpoch() == u.e.epoch {
			return nil, true
		}
		if d := u.record.GetDesired(); d.GetStop() && u.record.GetPlacement().GetEpoch() == u.e.epoch {
			return &siroccov1.End{Cause: d.GetStopCause(), Message: d.GetStopReason()}, false
		}
		if u.leave(t, forgotten) {
			return nil, true
		}
	}
}

// land writes that a copy has arrived, if that is still to be written. It says whether
// it is written.
func (u *unit) land(t *task) bool {
	if u.e.landed {
		return true
	}
	a := u.a
	arrive := lifecycle.Arrive{Observed: &siroccov1.Observed{Epoch: u.e.epoch}}
	sb, err := change(t, a.region.bus, u.e.id, nil, func(here *siroccov1.Sandbox) (*siroccov1.Sandbox, bool, error) {
		if a.w.broken.FollowBlindly && here != nil {
			next := proto.CloneOf(u.record)
			next.Revision = here.GetRevision()
			if arrived, err := lifecycle.Apply(next, arrive, a.clock()); err == nil {
				return arrived, true, nil
			}
		}
		if a.w.broken.LandAtOnce && here != nil && u.e.source != a.region {
			arrived, err := lifecycle.Apply(u.record, arrive, a.clock())
			if err != nil {
				arrived = u.record
			}
			next, write := move.Announce(here, arrived, a.region.name, a.clock())
			if !write {
				next = here
			}
			return next, write, nil
		}
		next, write := move.Land(here, u.record, a.region.name, arrive, a.clock())
		return next, write, nil
	})
	if err != nil {
		return false
	}
	u.e.landed = true
	u.record = sb
	u.save(t)
	return true
}

// place is the node's word on whether it runs a sandbox.
func (a *agent) place(sb *siroccov1.Sandbox) (bool, error) {
	if u := a.units[sb.GetId()]; u != nil {
		if u.e.epoch == sb.GetPlacement().GetEpoch() {
			return true, nil
		}
		u.t.poke()
		return false, nil
	}
	if !a.fits(sb.GetId()) {
		return false, nil
	}
	a.launch(&entry{id: sb.GetId(), epoch: sb.GetPlacement().GetEpoch(), record: sb}, false)
	return true, nil
}

// fits says whether there is room for one more; what was reserved counts.
func (a *agent) fits(id string) bool {
	used := len(a.units)
	for other, until := range a.reserved {
		if other != id && a.units[other] == nil && a.clock().Before(until) {
			used++
		}
	}
	return used < a.m.capacity
}

// stop ends a sandbox that runs here, and says whether it will. On a move it does not:
// the sandbox may be on its way already.
func (a *agent) stop(id string, epoch uint64) (bool, error) {
	u := a.units[id]
	if u == nil || u.e.epoch != epoch || !u.e.ready || u.e.waits || u.e.end != nil || u.e.note.Phase != move.Idle {
		return false, nil
	}
	u.stopped = &siroccov1.End{Cause: siroccov1.Cause_CAUSE_USER}
	u.t.poke()
	return true, nil
}

// sync makes a unit read its record again, and says whether there is one.
func (a *agent) sync(id string) (bool, error) {
	u := a.units[id]
	if u != nil {
		u.t.poke()
	}
	return u != nil, nil
}

func (a *agent) inventory() ([]*nodev1.InventoryItem, error) {
	var items []*nodev1.InventoryItem
	for _, id := range sorted(a.units) {
		items = append(items, &nodev1.InventoryItem{Tenant: tenant, Id: id, Epoch: a.units[id].e.epoch})
	}
	return items, nil
}
