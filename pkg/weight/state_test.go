package weight

import (
	"encoding/json"
	"math"
	"reflect"
	"testing"
	"time"
)

func TestParseStateRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"no JSON":             `{`,
		"more than one":       `{} {}`,
		"level above 1":       `{"regions":[{"name":"a","level":1.1,"direction":"in"}]}`,
		"negative level":      `{"regions":[{"name":"a","level":-0.1,"direction":"in"}]}`,
		"score above 1":       `{"regions":[{"name":"a","score":2,"direction":"in"}]}`,
		"negative capacity":   `{"regions":[{"name":"a","capacity":-1,"direction":"in"}]}`,
		"no direction":        `{"regions":[{"name":"a"}]}`,
		"another direction":   `{"regions":[{"name":"a","direction":"up"}]}`,
		"negative time":       `{"regions":[{"name":"a","direction":"in","held_ns":-1}]}`,
		"too many relapses":   `{"regions":[{"name":"a","direction":"in","relapses":99}]}`,
		"negative relapses":   `{"regions":[{"name":"a","direction":"in","relapses":-1}]}`,
		"the same name twice": `{"regions":[{"name":"a","direction":"in"},{"name":"b","direction":"in"},{"name":"a","direction":"in"}]}`,
	} {
		if s, err := ParseState([]byte(text)); err == nil || len(s.Regions) != 0 {
			t.Errorf("%s: %+v, %v", name, s, err)
		}
	}
	if s, err := ParseState([]byte(`{"at":"2026-09-01T12:00:00+02:00","regions":[{"name":"b","direction":"in"},{"name":"a","direction":"out","level":0.5}]}`)); err != nil ||
		len(s.Regions) != 2 || s.Regions[0].Name != "a" || s.Regions[0].Level != 0.5 || s.At.Hour() != 10 {
		t.Errorf("%+v, %v", s, err)
	}
}

// FuzzParseState: whatever is stored is refused, or is a state with which weights
// add up and which is the same after another round.
func FuzzParseState(f *testing.F) {
	now, regions := start, fleet(3)
	var s State
	run(DefaultConfig(), &s, &now, regions, 1)
	regions[0].Score = 0
	run(DefaultConfig(), &s, &now, regions, 10)
	text, err := json.Marshal(s)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(`{"at":"0001-01-01T00:00:00Z","regions":null}`))
	f.Add([]byte(`{"regions":[{"name":"a","level":1,"direction":"out","capacity":1e15,"held_ns":86400000000000}]}`))
	f.Add([]byte(`{"regions":[{"name":"b","level":5e-324,"score":0.9,"direction":"in","capacity":5e-324}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := ParseState(text)
		if err != nil {
			return
		}
		stored, err := json.Marshal(s)
		if err != nil {
			t.Fatalf("%+v: %v", s, err)
		}
		if again, err := ParseState(stored); err != nil || !reflect.DeepEqual(s, again) {
			t.Fatalf("%+v, then %+v, %v", s, again, err)
		}
		for range 3 {
			var out []Decision
			s, out = DefaultConfig().Step(s, regions, s.At.Add(time.Second))
			var sum float64
			for _, d := range out {
				sum += d.Weight
				if !(d.Weight >= 0 && d.Level >= 0 && d.Level <= 1) {
					t.Fatalf("%+v", d)
				}
			}
			if math.Abs(sum-1) > 1e-9 {
				t.Fatalf("the sum is %g: %+v", sum, out)
			}
			for i := range s.Regions {
				if err := s.Regions[i].check(); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}

func TestConfigValidate(t *testing.T) {
	if err := DefaultConfig().Validate(); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*Config){
		"negative time constant": func(c *Config) { c.Taus.Out = -1 },
		"thresholds that cross":  func(c *Config) { c.OutBelow = 0.96 },
		"in at 1":                func(c *Config) { c.InAbove = 1 },
		"no number":              func(c *Config) { c.OutBelow = math.NaN() },
		"negative dwell":         func(c *Config) { c.DwellIn = -1 },
		"dwell of days":          func(c *Config) { c.DwellOut = 48 * time.Hour },
		"negative relapse":       func(c *Config) { c.Relapse = -1 },
		"no slew":                func(c *Config) { c.Slew = 0 },
		"more than half":         func(c *Config) { c.MaxDrained = 0.51 },
		"no step":                func(c *Config) { c.MaxStep = 0 },
	} {
		c := DefaultConfig()
		change(&c)
		if err := c.Validate(); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
