package plan_test

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/sirocco-run/sirocco/pkg/cloudflare/plan"
	"pgregory.net/rapid"
)

var regions = []string{"ap", "eu", "us"}

func rules() plan.Rules {
	return plan.Rules{
		Pools: map[string]string{"eu": "p-eu", "us": "p-us", "ap": "p-ap"}, LoadBalancer: true,
		TTL: 60, Every: 5 * time.Second, Check: 10 * time.Minute,
	}
}

// TestRound: whole hundredths whose sum is the rounded sum, none further than one
// from what it was.
func TestRound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		exact := map[string]float64{}
		sum := 0.0
		for i := range rapid.IntRange(0, 12).Draw(t, "pools") {
			w := rapid.Float64Range(0, 100).Draw(t, "weight")
			if rapid.Bool().Draw(t, "whole") {
				w = math.Round(w)
			}
			exact[fmt.Sprint(i)] = w
			sum += w
		}
		rounded := plan.Round(exact)
		got := 0
		for pool, w := range rounded {
			got += w
			if math.Abs(float64(w)-exact[pool]) >= 1+1e-5 || w < 0 || w > 100 {
				t.Fatalf("%v became %d", exact[pool], w)
			}
		}
		if len(rounded) != len(exact) || math.Abs(float64(got)-sum) > 0.5+1e-5 {
			t.Fatalf("the sum %v became %d: %v", sum, got, rounded)
		}
	})
}

func TestRoundThirds(t *testing.T) {
	got := plan.Round(map[string]float64{"a": 100.0 / 3, "b": 100.0 / 3, "c": 100.0 / 3})
	if want := map[string]int{"a": 34, "b": 33, "c": 33}; !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	got = plan.Round(map[string]float64{"a": 0.29 * 100, "b": 0.71 * 100})
	if want := map[string]int{"a": 29, "b": 71}; !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestTarget(t *testing.T) {
	d := plan.Desired{
		Weights: map[string]float64{"eu": 0.505, "us": 0.295, "ap": 0.2}, Drained: map[string]bool{"ap": true},
		Relays: map[string][]string{"eu": {"192.0.2.1", "2001:db8::1"}, "us": {"192.0.2.2"}, "ap": {"192.0.2.3"}},
		Domain: "Sandbox.example.com",
	}
	w, problems := plan.Target(d, rules())
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	if want := map[string]int{"p-eu": 51, "p-us": 29, "p-ap": 0}; !maps.Equal(w.Weights, want) {
		t.Errorf("weights %v, want %v", w.Weights, want)
	}
	if want := map[string]bool{"p-eu": true, "p-us": true, "p-ap": false}; !maps.Equal(w.Enabled, want) {
		t.Errorf("pools %v, want %v", w.Enabled, want)
	}
	var got []string
	for _, r := range w.Records {
		got = append(got, fmt.Sprintf("%s %s %s %d", r.Name, r.Type, r.Content, r.TTL))
	}
	want := []string{
		"*.sandbox.example.com A 192.0.2.1 60", "*.sandbox.example.com A 192.0.2.2 60", "*.sandbox.example.com AAAA 2001:db8::1 60",
		"relay-ap.sandbox.example.com A 192.0.2.3 60",
		"relay-eu.sandbox.example.com A 192.0.2.1 60", "relay-eu.sandbox.example.com AAAA 2001:db8::1 60",
		"relay-us.sandbox.example.com A 192.0.2.2 60",
	}
	if !slices.Equal(got, want) {
		t.Errorf("records %q, want %q", got, want)
	}
	r := rules()
	r.Target = "lb.example.com"
	w, problems = plan.Target(d, r)
	if len(problems) > 0 || !slices.Contains(w.Records, plan.Record{Name: "*.sandbox.example.com", Type: "CNAME", Content: "lb.example.com", TTL: 60}) || len(w.Records) != 5 {
		t.Errorf("with a target: %v %v", w.Records, problems)
	}
}

// TestWhatIsSent: the least change that is sent is 0.02, counted from what was
// sent and not from what was wanted; to and from zero everything is.
func TestWhatIsSent(t *testing.T) {
	for _, c := range []struct {
		have       [3]int
		eu, us, ap float64
		sent       bool
	}{
		{[3]int{50, 50, 0}, 0.5, 0.5, 0, false},
		{[3]int{50, 50, 0}, 0.519, 0.481, 0, false},
		{[3]int{50, 50, 0}, 0.52, 0.48, 0, true},
		{[3]int{50, 50, 0}, 0.481, 0.519, 0, false},
		{[3]int{50, 50, 0}, 0.48, 0.52, 0, true},
		{[3]int{50, 49, 1}, 0.505, 0.495, 0, true},        // to zero
		{[3]int{50, 49, 1}, 0.505, 0.491, 0.004, false},   // small, not zero
		{[3]int{50, 50, 0}, 0.495, 0.495, 0.01, true},     // from zero
		{[3]int{50, 50, 0}, 0.498, 0.4985, 0.0035, false}, // from zero to what is still sent as zero
		{[3]int{50, 50, -1}, 0.5, 0.5, 0, true},           // Cloudflare has none of its own
		{[3]int{34, 33, 33}, 1 / 3.0, 1 / 3.0, 1 / 3.0, false},
	} {
		want, problems := plan.Target(plan.Desired{Weights: map[string]float64{"eu": c.eu, "us": c.us, "ap": c.ap}}, rules())
		if len(problems) > 0 {
			t.Fatal(problems)
		}
		want.Enabled = nil
		now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
		s := plan.State{
			Have:    plan.Edge{Weights: map[string]int{"p-eu": c.have[0], "p-us": c.have[1], "p-ap": c.have[2]}},
			Checked: map[plan.Part]time.Time{plan.Weights: now},
		}
		if step := plan.Decide(now, want, s, rules()); (step.Action == plan.Write) != c.sent {
			t.Errorf("%+v: %+v", c, step)
		}
		if due := plan.Due(want, s); due != c.sent {
			t.Errorf("%+v: due %v", c, due)
		}
	}
}

// TestNothingLeft: what would send all traffic nowhere is not wanted, whatever
// asks for it.
func TestNothingLeft(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := desired(t)
		w, problems := plan.Target(d, rules())
		sum, on := 0, 0
		for _, weight := range w.Weights {
			sum += weight
		}
		for _, enabled := range w.Enabled {
			if enabled {
				on++
			}
		}
		if w.Weights != nil && sum == 0 || w.Enabled != nil && on == 0 {
			t.Fatalf("%+v leaves nothing: %+v", d, w)
		}
		if w.Weights == nil && !slices.ContainsFunc(problems, func(err error) bool { return errors.Is(err, plan.ErrNothingLeft) }) {
			t.Fatalf("%+v: no weights and no reason: %v", d, problems)
		}
		if w.Records != nil && !slices.ContainsFunc(w.Records, func(r plan.Record) bool { return r.Name == "*.d.example.com" }) {
			t.Fatalf("%+v: no wildcard in %v", d, w.Records)
		}
	})
}

