package bench

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

// Arrivals keep the rate although no call ever returns before the last has begun.
func TestPaceDoesNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		all := make(chan struct{})
		var calls, wrong atomic.Int64
		Pace(t.Context(), 100, 10, func(i int, due time.Time) {
			if want := began.Add(Due(i, 10)); !due.Equal(want) || !time.Now().Equal(want) {
				wrong.Add(1)
			}
			if calls.Add(1) == 100 {
				close(all)
			}
			<-all
		})
		if took := time.Since(began); took != 9900*time.Millisecond || calls.Load() != 100 || wrong.Load() != 0 {
			t.Errorf("%d calls in %v, %d at a wrong time", calls.Load(), took, wrong.Load())
		}
	})
}

func TestPaceEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 950*time.Millisecond)
		defer cancel()
		var calls atomic.Int64
		Pace(ctx, 100, 10, func(int, time.Time) { calls.Add(1) })
		if calls.Load() != 10 {
			t.Errorf("%d calls in 0.95 s at 10 a second", calls.Load())
		}
	})
}

func TestDueDoesNotDrift(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rate := rapid.Float64Range(0.1, 10_000).Draw(t, "rate")
		i := rapid.IntRange(0, 1_000_000).Draw(t, "i")
		want := float64(i) / rate
		if got := Due(i, rate).Seconds(); got < want-1e-6 || got > want+1e-6 {
			t.Fatalf("arrival %d at %v/s is due at %v, want %v", i, rate, got, want)
		}
	})
}

func TestEachCallsEachOnce(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		n, parallel := rapid.IntRange(0, 100).Draw(rt, "n"), rapid.IntRange(1, 20).Draw(rt, "parallel")
		seen := make([]atomic.Int64, n)
		var now, most atomic.Int64
		each(t.Context(), n, parallel, func(i int) {
			seen[i].Add(1)
			most.Store(max(most.Load(), now.Add(1)))
			now.Add(-1)
		})
		for i := range seen {
			if seen[i].Load() != 1 {
				rt.Fatalf("%d was called %d times", i, seen[i].Load())
			}
		}
		if most.Load() > int64(parallel) {
			rt.Fatalf("%d at a time", most.Load())
		}
	})
}
