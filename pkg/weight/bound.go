package weight

import "math"

// visible is the difference of a level that is worth telling.
const visible = 1e-9

// bound makes the change as small as it must be.
func (p *plan) bound() {
	from, _, _ := p.totals()
	if from <= 0 {
		return
	}
	// To move all traffic within a second, this many sandboxes would have to be
	// started.
	var live, creates float64
	for i := range p.slots {
		live += amount(p.slots[i].in.Live)
		creates += amount(p.slots[i].in.Creates)
	}
	traffic := max(live, creates, 1)
	for i := range p.slots {
		w := &p.slots[i]
		w.share = w.from / from
		w.most = w.share + min(p.Slew*p.dt.Seconds(), w.in.intake(p.dt)/traffic)
	}
	if p.pin() {
		p.lift()
	}
	p.keep()
	p.blend()
	for i := range p.slots {
		if w := &p.slots[i]; max(w.to-w.wanted, w.wanted-w.to) > visible*w.capacity {
			w.mark(CauseReceivers)
		}
	}
}

// pin lowers each region whose share would grow beyond what it can start to just
// that, so that one that is full does not keep the others from taking over
// (water-filling). The pinned have the sum of their bounds, the rest shares what
// is left: total = rest / (1 − Σ bounds). Each pin makes the others' shares
// larger, so it goes on until none is over. It says whether one was pinned; when
// there is nobody left to take over, none is, and blend alone bounds the change.
func (p *plan) pin() bool {
	for range p.slots {
		var rest, bounds float64
		for i := range p.slots {
			if w := &p.slots[i]; w.pinned {
				bounds += w.most
			} else {
				rest += w.to
			}
		}
		if rest <= 0 || bounds >= 1 {
			return false
		}
		total, more := rest/(1-bounds), false
		for i := range p.slots {
			if w := &p.slots[i]; !w.pinned && !w.fixed && w.to > w.most*total*(1+tiny) {
				w.pinned, more = true, true
			}
		}
		if more {
			continue
		}
		for i := range p.slots {
			if w := &p.slots[i]; w.pinned {
				w.to = w.most * total
			}
		}
		return bounds > 0
	}
	return false
}

// lift makes all masses larger by the same factor, which changes no share, until
// one would be above both what it was and what it wanted to be. So it is the
// region that drains which goes slower where receivers are slow; otherwise
// healthy ones would be lowered instead. What a person has set is what it was and
// wants to be, so it changes nothing there.
func (p *plan) lift() {
	factor := math.Inf(1)
	for i := range p.slots {
		if w := &p.slots[i]; w.to > 0 {
			factor = min(factor, max(w.from, w.wanted)/w.to)
		}
	}
	if factor <= 1 || math.IsInf(factor, 1) {
		return
	}
	for i := range p.slots {
		w := &p.slots[i]
		w.to = min(w.to*factor, max(w.from, w.wanted))
	}
}

// keep takes back as much of all falls as it takes for the least to stay in.
func (p *plan) keep() {
	_, have, least := p.totals()
	missing := least - have
	if missing <= tiny*least {
		return
	}
	var fallen float64
	for i := range p.slots {
		fallen += max(p.slots[i].from-p.slots[i].to, 0)
	}
	if fallen <= 0 {
		return
	}
	part := min(missing/fallen, 1)
	for i := range p.slots {
		if w := &p.slots[i]; w.to < w.from {
			w.to += part * (w.from - w.to)
			w.mark(CauseHalf)
		}
	}
}

// blend goes only so far from the masses before to those after that no share
// passes its bound. With totals S₀ and S₁, going the part q of the way gives
// shares that have gone the part f = q·S₁/(S₀ + q·(S₁ − S₀)) of theirs; so
// f ≤ bound/gain for all, and q = f·S₀/(S₁·(1−f) + f·S₀). Levels and the
// mass that stays in are between before and after, so what held of both still
// does.
func (p *plan) blend() {
	s0, s1, _ := p.totals()
	if s0 <= 0 || s1 <= 0 {
		return
	}
	f := 1.0
	for i := range p.slots {
		w := &p.slots[i]
		if gain := w.to/s1 - w.share; gain > (w.most-w.share)+tiny {
			f = min(f, (w.most-w.share)/gain)
		}
	}
	if f >= 1 {
		return
	}
	q := f * s0 / (s1*(1-f) + f*s0)
	for i := range p.slots {
		if w := &p.slots[i]; w.to != w.from {
			w.to = w.from + q*(w.to-w.from)
		}
	}
}
