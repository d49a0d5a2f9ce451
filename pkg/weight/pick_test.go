package weight

import (
	"errors"
	"math"
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestPick(t *testing.T) {
	eu := Decision{Region: "eu", Weight: 0.5, Level: 1, Cause: CauseSteady}
	us := Decision{Region: "us", Weight: 0.4, Level: 0.8, Cause: CauseDraining}
	ap := Decision{Region: "ap", Weight: 0.1, Level: 0.2, Cause: CauseReturning}
	sa := Decision{Region: "sa", Cause: CauseDead}
	af := Decision{Region: "af", Cause: CauseOverride}
	gone := Decision{Region: "me", Level: 0, Score: 0.2, Cause: CauseDraining}
	better := Decision{Region: "ca", Level: 0, Score: 0.3, Cause: CauseDraining}
	all := []Decision{eu, us, ap, sa, af, gone, better}
	for name, c := range map[string]struct {
		req    Request
		region string
		reason Reason
	}{
		"by weight, first":            {Request{Random: 0.49}, "eu", ByWeight},
		"by weight, second":           {Request{Random: 0.51}, "us", ByWeight},
		"by weight, last":             {Request{Random: 0.95}, "ap", ByWeight},
		"nearest":                     {Request{Nearest: "eu", Random: 0.999}, "eu", ByNearest},
		"nearest that drains":         {Request{Nearest: "us", Random: 0.79}, "us", ByNearest},
		"away from one that drains":   {Request{Nearest: "us", Random: 0.81}, "eu", ByWeight},
		"nearest is not allowed":      {Request{Nearest: "eu", Allowed: []string{"us", "ap"}, Random: 0.9}, "ap", ByWeight},
		"nearest is dead":             {Request{Nearest: "sa", Random: 0.1}, "eu", ByWeight},
		"the only one":                {Request{Allowed: []string{"ap", "sa", "af", "x"}, Random: 0.9}, "ap", ByOnly},
		"the only one, drained":       {Request{Allowed: []string{"me"}, Random: 0.9}, "me", ByOnly},
		"all drained":                 {Request{Allowed: []string{"me", "ca"}, Random: 0.9}, "ca", ByLastResort},
		"no number":                   {Request{Random: math.NaN()}, "eu", ByWeight},
		"out of range":                {Request{Random: 1}, "ap", ByWeight},
		"nearest with a number of 1":  {Request{Nearest: "eu", Random: 1}, "eu", ByNearest},
		"other than nearest, drained": {Request{Nearest: "us", Allowed: []string{"us", "me"}, Random: 0.9}, "us", ByWeight},
	} {
		region, reason, err := Pick(all, c.req)
		if region != c.region || reason != c.reason || err != nil {
			t.Errorf("%s: %s, %s, %v; want %s, %s", name, region, reason, err, c.region, c.reason)
		}
	}

	_, _, err := Pick(all, Request{Allowed: []string{"sa", "af", "x"}})
	var none *NoRegionError
	if !errors.As(err, &none) || !reflect.DeepEqual(none, &NoRegionError{Dead: []string{"sa"}, Closed: []string{"af"}, Unknown: []string{"x"}}) {
		t.Errorf("%+v", err)
	}
	if want := "pick a region: dead: sa; closed by an operator: af; not known: x"; err.Error() != want {
		t.Errorf("%q, want %q", err, want)
	}
	if _, _, err := Pick(nil, Request{}); !errors.As(err, &none) || err.Error() != "pick a region: there is none" {
		t.Errorf("%v", err)
	}
}

// Whatever the decisions and the request: what is picked is allowed, alive and
// not closed, and if one is, one is picked; the shares are those of the weights.
func TestPickProperties(t *testing.T) {
	names := []string{"a", "b", "c", "d", "e", "x"}
	rapid.Check(t, func(t *rapid.T) {
		var s State
		var out []Decision
		for _, m := range drawWild(t, true) {
			s, out = DefaultConfig().Step(s, m.regions, m.now)
		}
		req := Request{
			Allowed: rapid.SliceOfN(rapid.SampledFrom(names), 0, 3).Draw(t, "allowed"),
			Nearest: rapid.SampledFrom(append(names, "")).Draw(t, "nearest"),
		}
		open := map[string]float64{}
		var total float64
		for _, d := range out {
			if d.Alive() && !d.Closed() && (len(req.Allowed) == 0 || slices.Contains(req.Allowed, d.Region)) {
				open[d.Region] = d.Weight
				total += d.Weight
			}
		}
		const draws = 2000
		picked := map[string]int{}
		for i := range draws {
			req.Random = (float64(i) + 0.5) / draws
			region, reason, err := Pick(out, req)
			var none *NoRegionError
			if (err == nil) != (len(open) > 0) || err != nil && !errors.As(err, &none) {
				t.Fatalf("%v with %v open", err, open)
			}
			if err != nil {
				return
			}
			if _, ok := open[region]; !ok || reason == "" {
				t.Fatalf("%s (%s) of %v", region, reason, open)
			}
			picked[region]++
		}
		if _, near := open[req.Nearest]; near || total == 0 {
			return
		}
		for name, w := range open {
			if got, want := float64(picked[name])/draws, w/total; math.Abs(got-want) > 2.0/draws {
				t.Fatalf("%s was picked with %g, its share is %g", name, got, want)
			}
		}
	})
}

// A client's nearest region keeps as much of its clients as its level says, and
// the others share the rest by weight: no cliff.
func TestPickSlides(t *testing.T) {
	out := []Decision{
		{Region: "a", Weight: 0.2, Level: 0.3, Cause: CauseDraining},
		{Region: "b", Weight: 0.6, Level: 1, Cause: CauseSteady},
		{Region: "c", Weight: 0.2, Level: 1, Cause: CauseSteady},
	}
	const draws = 10_000
	picked := map[string]float64{}
	for i := range draws {
		region, _, err := Pick(out, Request{Nearest: "a", Random: float64(i) / draws})
		if err != nil {
			t.Fatal(err)
		}
		picked[region] += 1.0 / draws
	}
	for name, want := range map[string]float64{"a": 0.3, "b": 0.7 * 0.75, "c": 0.7 * 0.25} {
		if !near(picked[name], want, 1e-3) {
			t.Errorf("%s: %g, want %g", name, picked[name], want)
		}
	}
}