func TestRefusesNonsense(t *testing.T) {
	for _, w := range []float64{math.NaN(), -0.1, 1.1, math.Inf(1)} {
		got, problems := plan.Target(plan.Desired{Weights: map[string]float64{"eu": w, "us": 0.5}}, rules())
		if got.Weights != nil || len(problems) == 0 {
			t.Errorf("%v: %v, %v", w, got.Weights, problems)
		}
	}
	for _, relays := range [][]string{{"relay"}, {"192.0.2.1", "relay.example.com"}, {"fe80::1%eth0"}, {"a b.example.com"}, {""}} {
		got, problems := plan.Target(plan.Desired{Domain: "d.example.com", Relays: map[string][]string{"eu": relays}}, rules())
		if got.Records != nil || len(problems) == 0 {
			t.Errorf("%q: %v, %v", relays, got.Records, problems)
		}
	}
}

func desired(t *rapid.T) plan.Desired {
	d := plan.Desired{Weights: map[string]float64{}, Drained: map[string]bool{}, Relays: map[string][]string{}, Domain: "d.example.com"}
	for i, region := range regions {
		d.Weights[region] = rapid.OneOf(rapid.Just(0.0), rapid.Float64Range(0, 1), rapid.Float64Range(0, 0.03)).Draw(t, region)
		d.Drained[region] = rapid.IntRange(0, 4).Draw(t, "drained") == 0
		d.Relays[region] = []string{fmt.Sprintf("192.0.2.%d", 10*i+rapid.IntRange(1, 2).Draw(t, "address"))}
	}
	return d
}

// world plays Cloudflare and the time for one publisher after another.
type world struct {
	now    time.Time
	edge   plan.Edge
	state  plan.State
	writes []time.Time
	parts  []plan.Part
}

// run carries out steps until the time is over, with failures drawn from t if it
// is not nil, and checks each write.
func (w *world) run(t *rapid.T, want plan.Wanted, r plan.Rules, d time.Duration, fail bool, fatal func(string, ...any)) {
	for end := w.now.Add(d); w.now.Before(end); {
		step := plan.Decide(w.now, want, w.state, r)
		if step.Action == plan.Wait {
			if !step.Until.After(w.now) {
				fatal("to wait until %v at %v", step.Until, w.now)
			}
			w.now = step.Until
			if end.Before(w.now) {
				w.now = end
			}
			continue
		}
		if w.state.NotBefore.After(w.now) {
			fatal("%v at %v, to be left alone until %v", step, w.now, w.state.NotBefore)
		}
		if step.Action == plan.Write {
			w.check(step, want, r, fatal)
			w.state = w.state.Begin(step.Part, want, w.now)
			w.writes, w.parts = append(w.writes, w.now), append(w.parts, step.Part)
		}
		w.now = w.now.Add(50 * time.Millisecond)
		w.answer(t, step, want, fail)
	}
}

