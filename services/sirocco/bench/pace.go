package bench

import (
	"context"
	"sync"
	"time"
)

// Due is when arrival i (from 0) is due, from the start, at a rate per second.
// It is computed from the start and not from the arrival before, so that no
// delay adds up.
func Due(i int, rate float64) time.Duration {
	return time.Duration(float64(i) / rate * float64(time.Second))
}

// Pace calls f n times, rate times a second, each in a goroutine of its own:
// arrivals do not wait for answers, so a platform that becomes slow meets as many
// as one that is fast (an open loop). What is due while this program was not
// running is called at once. It returns when all calls have returned; when ctx
// ends, no more are made.
//
// due is when the call should have been made: whoever takes the time from there
// counts what a late start would hide.
func Pace(ctx context.Context, n int, rate float64, f func(i int, due time.Time)) {
	var calls sync.WaitGroup
	defer calls.Wait()
	began := time.Now()
	for i := range n {
		at := began.Add(Due(i, rate))
		if !until(ctx, at) {
			return
		}
		calls.Go(func() { f(i, at) })
	}
}

// until waits for a time, and says false if ctx ended first.
func until(ctx context.Context, at time.Time) bool {
	timer := time.NewTimer(time.Until(at))
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}
