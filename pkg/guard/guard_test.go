package guard_test

import (
	"errors"
	"testing"
	"time"

	"github.com/sirocco-run/sirocco/pkg/guard"
	"github.com/sirocco-run/sirocco/pkg/topology"
	"pgregory.net/rapid"
)

// world is one guarded sandbox, its source and its guard, around the guard's bus, with
// messages that take their time. Time passes in seconds.
type world struct {
	now time.Time
	// The bus.
	entry    *guard.Entry
	revision int
	renewed  time.Time // when the fence was put up last
	// The source: what it knows of its fence, and the spell in which it confirmed.
	fence     guard.Fence
	confirmed uint64
	// On their way: renewals that have not reached the bus, answers that have not
	// reached the source, and swaps of both that were decided by what was read before.
	renewals []time.Time
	answers  []time.Time
	returns  []swap
	claims   []swap
	lawless  bool // the source goes on without writing that it is back
}

type swap struct {
	next     *guard.Entry
	revision int
	spell    uint64
}

func (w *world) serves() bool {
	s := w.fence.Spell(w.now)
	return s != 0 && s == w.confirmed
}

func (w *world) fenced() bool { return w.now.Sub(w.renewed) < topology.FenceTTL }

func (w *world) put(s swap) bool {
	if s.revision != w.revision {
		return false
	}
	w.entry, w.revision = s.next, w.revision+1
	return true
}

func start(lawless bool) *world {
	w := &world{now: time.Unix(1_000_000, 0), lawless: lawless}
	w.renewed = w.now
	w.fence.Renewed(w.now, w.now)
	w.entry, _ = guard.Engage(nil, "us", "n1", 1, "t")
	w.entry, _ = guard.Keep(w.entry, "t", "g1", "f", w.now)
	w.confirmed = w.fence.Spell(w.now)
	return w
}

// errTwo is that the source serves what the guard has claimed.
var errTwo = errors.New("the source serves what was taken over")

func pop[T any](rt *rapid.T, from *[]T) (T, bool) {
	var none T
	if len(*from) == 0 {
		return none, false
	}
	i := rapid.IntRange(0, len(*from)-1).Draw(rt, "which")
	x := (*from)[i]
	*from = append((*from)[:i:i], (*from)[i+1:]...)
	return x, true
}

// step does one thing that may happen.
func (w *world) step(rt *rapid.T) {
	switch rapid.SampledFrom([]string{"time", "renew", "renewal arrives", "answer arrives", "read to return", "return", "read to claim", "claim", "keep"}).Draw(rt, "what") {
	case "time":
		w.now = w.now.Add(time.Duration(rapid.IntRange(1, 16).Draw(rt, "seconds")) * time.Second)
	case "renew":
		w.renewals = append(w.renewals, w.now)
	case "renewal arrives":
		if sent, ok := pop(rt, &w.renewals); ok {
			w.renewed = w.now
			w.answers = append(w.answers, sent)
		}
	case "answer arrives":
		if sent, ok := pop(rt, &w.answers); ok {
			w.fence.Renewed(sent, w.now)
		}
	case "read to return":
		spell := w.fence.Spell(w.now)
		if spell == 0 || spell == w.confirmed {
			return
		}
		if next, err := guard.Confirm(w.entry, "us", "n1", 1, "t"); err == nil {
			w.returns = append(w.returns, swap{next, w.revision, spell})
		}
	case "return":
		if s, ok := pop(rt, &w.returns); ok && (w.lawless || w.put(s)) {
			w.confirmed = s.spell
		}
	case "read to claim":
		read := swap{revision: w.revision}
		here := w.entry
		w.now = w.now.Add(time.Duration(rapid.IntRange(0, 3).Draw(rt, "between")) * time.Second)
		next, again, err := guard.Claim(here, w.fenced(), "g1", "f", 2)
		if err == nil && !again {
			read.next = next
			w.claims = append(w.claims, read)
		}
	case "claim":
		if s, ok := pop(rt, &w.claims); ok {
			w.put(s)
		}
	case "keep":
		if next, err := guard.Keep(w.entry, "t", "g1", "f", w.now); err == nil && w.serves() {
			w.put(swap{next: next, revision: w.revision})
		}
	}
}

func (w *world) check() error {
	if w.entry.Claimed != 0 && w.serves() {
		return errTwo
	}
	return nil
}

// TestOnlyOneRuns: whatever is late or lost, the source does not serve what was taken
// over.
func TestOnlyOneRuns(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := start(false)
		for range rapid.IntRange(1, 80).Draw(rt, "steps") {
			w.step(rt)
			if err := w.check(); err != nil {
				rt.Fatal(err)
			}
		}
	})
}

