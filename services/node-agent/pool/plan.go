package pool

import (
	"cmp"
	"hash/crc32"
	"slices"
	"time"
)

// pool is a template's pool while a plan is made.
type pool struct {
	Template
	ahead forecast
	// kept are the warm ones that are not dropped, held those and what is being
	// built.
	kept, held int
	// wish is how many it would hold with room for all, goal how many it should.
	wish, goal int
	// order are the warm ones that were fit to keep, oldest first, once one of
	// them is to be dropped.
	order []Warm
}

// Plan says what to build and what to drop. It changes nothing of s.
func (r Rules) Plan(now time.Time, s State) Decision {
	p := planner{
		rules: r, now: now, pools: make([]pool, len(s.Templates)),
		aging: now.Add(r.MaxAge/4 - r.MaxAge),
		room:  Room{min(r.BudgetBytes, s.Free.MemoryBytes), s.Free.Sandboxes},
	}
	for i, t := range s.Templates {
		ahead := t.Demand.forecast(now, t.BuildTime, r.Parallel)
		p.pools[i] = pool{Template: t, ahead: ahead, wish: t.bounded(ahead.units(beyondSafety))}
	}
	slices.SortFunc(p.pools, func(a, b pool) int { return cmp.Compare(a.Key, b.Key) })
	p.dropUnfit()
	share(p.pools, p.room.minus(r.Reserve), s.Ready)
	p.makeRoom()
	// What is not needed is given up in a quiet moment, and only once it is known
	// what is needed.
	if s.Ready && s.Busy == 0 {
		p.dropUnused()
	}
	if builds := r.builds(now, s); builds > 0 {
		p.outbid()
		p.build(builds, s.Lull && s.Ready)
	}
	p.decision.Filled = p.filled()
	return p.decision
}

// bounded is what a pool may hold when the demand asks for n.
func (t *Template) bounded(n int) int { return max(t.Min, min(n, t.Max)) }

// builds is how many builds may be in progress at this moment.
func (r Rules) builds(now time.Time, s State) int {
	switch {
	case !s.Ready || s.Busy <= 0:
		return r.Parallel
	case r.Patience > 0 && !s.BusySince.IsZero() && now.Sub(s.BusySince) >= r.Patience:
		return min(r.Parallel, 1)
	default:
		return 0
	}
}

// planner makes one plan.
type planner struct {
	rules    Rules
	now      time.Time
	pools    []pool
	decision Decision
	// aging is the latest time at which one was built that may be stale.
	aging time.Time
	// room is what warm sandboxes may take; held what they and those being built
	// take, without what this plan drops; going what it drops.
	room, held, going Room
}

// dropUnfit drops what may not be handed out any more, and counts the others.
func (p *planner) dropUnfit() {
	for i := range p.pools {
		t := &p.pools[i]
		for j := range t.Warm {
			if why := p.unfit(t, &t.Warm[j]); why != "" {
				p.decision.Drop = append(p.decision.Drop, Drop{t.Key, t.Warm[j].ID, why})
				p.going = p.going.plus(t.CostBytes, 1)
			} else {
				t.kept++
			}
		}
		t.held = t.kept + max(t.Building, 0)
		p.held = p.held.plus(t.CostBytes, t.held)
	}
	if len(p.decision.Drop) > 1 {
		slices.SortFunc(p.decision.Drop, func(a, b Drop) int {
			return cmp.Or(cmp.Compare(a.Template, b.Template), cmp.Compare(a.ID, b.ID))
		})
	}
}

// unfit says why a warm sandbox may not be handed out.
func (p *planner) unfit(t *pool, w *Warm) Why {
	switch longest := p.rules.MaxAge; {
	case w.Version != t.Version:
		return Outdated
	case longest <= 0 || w.BuiltAt.After(p.aging):
		return ""
	default:
		early := float64(crc32.ChecksumIEEE([]byte(w.ID))) / (1 << 32)
		if p.now.Sub(w.BuiltAt) < longest-time.Duration(early*float64(longest/4)) {
			return ""
		}
		return Stale
	}
}

// makeRoom drops until what is held fits: what is over its goal first, and of
// that what is least worth its memory.
func (p *planner) makeRoom() {
	for !p.held.fits(p.room) {
		t := p.worst(func(t *pool) bool { return t.held > t.goal })
		if t == nil {
			t = p.worst(func(*pool) bool { return true })
		}
		if t == nil {
			return // the rest is being built
		}
		p.drop(t, NoRoom)
	}
}

// dropUnused drops what is far over what is wished for, with room or without.
// What is only a little over stays: it may be asked for again, and a demand that
// rises and falls would otherwise build and drop each time.
func (p *planner) dropUnused() {
	for i := range p.pools {
		t := &p.pools[i]
		stay := t.wish + slack(t.wish)
		if t.wish > 0 {
			stay++
		}
		stay = min(stay, max(t.Min, t.Max))
		for t.held > stay && t.kept > 0 {
			p.drop(t, Unused)
		}
	}
}

