package pool

import (
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var start = time.Date(2026, 9, 1, 12, 0, 0, 0, time.UTC)

// steady is the demand after n a second for a time.
func steady(n int, lasts time.Duration) (Demand, time.Time) {
	var d Demand
	now := start
	for ; now.Sub(start) < lasts; now = now.Add(time.Second / 10) {
		if now.Sub(start)%time.Second == 0 {
			d.Arrived(now, n)
		}
	}
	return d, now
}

// TestSteadyArrivals: the rate converges to the true one, the spread to none,
// and both fade when nobody asks any more.
func TestSteadyArrivals(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 500).Draw(t, "a second")
		d, now := steady(n, 10*Memory)
		if got := d.Rate(now); math.Abs(got-float64(n)) > 0.001*float64(n) {
			t.Fatalf("%d a second were taken for %v", n, got)
		}
		if got := d.Spread(now); got > 0.05*float64(n) {
			t.Fatalf("%d a second have a spread of %v", n, got)
		}
		last := d.Rate(now)
		for range 20 {
			now = now.Add(Memory / 2)
			rate := d.Rate(now)
			if rate > last*0.7 {
				t.Fatalf("the rate fell from %v only to %v in %v", last, rate, Memory/2)
			}
			last = rate
		}
	})
}

// TestRandomArrivals: arrivals of a Poisson process have the rate that they
// have, and the spread of its root.
func TestRandomArrivals(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rate := rapid.Float64Range(2, 50).Draw(t, "rate")
		seed := rapid.Uint64().Draw(t, "seed")
		var d Demand
		now := start
		for now.Sub(start) < 8*Memory {
			// xorshift64*; rapid's own draws would be too many.
			seed ^= seed >> 12
			seed ^= seed << 25
			seed ^= seed >> 27
			u := (float64(seed*2685821657736338717>>11) + 0.5) / (1 << 53)
			now = now.Add(time.Duration(-math.Log(u) / rate * float64(time.Second)))
			d.Arrived(now, 1)
		}
		if seed == 0 {
			return
		}
		if got := d.Rate(now); got < rate*0.5 || got > rate*1.7 {
			t.Fatalf("%v a second were taken for %v", rate, got)
		}
		if got, want := d.Spread(now), math.Sqrt(rate); got < want/2.5 || got > want*2.5 {
			t.Fatalf("a spread of %v instead of %v", got, want)
		}
	})
}

// TestClockJumps: whatever the clock does, rate and spread stay within what has
// arrived, and the demand goes on counting.
func TestClockJumps(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var d Demand
		now := start
		total := 0
		for range rapid.IntRange(1, 60).Draw(t, "arrivals") {
			now = now.Add(time.Duration(rapid.Int64().Draw(t, "jump") >> rapid.IntRange(0, 62).Draw(t, "less")))
			n := rapid.IntRange(0, 100).Draw(t, "n")
			d.Arrived(now, n)
			total += n
			at := now.Add(time.Duration(rapid.Int64().Draw(t, "asked later")))
			for _, at := range []time.Time{now, at} {
				rate, spread := d.Rate(at), d.Spread(at)
				if !(rate >= 0 && rate <= float64(total)) || !(spread >= 0 && spread <= 2*float64(total)) {
					t.Fatalf("%d arrivals have a rate of %v and a spread of %v", total, rate, spread)
				}
				if got := d.Target(at, 100*time.Millisecond, 2); got < 0 || got > 50*total {
					t.Fatalf("%d arrivals have a target of %d", total, got)
				}
			}
		}
		for range 1200 {
			now = now.Add(Interval)
			d.Arrived(now, 5)
		}
		if got := d.Rate(now.Add(Interval)); math.Abs(got-5) > 0.1 {
			t.Fatalf("after the jumps, 5 a second were taken for %v", got)
		}
	})
}

func TestTarget(t *testing.T) {
	const build = 70 * time.Millisecond
	var none Demand
	if got := none.Target(start, build, 2); got != 0 {
		t.Errorf("nobody asks: %d", got)
	}
	var once Demand
	once.Arrived(start, 1)
	for after, want := range map[time.Duration]int{0: 1, time.Minute: 1, Lately - 1: 1, Lately: 0} {
		if got := once.Target(start.Add(after), build, 2); got != want {
			t.Errorf("%v after the only one: %d, want %d", after, got, want)
		}
	}
	// 10 a second, built in 70 ms two at a time: 1.6 s to refill.
	ten, now := steady(10, 10*Memory)
	if got := ten.Target(now, build, 2); got < 15 || got > 20 {
		t.Errorf("10 a second: %d", got)
	}
	if slow := ten.Target(now, 10*build, 2); slow < 90 {
		t.Errorf("10 a second that can't be built as fast: %d", slow)
	}
	// A burst every 20 s is remembered by its spread.
	var bursts Demand
	now = start
	for range 30 {
		bursts.Arrived(now, 100)
		now = now.Add(20 * time.Second)
	}
	if got := bursts.Target(now, build, 2); got < 50 || got > 150 {
		t.Errorf("bursts of 100: %d", got)
	}
	// A step is followed within seconds, not within the time constant.
	step, now := steady(10, 5*time.Second)
	if got := step.Target(now, build, 2); got < 8 {
		t.Errorf("5 s after 10 a second began: %d", got)
	}
}

// TestTargetFalls: with nobody asking, the target never rises, and ends at none.
func TestTargetFalls(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var d Demand
		now := start
		for range rapid.IntRange(1, 50).Draw(t, "arrivals") {
			now = now.Add(time.Duration(rapid.IntRange(0, 5000).Draw(t, "ms")) * time.Millisecond)
			d.Arrived(now, rapid.IntRange(1, 50).Draw(t, "n"))
		}
		now = now.Add(Interval) // the last one counts from here on
		last := most
		for end := now.Add(Lately); !now.After(end); now = now.Add(7 * time.Second) {
			got := d.Target(now, 50*time.Millisecond, 2)
			if got > last {
				t.Fatalf("the target rose from %d to %d with nobody asking", last, got)
			}
			last = got
		}
		if got := d.Target(now.Add(Lately), 0, 1); got != 0 {
			t.Fatalf("the target of a template that nobody uses: %d", got)
		}
	})
}