// TestTheReturnMustBeWritten: the property above finds a source that goes on as soon as
// its fence stands again, also one that has read that nobody had claimed.
func TestTheReturnMustBeWritten(t *testing.T) {
	w := start(true)
	w.now = w.now.Add(20 * time.Second)
	// The guard has read that the fence is gone, and has not written yet.
	claim, again, err := guard.Claim(w.entry, w.fenced(), "g1", "f", 2)
	if err != nil || again {
		t.Fatal(again, err)
	}
	late := swap{next: claim, revision: w.revision}
	w.renewed = w.now
	w.fence.Renewed(w.now, w.now)
	next, err := guard.Confirm(w.entry, "us", "n1", 1, "t")
	if err != nil {
		t.Fatal(err)
	}
	lawful := *w
	lawful.put(swap{next: next, revision: lawful.revision})
	lawful.confirmed = lawful.fence.Spell(lawful.now)
	if lawful.put(late) || lawful.check() != nil || !lawful.serves() {
		t.Error("a claim that read before the return was written still took it over")
	}
	w.confirmed = w.fence.Spell(w.now)
	if !w.put(late) || !errors.Is(w.check(), errTwo) {
		t.Error("a return that is not written is not found")
	}
}

func TestFence(t *testing.T) {
	var f guard.Fence
	at := time.Unix(1_000_000, 0)
	if f.Spell(at) != 0 {
		t.Error("one that never stood holds")
	}
	f.Renewed(at, at.Add(guard.Hold))
	if f.Spell(at.Add(guard.Hold)) != 0 {
		t.Error("a renewal that took as long as it holds counts")
	}
	f.Renewed(at, at.Add(time.Second))
	first := f.Spell(at.Add(time.Second))
	if first == 0 || f.Spell(at.Add(guard.Hold-1)) != first || f.Spell(at.Add(guard.Hold)) != 0 {
		t.Error("it does not hold from the moment of sending on, for Hold")
	}
	f.Renewed(at.Add(9*time.Second), at.Add(9*time.Second))
	if f.Spell(at.Add(12*time.Second)) != first {
		t.Error("a renewal in time begins another spell")
	}
	f.Renewed(at.Add(5*time.Second), at.Add(12*time.Second))
	if f.Spell(at.Add(18*time.Second)) != first {
		t.Error("an older renewal shortens it")
	}
	f.Renewed(at.Add(30*time.Second), at.Add(30*time.Second))
	if s := f.Spell(at.Add(30 * time.Second)); s == 0 || s == first {
		t.Error("a gap is not seen")
	}
	if guard.Hold >= topology.FenceTTL {
		t.Error("the fence may expire before its node stops")
	}
}

// TestTerms: what is late from a term that has ended changes nothing.
func TestTerms(t *testing.T) {
	at := time.Unix(1_000_000, 0)
	first, err := guard.Engage(nil, "us", "n1", 1, "t1")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := guard.Claim(first, false, "", "", 2); !errors.Is(err, guard.ErrOver) {
		t.Errorf("without a checkpoint: %v", err)
	}
	kept, err := guard.Keep(first, "t1", "g1", "f1", at)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := guard.Claim(kept, true, "g1", "f1", 2); !errors.Is(err, guard.ErrFenced) {
		t.Errorf("inside the fence: %v", err)
	}
	for name, bad := range map[string]func() error{
		"another guard":      func() error { _, _, err := guard.Claim(kept, false, "g2", "f1", 2); return err },
		"another checkpoint": func() error { _, _, err := guard.Claim(kept, false, "g1", "f0", 2); return err },
		"the same epoch":     func() error { _, _, err := guard.Claim(kept, false, "g1", "f1", 1); return err },
	} {
		if err := bad(); !errors.Is(err, guard.ErrOver) {
			t.Errorf("%s: %v", name, err)
		}
	}
	released, err := guard.Release(kept, 1, "t1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := guard.Keep(released, "t1", "g1", "f2", at); !errors.Is(err, guard.ErrOver) {
		t.Errorf("a checkpoint after the release: %v", err)
	}
	if _, _, err := guard.Claim(released, false, "g1", "f1", 2); !errors.Is(err, guard.ErrOver) {
		t.Errorf("a claim after the release: %v", err)
	}
	if _, err := guard.Release(released, 1, "t1"); !errors.Is(err, guard.ErrOver) {
		t.Errorf("a second release: %v", err)
	}
	claimed, _, err := guard.Claim(kept, false, "g1", "f1", 2)
	if err != nil || claimed.Claimed != 2 {
		t.Fatal(claimed, err)
	}
	if again, yes, err := guard.Claim(claimed, true, "g1", "f1", 2); err != nil || !yes || again.Claimed != 2 {
		t.Errorf("the same claim again: %v %v %v", again, yes, err)
	}
	for name, err := range map[string]error{
		"confirm": second(guard.Confirm(claimed, "us", "n1", 1, "t1")), "engage": second(guard.Engage(claimed, "us", "n1", 1, "t2")),
		"release": second(guard.Release(claimed, 1, "t1")),
	} {
		if !errors.Is(err, guard.ErrTaken) {
			t.Errorf("%s after a claim: %v", name, err)
		}
	}
	// It has come back in a move, under a newer epoch.
	if next, err := guard.Engage(claimed, "us", "n1", 3, "t3"); err != nil || next.Claimed != 0 {
		t.Errorf("engage under a newer epoch: %v %v", next, err)
	}
}

func second(_ *guard.Entry, err error) error { return err }
