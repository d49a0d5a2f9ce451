package weight

import (
	"slices"
	"strings"
	"time"
)

// settled is how near to its target a smoothed value counts as there: smoothing
// alone would never arrive.
const settled = 1e-4

// settle ends the way of a value that is as good as at its target.
func settle(value, target float64, dt time.Duration) float64 {
	if dt > 0 && value-target < settled && target-value < settled {
		return target
	}
	return value
}

// slot is one region within a step. Its mass is capacity × level: weights are in
// proportion to it.
type slot struct {
	in *Region
	r  RegionState
	// fixed: a person has set the level.
	fixed    bool
	capacity float64 // that is alive
	// from is the mass before the step, with all that takes effect at once; to the
	// mass after it.
	from, to float64
	// wanted is what to would be if there were no bounds.
	wanted float64
	// share is the weight by from, most what it may be after the step.
	share, most float64
	pinned      bool
	cause       Cause
}

// Step makes one step: from what is remembered and what is known now to the
// weights, in the order of the names, and what is to be remembered. A region that
// is not among the regions is forgotten; one that can't be seen should be there,
// dead or with Known false. The input is not changed.
//
// Some things take effect at once: death, loss of capacity, a person's word, and
// that half of the capacity must stay. Added capacity and new regions come in as
// a region does that was drained. From there levels are smoothed towards 1 (in)
// or the score (out), and the change is then made as small as it must be for the
// half and for the receivers.
func (c Config) Step(s State, regions []Region, now time.Time) (State, []Decision) {
	now = now.Round(0).UTC() // as it comes back from JSON
	var dt time.Duration
	if !s.At.IsZero() {
		dt = min(max(now.Sub(s.At), 0), c.MaxStep)
	}
	p := plan{Config: c, dt: dt, slots: make([]slot, 0, len(regions))}
	for i := range regions {
		p.slots = append(p.slots, c.begin(&s, &regions[i], now, dt))
	}
	slices.SortStableFunc(p.slots, func(a, b slot) int { return strings.Compare(a.r.Name, b.r.Name) })
	p.slots = slices.CompactFunc(p.slots, func(a, b slot) bool { return a.r.Name == b.r.Name })

	p.raise()
	for i := range p.slots {
		c.aim(&p.slots[i], dt)
	}
	p.bound()
	return p.finish(now)
}

// begin takes a region into a step: its direction, and what takes effect at once.
func (c Config) begin(s *State, in *Region, now time.Time, dt time.Duration) slot {
	old, found := s.find(in.Name)
	w := slot{in: in, r: old, capacity: in.alive(), fixed: in.Override.holds(now)}
	w.r.Name = in.Name
	if w.capacity == 0 {
		c.leave(&w.r)
		w.r = RegionState{Name: in.Name, Score: 1, Direction: Out, Dead: true, Relapses: w.r.Relapses}
		w.cause = CauseDead
		return w
	}
	c.look(&w.r, in, dt)
	switch {
	case !found:
		c.enter(&w.r, len(s.Regions) == 0)
	case old.Capacity > 0 && w.capacity > old.Capacity:
		w.r.Level *= old.Capacity / w.capacity
	}
	w.r.Capacity = w.capacity
	w.cause = c.turn(&w.r, dt)
	if !in.Known {
		w.cause = CauseUnknown
	}
	if w.fixed {
		w.r.Level = in.Override.level()
		w.cause = CauseOverride
	}
	w.from = w.capacity * w.r.Level
	return w
}

// look takes the score in.
func (c Config) look(r *RegionState, in *Region, dt time.Duration) {
	switch score := unit(in.Score); {
	case in.Known && r.Seen:
		r.Score = settle(Approach(r.Score, score, Alpha(dt, c.TauScore)), score, dt)
	case in.Known:
		r.Score, r.Seen = score, true
	case !r.Seen:
		r.Score = 1
	}
}

// enter gives a region its first state: at the very first step the level that its
// score calls for, and later none, from which it comes in.
func (c Config) enter(r *RegionState, first bool) {
	r.Direction, r.Held = In, longestHeld
	if r.Score < c.OutBelow {
		r.Direction, r.Held = Out, 0
	}
	switch {
	case !first:
		r.Level = 0
	case r.Direction == Out:
		r.Level = r.Score
	default:
		r.Level = 1
	}
}

// turn changes a region's direction if its score says so and it has dwelt for
// long enough; it returns the cause of what follows.
func (c Config) turn(r *RegionState, dt time.Duration) Cause {
	r.Held = min(r.Held+dt, longestHeld)
	back := c.InAbove
	if r.Dead {
		back = c.OutBelow
	}
	switch {
	case r.Direction == In && r.Score < c.OutBelow:
		if r.Held < c.DwellIn {
			return CauseDwell
		}
		c.leave(r)
	case r.Direction == Out && r.Score > back:
		if r.Held < c.DwellOut<<r.Relapses {
			return CauseDwell
		}
		r.Direction, r.Held, r.Dead = In, 0, false
	}
	switch {
	case r.Direction == Out:
		return CauseDraining
	case r.Level < 1-visible:
		return CauseReturning
	}
	return CauseSteady
}

// leave turns a region out, if it was in, and notes whether it had come back only
// lately.
func (c Config) leave(r *RegionState) {
	if r.Direction != In {
		return
	}
	if r.Held < c.Relapse {
		r.Relapses = min(r.Relapses+1, mostRelapses)
	} else {
		r.Relapses = 0
	}
	r.Direction, r.Held = Out, 0
}

// aim sets where a region's mass would go if it were alone. A region on its way
// out never rises: what comes and goes between the two thresholds moves nothing.
func (c Config) aim(w *slot, dt time.Duration) {
	w.to, w.wanted = w.from, w.from
	if w.capacity == 0 || w.fixed || !w.in.Known {
		return
	}
	level, target := w.from/w.capacity, 1.0
	if w.r.Direction == Out {
		target = min(level, w.r.Score)
	}
	w.to = w.capacity * settle(c.Taus.Follow(level, target, dt), target, dt)
	w.wanted = w.to
}
