package weight

import (
	"math"
	"strings"
	"testing"
	"time"
)

func near(a, b, by float64) bool { return math.Abs(a-b) <= by }

// A region that fails slides out within seconds and comes back within minutes,
// after its dwell time, and tells so.
func TestRegionGoesAndComesBack(t *testing.T) {
	c, now, regions := DefaultConfig(), start, fleet(3)
	var s State
	d := run(c, &s, &now, regions, 5)
	if d[0].Weight != d[1].Weight || d[0].Level != 1 || d[0].Cause != CauseSteady {
		t.Fatalf("at first: %+v", d)
	}
	regions[0].Score = 0
	if d = run(c, &s, &now, regions, 2); d[0].Level > 0.95 || d[0].Cause != CauseDraining && d[0].Cause != CauseReceivers {
		t.Errorf("after 2 s: %+v", d)
	}
	if d = run(c, &s, &now, regions, 18); d[0].Level > 0.15 || !near(d[1].Weight, d[2].Weight, 1e-12) {
		t.Errorf("after 20 s: %+v", d)
	}
	if d = run(c, &s, &now, regions, 60); d[0].Weight != 0 || !near(d[1].Weight, 0.5, 1e-9) || d[1].Level != 1 {
		t.Errorf("after 80 s: %+v", d)
	}
	regions[0].Score = 0.9
	if d = run(c, &s, &now, regions, 60); d[0].Weight != 0 || d[0].Direction != Out {
		t.Errorf("neither bad nor good: %+v", d)
	}
	regions[0].Score = 1
	d = run(c, &s, &now, regions, 6)
	if d[0].Cause != CauseReturning || d[0].Level > 0.2 || d[0].Level == 0 {
		t.Errorf("on its way back: %+v", d)
	}
	if d = run(c, &s, &now, regions, 45); d[0].Level < 0.5 || d[0].Level > 0.75 {
		t.Errorf("45 s later: %+v", d)
	}
	if d = run(c, &s, &now, regions, 450); d[0].Level != 1 || d[0].Cause != CauseSteady {
		t.Errorf("in the end: %+v", d)
	}
}

// A region that turned stays in its direction for the dwell time.
func TestDwell(t *testing.T) {
	c, now, regions := DefaultConfig(), start, fleet(2)
	c.TauScore = 0
	var s State
	run(c, &s, &now, regions, 1)
	regions[0].Score = 0.5
	run(c, &s, &now, regions, 1)
	regions[0].Score = 1
	if d := run(c, &s, &now, regions, 29); d[0].Cause != CauseDwell || d[0].Direction != Out {
		t.Errorf("after 29 s: %+v", d[0])
	}
	if d := run(c, &s, &now, regions, 1); d[0].Direction != In {
		t.Errorf("after 30 s: %+v", d[0])
	}
	regions[0].Score = 0.5
	if d := run(c, &s, &now, regions, 4); d[0].Cause != CauseDwell || d[0].Direction != In {
		t.Errorf("4 s after it turned: %+v", d[0])
	}
	if d := run(c, &s, &now, regions, 1); d[0].Direction != Out {
		t.Errorf("5 s after it turned: %+v", d[0])
	}
}

// A region that comes back and fails again stays out twice as long each time, up
// to a bound, whether it drains or dies; one that lasted begins anew.
func TestRelapses(t *testing.T) {
	c := DefaultConfig()
	c.TauScore = 0
	for name, fail := range map[string]func(*Region, bool){
		"drains": func(r *Region, bad bool) {
			r.Score = 1
			if bad {
				r.Score = 0
			}
		},
		"dies": func(r *Region, bad bool) { r.Dead = bad },
	} {
		now, regions := start, fleet(2)
		var s State
		run(c, &s, &now, regions, 1)
		for _, want := range []int{30, 60, 120, 240, 480, 480} {
			fail(&regions[0], true)
			run(c, &s, &now, regions, 1)
			fail(&regions[0], false)
			out := 1
			for run(c, &s, &now, regions, 1)[0].Direction == Out {
				out++
			}
			if out != want {
				t.Errorf("%s: it was out for %d s, want %d", name, out, want)
			}
			run(c, &s, &now, regions, 10)
		}
		run(c, &s, &now, regions, 600)
		fail(&regions[0], true)
		if run(c, &s, &now, regions, 1); s.Regions[0].Relapses != 0 {
			t.Errorf("%s: %+v", name, s.Regions[0])
		}
	}
}

// What is dead is at zero in the same step, and comes back by its dwell time and
// slowly; when all are dead all is zero.
func TestDeath(t *testing.T) {
	c, now, regions := DefaultConfig(), start, fleet(3)
	var s State
	run(c, &s, &now, regions, 1)
	regions[0].Dead = true
	d := run(c, &s, &now, regions, 1)
	if d[0].Weight != 0 || d[0].Cause != CauseDead || !near(d[1].Weight, 0.5, 1e-12) {
		t.Fatalf("in the step of its death: %+v", d)
	}
	regions[0].Dead = false
	if d = run(c, &s, &now, regions, 29); d[0].Weight != 0 || d[0].Direction != Out {
		t.Errorf("29 s after its return: %+v", d[0])
	}
	if d = run(c, &s, &now, regions, 2); d[0].Weight == 0 || d[0].Weight > 0.05 {
		t.Errorf("31 s after its return: %+v", d[0])
	}
	for i := range regions {
		regions[i].Dead = true
	}
	for _, d := range run(c, &s, &now, regions, 1) {
		if d.Weight != 0 || d.Alive() {
			t.Errorf("all are dead: %+v", d)
		}
	}
	regions[1].Dead = false
	if d = run(c, &s, &now, regions, 1); d[1].Weight != 1 {
		t.Errorf("one is back, and the only one: %+v", d)
	}
}

