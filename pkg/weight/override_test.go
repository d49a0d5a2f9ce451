package weight

import (
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// A person's word holds until its expiry, to the nanosecond, and not longer; the
// region then slides on from there.
func TestOverrideExpires(t *testing.T) {
	c, now, regions := DefaultConfig(), start, fleet(3)
	var s State
	run(c, &s, &now, regions, 1)
	until := now.Add(time.Minute)
	regions[0].Override = &Override{Level: 0.25, Until: until, By: "ada"}
	d := run(c, &s, &now, regions, 1)
	if d[0].Level != 0.25 || d[0].Cause != CauseOverride || !near(d[0].Weight, 0.25/2.25, 1e-12) || !strings.Contains(d[0].Text(), "person") {
		t.Fatalf("at once: %+v", d)
	}
	if _, d = c.Step(s, regions, until.Add(-1)); d[0].Level != 0.25 || d[0].Cause != CauseOverride {
		t.Errorf("a nanosecond before its end: %+v", d[0])
	}
	if _, d = c.Step(s, regions, until); d[0].Cause != CauseReturning || d[0].Level <= 0.25 || d[0].Level > 0.5 {
		t.Errorf("at its end: %+v", d[0])
	}
	regions[0].Override.Until = until.Add(time.Hour)
	regions[0].Dead = true
	if d = run(c, &s, &now, regions, 1); d[0].Weight != 0 || d[0].Alive() {
		t.Errorf("dead, whatever a person says: %+v", d[0])
	}
}

// A person may take out more than half; the controller then keeps in what it can.
// When all is closed, all is zero.
func TestOverrideBeyondHalf(t *testing.T) {
	c, now, regions := DefaultConfig(), start, fleet(3)
	var s State
	run(c, &s, &now, regions, 1)
	for i := range 2 {
		regions[i].Override = &Override{Until: now.Add(time.Hour)}
	}
	regions[2].Score = 0
	d := run(c, &s, &now, regions, 100)
	if d[0].Weight != 0 || d[1].Weight != 0 || !d[1].Closed() || d[2].Weight != 1 || d[2].Level != 1 {
		t.Errorf("two are closed: %+v", d)
	}
	regions[2].Override = &Override{Until: now.Add(time.Hour)}
	for _, d := range run(c, &s, &now, regions, 1) {
		if d.Weight != 0 || !d.Closed() {
			t.Errorf("all are closed: %+v", d)
		}
	}
}

// What a person takes out is made up for by what is on its way in, before what
// drains is brought back.
func TestHealthyMakeUpFirst(t *testing.T) {
	c, now, regions := DefaultConfig(), start, fleet(4)
	var s State
	run(c, &s, &now, regions, 1)
	regions[0].Score, regions[1].Dead = 0, true
	run(c, &s, &now, regions, 60)
	regions[1].Dead = false
	before := run(c, &s, &now, regions, 35)
	regions[2].Override = &Override{Until: now.Add(time.Hour)}
	if d := run(c, &s, &now, regions, 1); before[1].Level > 0.5 || before[0].Level != 0 || !near(d[1].Level, 1, 1e-9) || d[0].Level != 0 {
		t.Errorf("%+v, then %+v", before, d)
	}
}

// Whatever else happens, a living region with a person's word has just the level
// that was said, as long as it holds, and is decided on by the controller
// otherwise.
func TestOverrideProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s State
		for _, m := range drawWild(t, true) {
			var out []Decision
			s, out = DefaultConfig().Step(s, m.regions, m.now)
			for i, d := range out {
				r := &m.regions[i]
				held := r.alive() > 0 && r.Override != nil && m.now.Before(r.Override.Until)
				if held != (d.Cause == CauseOverride) || held && !near(d.Level, unit(r.Override.Level), 1e-12) {
					t.Fatalf("%+v with %+v at %s", d, r.Override, m.now)
				}
			}
		}
	})
}
