package weight

import (
	"encoding/json"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// reach says how much of the regions' capacity is alive, how much of it counts,
// and whether one could have a weight.
func reach(m moment, out []Decision) (alive, in float64, open bool) {
	for i, d := range out {
		r := &m.regions[i]
		c := r.alive()
		alive += c
		in += c * d.Level
		open = open || c > 0 && (!r.Override.holds(m.now) || r.Override.level() > 0)
	}
	return alive, in, open
}

// Weights are never negative, sum to 1 unless nothing is open, and are in
// proportion to capacity × level; the dead have none; half of what is alive stays
// in unless a person has said otherwise.
func TestWeightsProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		overrides := rapid.Bool().Draw(t, "overrides")
		var s State
		for _, m := range drawWild(t, overrides) {
			var out []Decision
			s, out = DefaultConfig().Step(s, m.regions, m.now)
			if len(out) != len(m.regions) {
				t.Fatalf("%d decisions about %d regions", len(out), len(m.regions))
			}
			alive, in, open := reach(m, out)
			var sum float64
			for i, d := range out {
				r := &m.regions[i]
				sum += d.Weight
				if !(d.Weight >= 0 && d.Level >= 0 && d.Level <= 1 && d.Score >= 0 && d.Score <= 1) {
					t.Fatalf("%+v", d)
				}
				if (r.alive() == 0) == d.Alive() || !d.Alive() && d.Weight != 0 {
					t.Fatalf("%+v of %+v", d, r)
				}
				if want := r.alive() * d.Level / in; in > 0 && math.Abs(want-d.Weight) > 1e-9 {
					t.Fatalf("%+v, by capacity × level %g", d, want)
				}
			}
			if open && math.Abs(sum-1) > 1e-9 || !open && sum != 0 {
				t.Fatalf("the sum is %g: %+v", sum, out)
			}
			if !overrides && in < alive/2*(1-1e-9) {
				t.Fatalf("%g of %g is in: %+v", in, alive, out)
			}
		}
	})
}

// The same gives the same, in any order of the regions, and after the state has
// been text in between; the input is left alone.
func TestStepIsPure(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var live, stored State
		for _, m := range drawWild(t, true) {
			before := slices.Clone(m.regions)
			s, out := DefaultConfig().Step(live, m.regions, m.now)
			shuffled := slices.Clone(m.regions)
			seed := rapid.Uint64().Draw(t, "order")
			rand.New(rand.NewPCG(seed, 0)).Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
			kept := slices.Clone(live.Regions)
			again, outAgain := DefaultConfig().Step(stored, shuffled, m.now.In(time.FixedZone("x", 3600)))
			if !reflect.DeepEqual(s, again) || !reflect.DeepEqual(out, outAgain) {
				t.Fatalf("%+v\n%+v\nthen\n%+v\n%+v", s, out, again, outAgain)
			}
			if !slices.Equal(kept, live.Regions) || len(before) != len(m.regions) {
				t.Fatal("the input was changed")
			}
			text, err := json.Marshal(s)
			if err != nil {
				t.Fatal(err)
			}
			live = s
			if stored, err = ParseState(text); err != nil {
				t.Fatalf("%s: %v", text, err)
			}
		}
	})
}

// No region gains more share in a step than the slew lets it and than it can
// start, of all there is to start.
func TestSlewIsBounded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := DefaultConfig()
		var s State
		var last []Decision
		var at time.Time
		for i, m := range drawSteady(t) {
			var out []Decision
			s, out = c.Step(s, m.regions, m.now)
			dt := m.now.Sub(at).Seconds()
			var live float64
			for _, r := range m.regions {
				live += r.Live
			}
			for j, d := range out {
				r := m.regions[j]
				can := min(r.Free, r.Warm*min(dt, 1)+r.StartRate*dt) / max(live, 4*float64(len(out)), 1)
				if o := r.Override; o != nil && !near(d.Level, o.Level, 1e-12) {
					t.Fatalf("%+v with %+v", d, o)
				}
				if i > 0 && d.Weight-last[j].Weight > min(can, c.Slew*dt)+1e-9 {
					t.Fatalf("from %g to %g in %g s; it can start %g of all", last[j].Weight, d.Weight, dt, can)
				}
			}
			last, at = out, m.now
		}
	})
}

// A region that fails and goes on failing only ever loses, whatever the others
// can take.
func TestDrainIsMonotone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s State
		level, share, draining := 1.0, 1.0, false
		bad := rapid.Float64Range(0, 0.79).Draw(t, "score")
		s, _ = DefaultConfig().Step(s, fleet(5), start)
		for _, m := range drawSteady(t) {
			for j := range m.regions {
				m.regions[j].Score, m.regions[j].Known, m.regions[j].Override = 1, true, nil
			}
			m.regions[0].Score = bad
			var out []Decision
			s, out = DefaultConfig().Step(s, m.regions, m.now)
			if !draining { // its smoothed score is not below the threshold yet
				draining = out[0].Direction == Out
				level, share = out[0].Level, out[0].Weight
			}
			if (out[0].Direction == Out) != draining || out[0].Level > level+1e-12 || out[0].Weight > share+1e-9 {
				t.Fatalf("level %g after %g, weight %g after %g", out[0].Level, level, out[0].Weight, share)
			}
			level, share = out[0].Level, out[0].Weight
		}
	})
}

// However the scores jump, a region turns no more often than the dwell times
// let it; noise between the thresholds turns it never.
func TestNoFlapping(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := DefaultConfig()
		c.TauScore = 0 // the worst case: each report counts at once
		noise := rapid.Float64Range(0, 1).Draw(t, "noise")
		seed := rapid.Uint64().Draw(t, "seed")
		random := rand.New(rand.NewPCG(seed, 1))
		const seconds = 600
		var s State
		turns, now, regions := 0, start, fleet(3)
		last := In
		for range seconds {
			now = now.Add(time.Second)
			regions[0].Score = min(0.9+noise*(2*random.Float64()-1), 1)
			var out []Decision
			if s, out = c.Step(s, regions, now); out[0].Direction != last {
				turns++
				last = out[0].Direction
			}
		}
		most := 2*int(seconds*time.Second/(c.DwellIn+c.DwellOut)) + 2
		if noise < 0.1 {
			most = 0
		}
		if turns > most {
			t.Fatalf("it turned %d times in %d s with noise ±%g, at most %d was wanted", turns, seconds, noise, most)
		}
	})
}