// Three of four fail: they drain until half of the capacity is left, and no
// further, also when the healthy one dies.
func TestHalfStays(t *testing.T) {
	c, now, regions := DefaultConfig(), start, fleet(4)
	var s State
	run(c, &s, &now, regions, 1)
	for i := range 3 {
		regions[i].Score = 0.1
	}
	d := run(c, &s, &now, regions, 300)
	if in := d[0].Level + d[1].Level + d[2].Level + d[3].Level; !near(in, 2, 1e-9) || d[3].Level != 1 {
		t.Errorf("%g of 4 are in: %+v", in, d)
	}
	if d[0].Cause != CauseHalf || !strings.Contains(d[0].Text(), "half") {
		t.Errorf("%+v: %s", d[0], d[0].Text())
	}
	regions[3].Dead = true
	d = run(c, &s, &now, regions, 1)
	if in := d[0].Level + d[1].Level + d[2].Level; !near(in, 1.5, 1e-9) || d[3].Weight != 0 {
		t.Errorf("%g of 3 are in: %+v", in, d)
	}
}

// A region of which nothing is known stays as it is; one that is new comes in
// slowly, and one that is new and bad not at all.
func TestUnknownAndNew(t *testing.T) {
	c, now, regions := DefaultConfig(), start, fleet(3)
	var s State
	run(c, &s, &now, regions, 1)
	regions[0].Score = 0
	level := run(c, &s, &now, regions, 5)[0].Level
	regions[0].Known = false
	if d := run(c, &s, &now, regions, 60); d[0].Level != level || d[0].Cause != CauseUnknown || !strings.Contains(d[0].Text(), "nothing is known") {
		t.Errorf("at %g when nothing was known any more, now %+v", level, d[0])
	}
	regions = append(regions, healthy("d"), healthy("e"))
	regions[4].Score = 0.5
	d := run(c, &s, &now, regions, 1)
	if d[3].Level <= 0 || d[3].Level > 0.05 || d[3].Cause != CauseReturning {
		t.Errorf("a second after it is new: %+v", d[3])
	}
	if d = run(c, &s, &now, regions, 450); d[3].Level != 1 || d[4].Weight != 0 {
		t.Errorf("a good one and a bad one: %+v, %+v", d[3], d[4])
	}
}

// Capacity that is added comes in as a region does; what is lost is lost at
// once, and a clock that jumps moves no more than its longest step.
func TestGrowthAndClocks(t *testing.T) {
	c, now, regions := DefaultConfig(), start, fleet(2)
	var s State
	run(c, &s, &now, regions, 1)
	regions[0].Capacity = 2000
	if d := run(c, &s, &now, regions, 1); d[0].Weight > 0.53 {
		t.Errorf("one second after it doubled: %+v", d)
	}
	if d := run(c, &s, &now, regions, 450); !near(d[0].Weight, 2.0/3, 1e-3) {
		t.Errorf("in the end: %+v", d)
	}
	regions[0].Capacity = 1000
	if d := run(c, &s, &now, regions, 1); !near(d[0].Weight, 0.5, 1e-9) {
		t.Errorf("after it shrank: %+v", d)
	}
	regions[0].Score = 0
	for _, jump := range []time.Duration{-time.Hour, 100 * 365 * 24 * time.Hour, 0} {
		before := s.Regions[0].Level
		next, d := c.Step(s, regions, now.Add(jump))
		if d[0].Level > before || d[0].Level < before*math.Exp(-2)-1e-9 {
			t.Errorf("after a jump of %s: %+v", jump, d[0])
		}
		if jump <= 0 && d[0].Level != before {
			t.Errorf("time did not pass: %+v", d[0])
		}
		if next, d = c.Step(next, regions, now.Add(jump+time.Second)); !(d[0].Level < before) || len(next.Regions) != 2 {
			t.Errorf("a second after a jump of %s it stands still: %+v", jump, d[0])
		}
	}
}

// TestBackFromDeath: a region that is well enough to stay is well enough to come back
// from death, after the dwell time; one that was drained has to be better.
func TestBackFromDeath(t *testing.T) {
	c := DefaultConfig()
	between := (c.OutBelow + c.InAbove) / 2
	for _, died := range []bool{true, false} {
		now, state := time.Unix(0, 0), State{}
		run := func(for_ time.Duration, us Region) (weight float64) {
			other := Region{Name: "eu", Score: 1, Known: true, Capacity: 100, Free: 100, StartRate: 100}
			us.Name, us.Capacity, us.Free, us.StartRate, us.Known = "us", 100, 100, 100, true
			for end := now.Add(for_); now.Before(end); now = now.Add(time.Second) {
				var decisions []Decision
				state, decisions = c.Step(state, []Region{other, us}, now)
				weight = decisions[1].Weight
			}
			return weight
		}
		run(5*time.Second, Region{Score: 1})
		down := Region{Score: 0.1}
		if died {
			down = Region{Score: 1, Dead: true}
		}
		if w := run(time.Minute, down); w > 0.2 {
			t.Fatalf("died %v: it keeps %.2f", died, w)
		}
		low := run(c.DwellOut-2*time.Second, Region{Score: between})
		if w := run(10*time.Minute, Region{Score: between}); died != (w > 0.45) {
			t.Errorf("died %v: with a score of %.2f it has %.2f, after the dwell time %.2f", died, between, low, w)
		}
	}
}
