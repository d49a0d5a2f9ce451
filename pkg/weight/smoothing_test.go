package weight

import (
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// The series that every description of this smoothing should have: α = 0.3 from
// 1.0, by the share itself and by the time that gives it.
func TestGoldenSeries(t *testing.T) {
	taus := DefaultConfig().Taus
	dt := time.Duration(-math.Log(0.7) * float64(taus.Out))
	want := []float64{0.94, 0.808, 0.6256, 0.43792, 0.306544, 0.2145808}
	direct, timed := 1.0, 1.0
	for i, health := range []float64{0.8, 0.5, 0.2, 0, 0, 0} {
		direct, timed = Approach(direct, health, 0.3), taus.Follow(timed, health, dt)
		if math.Abs(direct-want[i]) > 1e-12 {
			t.Errorf("%d: %.15f, want %.15f", i, direct, want[i])
		}
		// dt is a whole number of nanoseconds.
		if math.Abs(timed-want[i]) > 1e-9 {
			t.Errorf("%d, by time: %.15f, want %.15f", i, timed, want[i])
		}
	}
}

func TestAlpha(t *testing.T) {
	for _, c := range []struct {
		dt, tau time.Duration
		want    float64
	}{
		{5 * time.Second, 5 * time.Second, 1 - 1/math.E},
		{0, time.Second, 0},
		{-time.Hour, time.Second, 0},
		{math.MinInt64, time.Second, 0},
		{math.MaxInt64, time.Second, 1},
		{time.Second, 0, 1},
		{0, 0, 0},
		{1, math.MaxInt64, 1 / float64(math.MaxInt64)},
	} {
		if got := Alpha(c.dt, c.tau); math.Abs(got-c.want) > 1e-15 {
			t.Errorf("Alpha(%d, %d) = %g, want %g", c.dt, c.tau, got, c.want)
		}
	}
}

// Smoothing is out faster than in.
func TestFollowIsAsymmetric(t *testing.T) {
	taus := DefaultConfig().Taus
	if got, want := taus.Follow(1, 0, 5*time.Second), 1/math.E; math.Abs(got-want) > 1e-12 {
		t.Errorf("out: %g, want %g", got, want)
	}
	if got, want := taus.Follow(0, 1, 45*time.Second), 1-1/math.E; math.Abs(got-want) > 1e-12 {
		t.Errorf("in: %g, want %g", got, want)
	}
}

// However a time is cut into steps, the way is the same, goes towards the target
// only and never past it.
func TestFollowComposes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		taus := Taus{
			Out: time.Duration(rapid.Int64Range(1, int64(time.Minute)).Draw(t, "out")),
			In:  time.Duration(rapid.Int64Range(1, int64(time.Minute)).Draw(t, "in")),
		}
		from, to := rapid.Float64Range(0, 1).Draw(t, "from"), rapid.Float64Range(0, 1).Draw(t, "to")
		value, total := from, time.Duration(0)
		for _, dt := range rapid.SliceOfN(rapid.Int64Range(-int64(time.Second), int64(time.Minute)), 0, 10).Draw(t, "dt") {
			next := taus.Follow(value, to, time.Duration(dt))
			if math.Abs(next-to) > math.Abs(value-to)+1e-15 || (next-to)*(from-to) < 0 && math.Abs(next-to) > 1e-15 {
				t.Fatalf("from %g to %g: %g, then %g", from, to, value, next)
			}
			value = next
			total += max(time.Duration(dt), 0)
		}
		if once := taus.Follow(from, to, total); math.Abs(once-value) > 1e-12 {
			t.Fatalf("in steps %g, at once %g", value, once)
		}
	})
}