func (w *world) check(step plan.Step, want plan.Wanted, r plan.Rules, fatal func(string, ...any)) {
	if n := len(w.writes); n > 0 && w.now.Sub(w.writes[n-1]) < r.Every {
		fatal("written at %v and at %v", w.writes[n-1], w.now)
	}
	if _, known := w.state.Checked[step.Part]; !known {
		fatal("%s is written and not known", step.Part)
	}
	if until := w.state.Refused[step.Part]; until.After(w.now) {
		fatal("%s is written at %v, refused until %v", step.Part, w.now, until)
	}
	if step.Part != plan.Weights {
		return
	}
	for pool := range want.Weights {
		h, ok := w.state.Have.Weights[pool]
		e := want.Exact[pool]
		if !ok || h < 0 || math.Abs(e-float64(h)) >= 2-1e-4 || (e == 0) != (h == 0) {
			return
		}
	}
	fatal("sent for nothing: %v to %v", w.state.Have.Weights, want.Exact)
}

func (w *world) answer(t *rapid.T, step plan.Step, want plan.Wanted, fail bool) {
	fate := 0
	if fail {
		fate = rapid.IntRange(0, 6).Draw(t, "fate")
	}
	apply := func() {
		if step.Action != plan.Write {
			return
		}
		if pool, ok := step.Part.Pool(); ok {
			w.edge.Enabled[pool] = want.Enabled[pool]
		} else if step.Part == plan.Weights {
			w.edge.Weights = want.Weights
		} else {
			w.edge.Records = want.Records
		}
	}
	switch fate {
	case 1: // limited
		w.state = w.state.Failed(step.Part, plan.Failure{Text: "429", RetryAfter: 30 * time.Second}, w.now, 0.5)
	case 2: // no answer, done
		apply()
		w.state = w.state.Failed(step.Part, plan.Failure{Text: "EOF", Unknown: true}, w.now, 0.5)
	case 3: // no answer, not done
		w.state = w.state.Failed(step.Part, plan.Failure{Text: "EOF", Unknown: true}, w.now, 0.5)
	case 4: // refused
		w.state = w.state.Failed(step.Part, plan.Failure{Text: "403", Refused: true}, w.now, 0.5)
	case 5: // the publisher dies
		if rapid.Bool().Draw(t, "done") {
			apply()
		}
		w.state = w.state.TakeOver()
	default:
		apply()
		have := plan.Edge{Weights: maps.Clone(w.edge.Weights), Enabled: maps.Clone(w.edge.Enabled), Records: w.edge.Records}
		w.state = w.state.Saw(step.Part, have, w.now).Limited(100, time.Minute, w.now)
	}
}

func newWorld() *world {
	return &world{
		now:  time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC),
		edge: plan.Edge{Weights: map[string]int{"p-eu": -1, "p-us": -1, "p-ap": -1}, Enabled: map[string]bool{"p-eu": true, "p-us": true, "p-ap": true}},
	}
}

// TestHistories: through any failures, writes keep their distance, pauses are kept,
// nothing is sent for nothing or without knowing what is there; and once failures
// end, Cloudflare holds what is wanted.
func TestHistories(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w, r := newWorld(), rules()
		var want plan.Wanted
		for range rapid.IntRange(1, 12).Draw(t, "changes") {
			if next, _ := plan.Target(desired(t), r); next.Weights != nil {
				want = next
			}
			w.run(t, want, r, time.Duration(rapid.IntRange(1, 60_000).Draw(t, "ms"))*time.Millisecond, true, t.Fatalf)
		}
		w.run(t, want, r, time.Hour, false, t.Fatalf)
		for pool, e := range want.Exact {
			h := w.edge.Weights[pool]
			if h < 0 || math.Abs(e-float64(h)) >= 2 || e == 0 && h != 0 || h == 0 && want.Weights[pool] > 0 {
				t.Fatalf("after an hour Cloudflare holds %v, wanted %v", w.edge.Weights, want.Exact)
			}
		}
		for pool, on := range want.Enabled {
			if w.edge.Enabled[pool] != on {
				t.Fatalf("after an hour pool %s is %v", pool, w.edge.Enabled[pool])
			}
		}
		if want.Records != nil && !slices.Equal(w.edge.Records, want.Records) {
			t.Fatalf("after an hour there are %v, wanted %v", w.edge.Records, want.Records)
		}
		sent := len(w.writes)
		w.run(t, want, r, 5*time.Hour, false, t.Fatalf)
		if len(w.writes) != sent {
			t.Fatalf("%d writes though nothing changed", len(w.writes)-sent)
		}
	})
}

