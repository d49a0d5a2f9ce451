package pool

import (
	"math"
	"time"
)

const (
	// Interval is what arrivals are counted by.
	Interval = time.Second
	// Memory is the time constant of the smoothing: what happened that long ago
	// counts for 1/e of what happens now.
	Memory = time.Minute
	// Lately is for how long after its last arrival a template keeps one warm.
	Lately = 10 * time.Minute
	// Safety is how many standard deviations above the expected are kept ready: by
	// a normal distribution the pool runs empty in 1.3 of 1,000 refills.
	Safety = 3

	// longest is the longest refill that is planned for.
	longest = 10 * Interval
	// most bounds what a demand can ask for; no node has as many sandboxes.
	most = 1 << 20
)

// Demand is how often sandboxes of one template are asked for: arrivals per
// interval, with their exponentially smoothed mean and spread. The zero value
// is a template that nobody has asked for.
//
// The mean is moved by each interval's count x: m ← m + α·(x − m), with
// α = 1 − e^(−Interval/Memory), the exponentially weighted moving average of
// continuous time; n empty intervals are one multiplication by
// e^(−n·Interval/Memory). The spread is smoothed alike, from how far counts
// were above the mean that was expected: u ← u + α·(max(x − m, 0)² − u), the
// smoothed square error of a forecast (R. G. Brown, "Smoothing, Forecasting and
// Prediction", 1963). Only errors upwards count, twice, since a pool that was
// too large has let nobody down: a step or a burst raises the spread at once
// and the mean slowly, which makes the target quick to rise; that arrivals
// cease raises neither.
//
// The clock may jump. Backwards by more than an interval, the present interval
// ends and the next begins at the new time; by less, the arrival counts in the
// present one. Forwards, it is idle time. Neither can make a rate larger than
// what arrived between two reports.
type Demand struct {
	begin time.Time // of the interval that is being counted
	last  time.Time // of the last arrival
	count float64   // in the interval
	mean  float64   // of the counts of the intervals before
	above float64   // mean square of what was above the mean
}

// Arrived counts n sandboxes that were asked for at a time.
func (d *Demand) Arrived(at time.Time, n int) {
	if n <= 0 {
		return
	}
	if d.begin.IsZero() {
		d.begin = at
	}
	*d = d.until(at)
	d.count += float64(n)
	d.last = at
}

// Rate is how many are asked for in a second.
func (d Demand) Rate(now time.Time) float64 { return d.until(now).mean / Interval.Seconds() }

// Spread is the standard deviation of how many are asked for in an interval,
// from the errors upwards.
func (d Demand) Spread(now time.Time) float64 {
	return math.Sqrt(2 * d.until(now).above)
}

// Lately says whether one was asked for not long ago.
func (d Demand) Lately(now time.Time) bool { return !d.last.IsZero() && now.Sub(d.last) < Lately }

// Target is how many warm sandboxes the demand calls for: those expected to be
// claimed while the pool is refilled, and [Safety] standard deviations more;
// one at least for a template that was used lately, none for one that was not.
// A build takes buildTime, and parallel are built at a time.
func (d Demand) Target(now time.Time, buildTime time.Duration, parallel int) int {
	return d.forecast(now, buildTime, parallel).units(beyondSafety)
}

// until returns the demand with all intervals counted that are over.
func (d Demand) until(now time.Time) Demand {
	if d.begin.IsZero() {
		return d
	}
	switch passed := now.Sub(d.begin); {
	case passed >= Interval:
		over := passed / Interval
		d.end()
		rest := keep(over - 1)
		d.mean *= rest
		d.above *= rest
		d.begin = d.begin.Add(over * Interval)
	case passed <= -Interval:
		d.end()
		d.begin = now
	}
	return d
}

// end counts the present interval as over.
func (d *Demand) end() {
	alpha := 1 - keep(1)
	more := max(d.count-d.mean, 0)
	d.above += alpha * (more*more - d.above)
	d.mean += alpha * (d.count - d.mean)
	d.count = 0
}

// keep is the weight that remains after intervals have passed.
func keep(intervals time.Duration) float64 {
	return math.Exp(-float64(intervals) * float64(Interval) / float64(Memory))
}

// forecast is how many will be claimed while a pool is refilled, as a normal
// distribution.
type forecast struct {
	mean, deviation float64
	floor           int
}

// forecast looks ahead for one build, and for the time that it takes to make up
// for an interval's arrivals while more arrive: Interval/(1−ρ) with the load
// ρ = rate·buildTime/parallel, the busy period of a queue. Arrivals of
// different intervals are taken as independent, so the variance grows with the
// time: the safety stock of inventory theory (Silver, Pyke and Thomas,
// "Inventory and Production Management in Supply Chains", chapter 6).
func (d Demand) forecast(now time.Time, buildTime time.Duration, parallel int) forecast {
	d = d.until(now)
	if !d.Lately(now) {
		return forecast{}
	}
	build := max(buildTime.Seconds(), 0)
	ahead := longest.Seconds()
	if load := d.mean / Interval.Seconds() * build / float64(max(parallel, 1)); load < 1 {
		ahead = min(ahead, build+Interval.Seconds()/(1-load))
	}
	intervals := ahead / Interval.Seconds()
	return forecast{mean: d.mean * intervals, deviation: math.Sqrt(2 * d.above * intervals), floor: 1}
}

// beyondSafety is the chance that more than the target are claimed.
var beyondSafety = math.Erfc(Safety/math.Sqrt2) / 2

// units is how many are needed so that with a chance of no more than p they are
// not enough; none if even a sure claim is not worth one.
func (f forecast) units(p float64) int {
	if p >= 1 {
		return 0
	}
	deviations := math.Sqrt2 * math.Erfinv(1-2*p)
	n := math.Round(f.mean + deviations*f.deviation)
	return max(int(min(max(n, 0), most)), f.floor)
}

// chance is that of more than n being claimed.
func (f forecast) chance(n int) float64 {
	above := float64(n) + 0.5 - f.mean
	if f.deviation == 0 {
		if above < 0 {
			return 1
		}
		return 0
	}
	return math.Erfc(above/f.deviation/math.Sqrt2) / 2
}
