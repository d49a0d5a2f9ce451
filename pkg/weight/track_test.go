package weight

import (
	"encoding/json"
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var start = time.Date(2026, 9, 1, 12, 0, 0, 0, time.UTC)

// usual is a track that has seen ten quick creates a second for a minute.
func usual() (Track, time.Time) {
	var k Track
	now := start
	for range 60 {
		now = now.Add(time.Second)
		k.Saw(now, Report{Succeeded: 10, Latency: 100 * time.Millisecond, Timeout: 30 * time.Second})
	}
	return k, now
}

func score(e Evidence) float64 { return Judge(Signals{Creates: e}).Score }

// A region whose creates all fail in a millisecond looks as bad as one whose
// creates all time out, and worse than one that is slow.
func TestFastFailuresDoNotLookHealthy(t *testing.T) {
	after := func(r Report) float64 {
		k, now := usual()
		for range 30 {
			now = now.Add(time.Second)
			k.Saw(now, r)
		}
		return score(k.Evidence(now))
	}
	healthy := after(Report{Succeeded: 10, Latency: 100 * time.Millisecond})
	slow := after(Report{Succeeded: 10, Latency: 400 * time.Millisecond})
	some := after(Report{Succeeded: 7, Failed: 3, Latency: 100 * time.Millisecond})
	fast := after(Report{Failed: 10, Latency: time.Millisecond})
	hang := after(Report{Succeeded: 10, Latency: 30 * time.Second})
	if healthy != 1 {
		t.Errorf("healthy: %g", healthy)
	}
	if fast > hang {
		t.Errorf("failures: %g, successes at the last moment: %g", fast, hang)
	}
	if !(healthy > slow && slow > some && some > fast) {
		t.Errorf("healthy %g, slow %g, three of ten fail %g, all fail %g", healthy, slow, some, fast)
	}
	if c := DefaultConfig(); slow >= c.InAbove || some >= c.OutBelow || fast > 0.2 {
		t.Errorf("slow %g, three of ten fail %g, all fail %g", slow, some, fast)
	}
}

// A region that has hardly ever succeeded, or only just before the time-out, is
// seen to fail all the same.
func TestFailuresShowBesideAnyBaseline(t *testing.T) {
	for _, latency := range []time.Duration{0, time.Millisecond, time.Second, 20 * time.Second, 30 * time.Second, time.Minute} {
		var k Track
		now := start
		k.Saw(now, Report{Succeeded: 10, Latency: latency, Timeout: 30 * time.Second})
		for range 180 {
			now = now.Add(time.Second)
			k.Saw(now, Report{Failed: 10})
		}
		if s := score(k.Evidence(now)); s > 0.1 {
			t.Errorf("usual latency %s, then failures only: %g", latency, s)
		}
	}
	var none Track
	none.Saw(start, Report{Failed: 95})
	if s := score(none.Evidence(start)); !near(s, 0.05, 1e-9) {
		t.Errorf("nothing but failures: %g", s)
	}
}

// What was bad fades when nothing comes any more, to a score that says nothing;
// one failure alone drains nothing.
func TestEvidenceFades(t *testing.T) {
	k, now := usual()
	for range 30 {
		now = now.Add(time.Second)
		k.Saw(now, Report{Failed: 10})
	}
	last := score(k.Evidence(now))
	for range 60 {
		now = now.Add(5 * time.Second)
		next := score(k.Evidence(now))
		if next < last {
			t.Fatalf("%g after %g", next, last)
		}
		last = next
	}
	if h := Judge(Signals{Creates: k.Evidence(now)}); h.Known || h.Score != 1 {
		t.Errorf("after five minutes: %+v", h)
	}
	var one Track
	one.Saw(now, Report{Failed: 1, Timeout: 30 * time.Second})
	if s := score(one.Evidence(now)); s < DefaultConfig().OutBelow || s == 1 {
		t.Errorf("one failure: %g", s)
	}
}

// A baseline forgets slowly what was quicker, so that a region that became slow
// shows it for long, and one report after a long silence is not the baseline.
func TestBaselineIsSlow(t *testing.T) {
	k, now := usual()
	k.Saw(now.Add(24*time.Hour), Report{Succeeded: 1, Latency: 10 * time.Second})
	if k.Baseline > 0.1+10*Alpha(time.Minute, 30*time.Minute) {
		t.Errorf("after a silence: %g s", k.Baseline)
	}
	k, now = usual()
	for range 120 {
		now = now.Add(time.Second)
		k.Saw(now, Report{Succeeded: 10, Latency: time.Second})
	}
	if s := score(k.Evidence(now)); s > 0.9 {
		t.Errorf("ten times as slow for two minutes: %g, baseline %g s", s, k.Baseline)
	}
}

// Whatever is reported, by whatever clock: one more failure never makes the
// score better, everything stays finite, and a track goes on after JSON where it
// was.
func TestTrackProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var k Track
		now := start
		for range rapid.IntRange(1, 20).Draw(t, "reports") {
			now = now.Add(time.Duration(rapid.SampledFrom([]int64{-1e12, 0, 1e9, 5e9, 60e9, math.MaxInt64 / 4}).Draw(t, "dt")))
			r := Report{
				Succeeded: rapid.IntRange(-1, 50).Draw(t, "good"), Failed: rapid.IntRange(-1, 50).Draw(t, "bad"),
				Latency: time.Duration(rapid.Int64Range(-1, 60e9).Draw(t, "latency")),
				Timeout: time.Duration(rapid.SampledFrom([]int64{0, 30e9}).Draw(t, "timeout")),
			}
			k.Saw(now, r)
			worse := k
			worse.Saw(now, Report{Failed: 1})
			s, w := score(k.Evidence(now)), score(worse.Evidence(now))
			if math.IsNaN(s) || s < 0 || s > 1 || w > s+1e-9 {
				t.Fatalf("%+v: %g, with one more failure %g", k, s, w)
			}
			text, err := json.Marshal(k)
			if err != nil {
				t.Fatal(err)
			}
			var again Track
			if err := json.Unmarshal(text, &again); err != nil || again.Evidence(now) != k.Evidence(now) {
				t.Fatalf("%s: %v, %+v", text, err, again)
			}
		}
	})
}
