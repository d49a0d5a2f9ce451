package weight

import "time"

// plan is one step over all regions.
type plan struct {
	Config
	dt    time.Duration
	slots []slot
}

// tiny is what sums may be off by, as a part of them.
const tiny = 1e-12

// totals are the masses before and after the step, and the least that must stay
// in.
func (p *plan) totals() (from, to, least float64) {
	for i := range p.slots {
		w := &p.slots[i]
		from += w.from
		to += w.to
		least += w.capacity
	}
	return from, to, least * (1 - p.MaxDrained)
}

// raise brings the mass before the step up to the least, if a death or a person
// took from it what had stayed in: first with what is on its way in anyway, then
// with what drains. Each goes the same part of its way up to 1.
func (p *plan) raise() {
	for _, d := range [...]Direction{In, Out} {
		have, _, least := p.totals()
		missing := least - have
		if missing <= tiny*least {
			return
		}
		var room float64
		for i := range p.slots {
			if w := &p.slots[i]; w.r.Direction == d && !w.fixed {
				room += w.capacity - w.from
			}
		}
		if room <= 0 {
			continue
		}
		part := min(missing/room, 1)
		for i := range p.slots {
			if w := &p.slots[i]; w.r.Direction == d && !w.fixed && w.capacity > 0 {
				w.from = min(w.from+part*(w.capacity-w.from), w.capacity)
				w.mark(CauseHalf)
			}
		}
	}
}

// mark names a cause, unless one that matters more is named.
func (w *slot) mark(c Cause) {
	switch w.cause {
	case CauseDead, CauseOverride, CauseUnknown, CauseHalf:
	default:
		w.cause = c
	}
}

// finish makes decisions and state of the masses.
func (p *plan) finish(now time.Time) (State, []Decision) {
	_, total, _ := p.totals()
	s := State{At: now, Regions: make([]RegionState, len(p.slots))}
	out := make([]Decision, len(p.slots))
	for i := range p.slots {
		w := &p.slots[i]
		if w.capacity > 0 {
			w.r.Level = unit(w.to / w.capacity)
		}
		s.Regions[i] = w.r
		out[i] = Decision{Region: w.r.Name, Level: w.r.Level, Score: w.r.Score, Direction: w.r.Direction, Cause: w.cause}
		if total > 0 {
			out[i].Weight = w.to / total
		}
	}
	return s, out
}