// TestNothingStarves: while a region flaps to zero and back without end, pools and
// records get their turn.
func TestNothingStarves(t *testing.T) {
	w, r := newWorld(), rules()
	for i := range 40 {
		up := float64(i % 2)
		want, problems := plan.Target(plan.Desired{
			Weights: map[string]float64{"eu": up / 2, "us": 1 - up/2, "ap": 0}, Drained: map[string]bool{"ap": i > 10},
			Domain: "d.example.com", Relays: map[string][]string{"us": {fmt.Sprintf("192.0.2.%d", i/20)}},
		}, r)
		if len(problems) > 0 {
			t.Fatal(problems)
		}
		w.run(nil, want, r, 5*time.Second, false, t.Fatalf)
	}
	if w.edge.Enabled["p-ap"] || !slices.ContainsFunc(w.edge.Records, func(r plan.Record) bool { return r.Content == "192.0.2.1" }) {
		t.Errorf("starved: %v %v, written %v", w.edge.Enabled, w.edge.Records, w.parts)
	}
}

// TestToZeroComesFirst: of what waits, taking the traffic away from a dead region
// is sent first.
func TestToZeroComesFirst(t *testing.T) {
	w, r := newWorld(), rules()
	d := plan.Desired{Weights: map[string]float64{"eu": 0.5, "us": 0.5, "ap": 0}, Domain: "d.example.com", Relays: map[string][]string{"eu": {"192.0.2.1"}, "us": {"192.0.2.2"}}}
	want, _ := plan.Target(d, r)
	w.run(nil, want, r, time.Minute, false, t.Fatalf)
	d.Weights, d.Drained = map[string]float64{"eu": 0, "us": 1, "ap": 0}, map[string]bool{"eu": true}
	want, _ = plan.Target(d, r)
	w.parts = nil
	w.state.Wrote[plan.Records] = w.now.Add(-time.Second) // so that it was not written last
	w.run(nil, want, r, time.Minute, false, t.Fatalf)
	if len(w.parts) != 3 || w.parts[0] != plan.Weights {
		t.Errorf("written %v", w.parts)
	}
}

// TestClocksOfOthers: a state from a clock that was days ahead silences nobody.
func TestClocksOfOthers(t *testing.T) {
	w, r := newWorld(), rules()
	want, _ := plan.Target(plan.Desired{Weights: map[string]float64{"eu": 0.5, "us": 0.5, "ap": 0}}, r)
	ahead := w.now.Add(48 * time.Hour)
	w.state = plan.State{
		Have: w.edge, Wrote: map[plan.Part]time.Time{plan.Weights: ahead}, NotBefore: ahead,
		Refused: map[plan.Part]time.Time{plan.Weights: ahead}, Checked: map[plan.Part]time.Time{plan.Weights: w.now},
	}
	if step := plan.Decide(w.now, plan.Wanted{Edge: plan.Edge{Weights: want.Weights}, Exact: want.Exact}, w.state, r); step.Action != plan.Write {
		t.Errorf("got %+v", step)
	}
}

// TestBackoff: each failure doubles the pause up to a minute, luck makes it
// shorter by half at most, and Cloudflare's own word counts instead.
func TestBackoff(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var s plan.State
	for i, want := range []time.Duration{1, 2, 4, 8, 16, 32, 60, 60, 60} {
		lucky := s.Failed(plan.Weights, plan.Failure{Unknown: true}, now, 0)
		s = s.Failed(plan.Weights, plan.Failure{Unknown: true}, now, 1)
		if got := s.NotBefore.Sub(now); got != want*time.Second || lucky.NotBefore.Sub(now) != want*time.Second/2 {
			t.Errorf("failure %d: %v to %v, want %v s", i+1, lucky.NotBefore.Sub(now), got, int(want))
		}
	}
	if got := s.Failed(plan.Weights, plan.Failure{RetryAfter: 240 * time.Second}, now, 0).NotBefore.Sub(now); got != 240*time.Second {
		t.Errorf("Retry-After: %v", got)
	}
	if got := s.Saw(plan.Weights, plan.Edge{}, now).Limited(2, 17*time.Second, now).NotBefore.Sub(now); got != 17*time.Second {
		t.Errorf("almost at the limit: %v", got)
	}
	if got := s.Saw(plan.Weights, plan.Edge{}, now).Limited(50, 17*time.Second, now).NotBefore; !got.IsZero() {
		t.Errorf("far from the limit: %v", got)
	}
}
