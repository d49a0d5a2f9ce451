package simulation

import (
	"fmt"
	"slices"
	"time"

	"github.com/sirocco-run/sirocco/pkg/invariants"
	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/record"
	nodev1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/node/v1"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

// The invariants, by the names under which a failure tells them.
const (
	Ends        = "an accepted request ends in running, failed with a cause, or stopped"
	OnceOnly    = "at most one live execution of an epoch"
	NewestOnly  = "only the newest epoch serves"
	NothingLost = "what was answered is in the sandbox's memory"
	OneKey      = "one key is one sandbox"
	NoOrphan    = "nothing runs that no record wants"
	Deadlines   = "deadlines hold"
	NoReason    = "nothing ends without a reason"
	Promised    = "a change that was promised is made"
)

// grace is how late a deadline may be applied by a node whose clock is right.
const grace = 5 * time.Second

// truth is what an observer knows who sees everything at once.
type truth struct {
	// lost are sandboxes of which something was on a machine that lost power.
	lost map[string]bool
	// ids is the sandbox of each key, sentTo where it is made.
	ids    map[string]string
	sentTo map[string]*region
	// acked is what was answered, tags what was promised, in this order.
	acked           map[string][]int
	tags            map[string][]string
	mayEnd, mustEnd map[string]bool
	// first and last are the earliest and the latest deadline that a sandbox ever had.
	first, last map[string]time.Time
}

func newTruth() truth {
	return truth{
		lost: map[string]bool{}, ids: map[string]string{}, sentTo: map[string]*region{}, acked: map[string][]int{},
		tags: map[string][]string{}, mayEnd: map[string]bool{}, mustEnd: map[string]bool{},
		first: map[string]time.Time{}, last: map[string]time.Time{},
	}
}

// keyed sees a key claimed.
func (w *world) keyed(key, id string) {
	if other := w.ids[key]; other != "" {
		w.violated(OneKey, "%s gives %s after %s", key, id, other)
	}
	w.ids[key] = id
}

// written sees every write of a record.
func (w *world) written(b *bus, sb *siroccov1.Sandbox) {
	id, deadline := sb.GetId(), sb.GetDesired().GetDeadline().AsTime()
	if first, ok := w.first[id]; !ok || deadline.Before(first) {
		w.first[id] = deadline
	}
	if deadline.After(w.last[id]) {
		w.last[id] = deadline
	}
	if !lifecycle.Ended(sb.GetState()) {
		return
	}
	ran := lifecycle.Reached(sb, siroccov1.State_STATE_RUNNING)
	known := false
	switch sb.GetEnd().GetCause() {
	case siroccov1.Cause_CAUSE_USER:
		known = w.mayEnd[id]
	case siroccov1.Cause_CAUSE_MAX_LIFETIME:
		known = !t0.Add(w.now + w.mood.skew + time.Second).Before(w.first[id])
	case siroccov1.Cause_CAUSE_NODE_LOST:
		home := w.home(sb)
		known = w.lost[id] || w.now-home.region.bus.hearts[home.name] > nodeLost-10*time.Second
	case siroccov1.Cause_CAUSE_NO_CAPACITY:
		known = !ran
	default: // nothing else happens here
	}
	w.seen["ended: "+record.CauseName(sb.GetEnd().GetCause())]++
	if !known {
		w.violated(NoReason, "%s ended by %s", id, sb.GetEnd().GetCause())
	}
}

// watchExecution sees an execution begin, go on, or become the sandbox.
func (w *world) watchExecution(x *execution) {
	if !x.runs {
		return
	}
	for _, r := range w.order {
		for _, m := range r.machines {
			other := m.copies[x.id]
			if other == nil || other == x || !other.runs {
				continue
			}
			if other.epoch == x.epoch {
				w.violated(OnceOnly, "%s epoch %d runs on %s and on %s", x.id, x.epoch, x.on, other.on)
			}
			if other.ready && x.ready {
				w.violated(NewestOnly, "%s runs as epoch %d on %s and as %d on %s", x.id, x.epoch, x.on, other.epoch, other.on)
			}
		}
	}
	if x.ready {
		w.served(x)
	}
}

// served sees an execution that answers, or could.
func (w *world) served(x *execution) {
	w.seen["memory checked"]++
	for _, value := range w.acked[x.id] {
		if !slices.Contains(x.memory, value) {
			w.violated(NothingLost, "%s epoch %d on %s has not %d, which was answered", x.id, x.epoch, x.on, value)
			return
		}
	}
}

// watchDeadlines looks every second for what has lived too long.
func (w *world) watchDeadlines() {
	now := t0.Add(w.now)
	for _, r := range w.order {
		for _, m := range r.machines {
			if !m.agent.up {
				m.since = w.now
			}
			patience := grace + w.mood.skew
			for _, id := range sorted(m.copies) {
				late := min(now.Sub(w.last[id]), w.now-m.since)
				if m.copies[id].runs && late > patience {
					w.violated(Deadlines, "%s lives on %s %s after its deadline", id, m.name, late)
				}
			}
		}
	}
	w.after(time.Second, w.watchDeadlines)
}

// settled returns what does not hold that must once nothing has gone wrong for a while.
func (w *world) settled() []string {
	var broken []string
	say := func(invariant, format string, args ...any) {
		broken = append(broken, invariant+": "+fmt.Sprintf(format, args...))
	}
	owned := map[string]string{} // the region of each living sandbox
	records := map[string]*siroccov1.Sandbox{}
	for _, r := range w.order {
		var own []*siroccov1.Sandbox
		for _, id := range r.bus.ids {
			sb := r.bus.latest(id)
			if sb == nil || lifecycle.Shadow(sb, r.name) {
				continue
			}
			ended := lifecycle.Ended(sb.GetState())
			if other := owned[id]; other != "" && !ended {
				say(NewestOnly, "%s is %s's and %s's", id, other, r.name)
			}
			if !ended {
				owned[id] = r.name
			}
			if records[id] == nil || !ended {
				records[id] = sb
			}
			own = append(own, sb)
		}
		inventories := map[string][]*nodev1.InventoryItem{}
		for _, m := range r.machines {
			inventories[m.node] = m.inventory()
		}
		for _, line := range invariants.Records(own, t0.Add(w.now-w.mood.skew)) {
			say(Ends, "%s: %s", r.name, line)
		}
		for _, line := range invariants.Inventories(inRegion(own, r.name), inventories) {
			say(NoOrphan, "%s: %s", r.name, line)
		}
	}
	w.settledShadows(owned, say)
	w.settledPromises(records, say)
	return broken
}

// inRegion leaves out what has ended elsewhere: a shadow keeps the placement.
func inRegion(all []*siroccov1.Sandbox, region string) []*siroccov1.Sandbox {
	var out []*siroccov1.Sandbox
	for _, sb := range all {
		if p := sb.GetPlacement(); p == nil || p.GetRegion() == region {
			out = append(out, sb)
		}
	}
	return out
}

// settledShadows: each shadow is of a sandbox that some region holds, and nothing is
// paused.
func (w *world) settledShadows(owned map[string]string, say func(invariant, format string, args ...any)) {
	for _, r := range w.order {
		for _, id := range r.bus.ids {
			sb := r.bus.latest(id)
			if sb == nil || !lifecycle.Shadow(sb, r.name) {
				continue
			}
			if owned[id] != sb.GetPlacement().GetRegion() {
				say(Ends, "%s is only a shadow in %s: %s", id, r.name, fmt.Sprint(state{sb}))
			}
		}
		for _, m := range r.machines {
			for _, id := range sorted(m.copies) {
				if x := m.copies[id]; !x.runs {
					say(Ends, "%s epoch %d is still paused on %s", id, x.epoch, x.on)
				}
			}
		}
	}
}

// settledPromises: what was answered with a yes has come about.
func (w *world) settledPromises(records map[string]*siroccov1.Sandbox, say func(invariant, format string, args ...any)) {
	for _, u := range w.users {
		sb := records[u.id]
		if u.id == "" {
			continue
		}
		if sb == nil {
			say(Ends, "%s was accepted, and there is no record", u.id)
			continue
		}
		ended := lifecycle.Ended(sb.GetState())
		if w.mustEnd[u.id] && !ended {
			say(Promised, "%s was to end", u.id)
		}
		if tags := w.tags[u.id]; len(tags) == 1 && !ended && sb.GetSpec().GetTags()["tag"] == "" {
			say(Promised, "%s was to have the tag %s", u.id, tags[0])
		}
		if w.ids[u.key] != u.id {
			say(OneKey, "%s gave %s, and then %s", u.key, u.id, w.ids[u.key])
		}
	}
}
