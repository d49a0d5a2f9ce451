package simulation

import "time"

// Times of a history: users and faults for chaos; then everything heals, and within
// settling all must be well.
const (
	chaos    = 90 * time.Second
	settling = 60 * time.Second
	// recently is how long something may be under way.
	recently = 10 * time.Second
)

// addFaults spreads faults over the time of chaos.
func (w *world) addFaults() {
	for range w.mood.faults {
		w.after(w.between(time.Second, chaos-5*time.Second), w.fault)
	}
}

// fault lets one thing go wrong, for a while.
func (w *world) fault() {
	some := func() *process { return w.all[w.rng.IntN(len(w.all))] }
	anywhere := func() *region { return w.order[w.rng.IntN(len(w.order))] }
	lasting := w.between(500*time.Millisecond, 25*time.Second)
	if w.chance(w.mood.power) {
		r := anywhere()
		w.powerCut(r.machines[w.rng.IntN(len(r.machines))], lasting)
		return
	}
	switch w.rng.IntN(8) {
	case 0:
		p := some()
		p.crash()
		w.after(lasting, func() { w.restart(p) })
	case 1: // all agents of a region at once
		r := anywhere()
		for _, m := range r.machines {
			m.agent.crash()
			w.after(lasting, func() { w.restart(&m.agent.process) })
		}
	case 2: // a bus goes away
		b := anywhere().bus
		w.note(b.name, "is gone")
		b.up = false
		w.after(lasting, func() {
			b.up = true
			w.note(b.name, "is back")
		})
	case 3: // two regions
		a, b := anywhere(), anywhere()
		if a != b {
			w.cutFor(pair(a.name, b.name), lasting)
		}
	case 4: // a program and its bus
		p := some()
		w.cutFor(pair(p.name, p.region.bus.name), lasting)
	case 5: // two programs, often two agents
		a, b := some(), anywhere().machines[0].agent
		w.cutFor(pair(a.name, b.name), lasting)
	case 6: // a whole region
		r := anywhere()
		r.bus.up = false
		w.note(r.name, "everything is gone")
		for _, p := range w.all {
			if p.region == r {
				p.crash()
				w.after(lasting, func() { w.restart(p) })
			}
		}
		w.after(lasting, func() { r.bus.up = true })
	case 7: // a clock jumps
		p := some()
		if w.mood.skew > 0 {
			p.skew = w.between(-w.mood.skew, w.mood.skew)
			w.note(p.name, "clock is wrong by %s", p.skew)
		}
	}
}

// powerCut takes a machine away, in some histories for good.
func (w *world) powerCut(m *machine, lasting time.Duration) {
	if m.gone {
		return
	}
	m.powerOff()
	if w.mood.grave && w.chance(0.5) {
		m.gone = true
		return
	}
	w.after(lasting, func() {
		if !m.gone {
			m.dead = false
			m.agent.start()
		}
	})
}

// atCommit lets something go wrong at the worst time: around the write that makes a move.
func (w *world) atCommit(u *unit) {
	if w.calm || !w.chance(w.mood.commit) {
		return
	}
	source, to := &u.a.process, u.record.GetMove()
	target := &w.machine(to.GetRegion(), to.GetNode()).agent.process
	lasting, wait := w.between(500*time.Millisecond, 20*time.Second), w.between(0, 40*time.Millisecond)
	crash := func(p *process) {
		p.crash()
		w.after(lasting, func() { w.restart(p) })
	}
	kind := w.rng.IntN(7)
	w.after(wait, func() {
		switch kind {
		case 0:
			crash(source)
		case 1:
			crash(target)
		case 2:
			crash(source)
			crash(target)
		case 3:
			w.cutFor(pair(source.name, source.region.bus.name), lasting)
		case 4:
			w.cutFor(pair(source.name, target.name), lasting)
		case 6:
			if w.mood.power > 0 {
				w.powerCut(w.machine(to.GetRegion(), to.GetNode()), lasting)
			}
		case 5:
			if source.region != target.region {
				w.cutFor(pair(source.region.name, target.region.name), lasting)
			}
		}
	})
}

func (w *world) cutFor(p [2]string, d time.Duration) {
	w.note("network", "%s and %s do not hear each other", p[0], p[1])
	w.cuts[p]++
	w.after(d, func() { w.heal(p) })
}

func (w *world) heal(p [2]string) {
	if w.cuts[p]--; w.cuts[p] <= 0 {
		delete(w.cuts, p)
		w.note("network", "%s and %s hear each other", p[0], p[1])
	}
}

// healAll ends every fault.
func (w *world) healAll() {
	w.calm = true
	w.note("world", "everything heals")
	clear(w.cuts)
	for _, r := range w.order {
		if !r.bus.up {
			r.bus.up = true
			w.note(r.bus.name, "is back")
		}
		for _, m := range r.machines {
			m.dead = m.gone
		}
	}
	for _, p := range w.all {
		w.restart(p)
	}
}
