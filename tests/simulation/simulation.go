package simulation

import (
	"slices"
	"time"
)

// Result is what came of a history.
type Result struct {
	Seed uint64
	// Violation names the invariant that did not hold, and why; "" if all did.
	Violation string
	// Seen counts the situations that came about, in words.
	Seen  map[string]int
	world *world
}

// History returns the last n steps, for a person; all of them for 0.
func (r Result) History(n int) string { return r.world.history(n) }

// Run lives through the history of a seed, and judges it.
func Run(seed uint64, broken Broken) Result {
	w := newWorld(seed, broken)
	for i := range 1 + w.rng.IntN(4) {
		w.addUser(i + 1)
	}
	w.addFaults()
	w.after(time.Second, w.watchDeadlines)
	w.runUntil(chaos)
	if w.violation == "" {
		w.healAll()
		w.judge()
	}
	w.end()
	return Result{Seed: seed, Violation: w.violation, Seen: w.seen, world: w}
}

// judge looks twice, because something may just be under way: what is wrong both times
// is wrong.
func (w *world) judge() {
	end := chaos + settling
	if w.mood.grave {
		end += nodeLost // what was on a machine that is gone is lost only then
	}
	w.runUntil(end - recently)
	before := w.settled()
	w.runUntil(end)
	for _, problem := range w.settled() {
		if w.violation == "" && slices.Contains(before, problem) {
			w.violation = problem
			w.note("INVARIANT", "%s", problem)
		}
	}
}

// end stops what still waits.
func (w *world) end() {
	for _, p := range w.all {
		p.halt()
	}
	for _, u := range w.users {
		u.halt()
	}
	w.agenda = nil
}