// slack is how far from a number is near enough.
func slack(n int) int { return n / 4 }

// outbid drops what is over its goal for a template that is below its declared
// minimum, or far below its goal, and does not fit.
func (p *planner) outbid() {
	room := p.room.minus(p.rules.Reserve)
	poor := p.best(func(t *pool) bool {
		return !p.waits(t) && (t.held < min(t.goal, t.Min) || t.held < t.goal-slack(t.goal))
	})
	if poor == nil {
		return
	}
	for !p.held.plus(poor.CostBytes, 1).fits(room) {
		rich := p.worst(func(t *pool) bool {
			return t.held > t.goal+slack(t.goal) || t.held > t.goal && poor.held < poor.Min
		})
		if rich == nil {
			return
		}
		p.drop(rich, Outbid)
	}
}

// build builds what is furthest below its declared minimum, then what is most
// worth its memory, until so many builds are in progress; in a lull only what is
// about to run empty.
func (p *planner) build(free int, lull bool) {
	room := p.room.minus(p.rules.Reserve)
	for i := range p.pools {
		free -= max(p.pools[i].Building, 0)
	}
	// What is dropped takes its room until it is gone.
	held := Room{p.held.MemoryBytes + p.going.MemoryBytes, p.held.Sandboxes + p.going.Sandboxes}
	for ; free > 0; free-- {
		t := p.best(func(t *pool) bool {
			enough := t.goal
			if lull {
				enough = (t.goal + 1) / 2
			}
			return t.held < enough && !p.waits(t) && held.plus(t.CostBytes, 1).fits(room)
		})
		if t == nil {
			return
		}
		t.held++
		held = held.plus(t.CostBytes, 1)
		p.decision.Build = append(p.decision.Build, t.Key)
	}
}

// waits says that a template's last build failed a moment ago.
func (p *planner) waits(t *pool) bool { return p.now.Before(t.NotBefore) }

// filled says that no declared minimum, as far as it fits, is waited for.
func (p *planner) filled() bool {
	return !slices.ContainsFunc(p.pools, func(t pool) bool {
		return t.kept < min(t.goal, t.Min) && !p.waits(&t)
	})
}

// drop gives up the oldest of a pool.
func (p *planner) drop(t *pool, why Why) {
	if t.order == nil {
		for _, w := range t.Warm {
			if p.unfit(t, &w) == "" {
				t.order = append(t.order, w)
			}
		}
		slices.SortFunc(t.order, func(a, b Warm) int {
			return cmp.Or(a.BuiltAt.Compare(b.BuiltAt), cmp.Compare(a.ID, b.ID))
		})
	}
	oldest := t.order[len(t.order)-t.kept]
	t.kept--
	t.held--
	p.held = p.held.plus(t.CostBytes, -1)
	p.going = p.going.plus(t.CostBytes, 1)
	p.decision.Drop = append(p.decision.Drop, Drop{t.Key, oldest.ID, why})
}

// best returns the pool for which one more is worth most, of those wanted.
func (p *planner) best(wanted func(*pool) bool) *pool {
	var best *pool
	for i := range p.pools {
		if t := &p.pools[i]; wanted(t) && (best == nil || p.before(t, best, 0)) {
			best = t
		}
	}
	return best
}

// worst returns the pool whose last one is worth least, of those wanted that
// have any to drop.
func (p *planner) worst(wanted func(*pool) bool) *pool {
	var worst *pool
	for i := range p.pools {
		if t := &p.pools[i]; t.kept > 0 && wanted(t) && (worst == nil || p.before(worst, t, 1)) {
			worst = t
		}
	}
	return worst
}

// before says whether one more for a is worth more than one more for b, where
// both have less fewer than they hold: what is declared before what is not, and
// that by how much is missing; the rest by the chance of a claim for the room,
// and by how much is asked for where there is next to none.
func (p *planner) before(a, b *pool, less int) bool {
	nA, nB := a.held-less, b.held-less
	if lowA, lowB := nA < a.Min, nB < b.Min; lowA || lowB {
		if lowA != lowB {
			return lowA
		}
		return cmp.Or(cmp.Compare(nA*b.Min, nB*a.Min), cmp.Compare(a.Key, b.Key)) < 0
	}
	worthA, worthB := a.ahead.chance(nA)/a.part(p.room), b.ahead.chance(nB)/b.part(p.room)
	return cmp.Or(
		cmp.Compare(worthB, worthA), cmp.Compare(b.ahead.mean, a.ahead.mean), cmp.Compare(a.Key, b.Key),
	) < 0
}
