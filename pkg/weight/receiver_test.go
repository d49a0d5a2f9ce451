package weight

import (
	"strings"
	"testing"
	"time"
)

// A receiver that is full gets nothing more, and does not keep another from
// taking over; when nobody can take anything, nothing moves.
func TestReceivers(t *testing.T) {
	c, now, regions := DefaultConfig(), start, fleet(3)
	var s State
	run(c, &s, &now, regions, 1)
	regions[0].Score = 0.1
	regions[1].Free = 0
	d := run(c, &s, &now, regions, 60)
	if d[1].Weight > 1.0/3+1e-9 || d[2].Weight < 0.55 || d[0].Weight > 0.12 || d[1].Cause != CauseReceivers {
		t.Errorf("one is full: %+v", d)
	}
	for _, d := range d {
		if d.Cause == CauseReceivers && !strings.Contains(d.Text(), "start") {
			t.Error(d.Text())
		}
	}

	s, regions = State{}, fleet(3)
	run(c, &s, &now, regions, 1)
	regions[0].Score = 0
	regions[1].Free, regions[2].Free = 0, 0
	if d := run(c, &s, &now, regions, 60); !near(d[0].Weight, 1.0/3, 1e-9) || d[0].Cause != CauseReceivers || !near(d[1].Level, 1, 1e-9) {
		t.Errorf("all are full: %+v", d)
	}

	// Slow receivers slow the drain down and stay whole themselves.
	s, regions = State{}, fleet(3)
	run(c, &s, &now, regions, 1)
	regions[0].Score = 0
	for i := 1; i < 3; i++ {
		regions[i].Warm, regions[i].StartRate = 0, 6 // 1/200 of all a second
	}
	d = run(c, &s, &now, regions, 10)
	if lost := 1.0/3 - d[0].Weight; !near(lost, 0.1, 0.01) || !near(d[1].Level, 1, 1e-9) {
		t.Errorf("after 10 s of slow receivers it lost %g: %+v", lost, d)
	}
}

// Where one share would pass its bound, the change goes on until just there.
func TestBlendEndsAtTheBound(t *testing.T) {
	for _, to := range [][2]float64{{100, 300}, {20, 60}, {0, 100}} {
		p := plan{slots: []slot{
			{capacity: 400, from: 100, to: to[0], share: 0.5, most: 1},
			{capacity: 400, from: 100, to: to[1], share: 0.5, most: 0.6},
		}}
		p.blend()
		if a, b := p.slots[0].to, p.slots[1].to; !near(b/(a+b), 0.6, 1e-12) {
			t.Errorf("towards %v: %g and %g", to, a, b)
		}
	}
}

// The warm count once a second, and what is started by the time, but never more
// than fit.
func TestIntake(t *testing.T) {
	r := Region{Free: 100, Warm: 10, StartRate: 2}
	for dt, want := range map[time.Duration]float64{0: 0, time.Second / 2: 6, time.Second: 12, 10 * time.Second: 30, time.Hour: 100} {
		if got := r.intake(dt); got != want {
			t.Errorf("in %s: %g, want %g", dt, got, want)
		}
	}
}
