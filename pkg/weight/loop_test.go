package weight

import (
	"testing"
	"time"
)

// loop is all of it together: each second twelve creates are picked by the
// weights, and what becomes of them is what the next scores are made of.
type loop struct {
	state  State
	tracks [3]Track
	regs   []Region
	now    time.Time
	out    []Decision
	// turns counts how often the first region changed its direction.
	turns int
}

// second returns how many of the twelve failed. Of those that go to the first
// region a share fails, after a millisecond.
func (l *loop) second(t *testing.T, share float64) float64 {
	var failed float64
	var reports [3]Report
	for i := range 12 {
		region := "a"
		if l.out != nil {
			var err error
			if region, _, err = Pick(l.out, Request{Random: (float64(i) + 0.5) / 12}); err != nil {
				t.Fatal(err)
			}
		}
		r := &reports[region[0]-'a']
		r.Succeeded++
		if region == "a" && float64(r.Succeeded+r.Failed)*share >= float64(r.Failed+1) {
			r.Succeeded--
			r.Failed++
			failed++
		}
	}
	l.now = l.now.Add(time.Second)
	for i := range reports {
		reports[i].Latency, reports[i].Timeout = 100*time.Millisecond, 30*time.Second
		l.tracks[i].Saw(l.now, reports[i])
		h := Judge(Signals{Creates: l.tracks[i].Evidence(l.now), Answers: Answers{Answered: 3, Asked: 3}})
		l.regs[i].Score, l.regs[i].Known = h.Score, h.Known
	}
	before := In
	if l.out != nil {
		before = l.out[0].Direction
	}
	if l.state, l.out = DefaultConfig().Step(l.state, l.regs, l.now); l.out[0].Direction != before {
		l.turns++
	}
	return failed
}

// A region of which every second create fails at once is left within seconds,
// tried again now and then while it goes on, and trusted again when it is well.
func TestLoop(t *testing.T) {
	l := loop{regs: fleet(3), now: start}
	for range 120 {
		l.second(t, 0)
	}
	if l.turns != 0 || !near(l.out[0].Weight, 1.0/3, 1e-9) {
		t.Fatalf("while all is well: %d turns, %+v", l.turns, l.out)
	}
	var first, second, rest float64
	for i := range 3600 {
		switch failed := l.second(t, 0.5); {
		case i < 20:
			first += failed
		case i < 600:
			second += failed
		default:
			rest += failed
		}
	}
	t.Logf("failed: %g in the first 20 s, %g until 10 min, %g until 60 min; %d turns", first, second, rest, l.turns)
	if first > 40 || second > 0.02*580*12 || rest > 0.008*3000*12 || l.turns > 2*12 {
		t.Errorf("failed: %g of 240 in the first 20 s, %g of 6960 until 10 min, %g of 36000 until 60 min; %d turns", first, second, rest, l.turns)
	}
	for range 900 {
		l.second(t, 0)
	}
	if d := l.out[0]; d.Level != 1 || d.Cause != CauseSteady {
		t.Errorf("15 min after it is well again: %+v", d)
	}
}
