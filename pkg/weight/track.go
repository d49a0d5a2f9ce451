package weight

import (
	"math"
	"time"
)

const (
	// trackMemory is the time constant by which what was seen loses its weight. A
	// region that is drained creates nothing and can't show that it is well again;
	// so it is tried again, slowly, when its past has faded.
	trackMemory = 30 * time.Second
	// longestGap is how much time one report can stand for when a baseline is
	// learned: after a long silence, one report must not become the baseline.
	longestGap = time.Minute
	// unsaidTimeout is the time-out of reports that name none.
	unsaidTimeout = 30 * time.Second
)

// baselineTaus are the time constants of a baseline: it falls in minutes to what
// has become quicker, and takes half an hour to accept what has become slower,
// since that is what it is there to show.
var baselineTaus = Taus{Out: 5 * time.Minute, In: 30 * time.Minute}

// Report says how some operations of one kind (creates, probes) went since the
// last report.
type Report struct {
	// Succeeded and Failed count them. A failure that is the client's own fault
	// (an image that does not exist, a quota) is none here.
	Succeeded, Failed int
	// Latency is the mean of those that succeeded. How soon the others failed does
	// not matter.
	Latency time.Duration
	// Timeout is how long whoever asks would wait: what a failure costs, and the
	// most that a success does. Zero: as before, or 30 s if never said.
	Timeout time.Duration
}

// Track is the memory of one kind of operation. The zero value has seen nothing.
// It can be stored as JSON and go on where it was.
//
// Each operation has a cost in seconds: its latency or, if it failed, its
// time-out. So a region that fails fast is not the quickest of all, but as slow
// as one that never answers; and since nothing costs more than a failure, one
// more never makes the mean better. Costs and counts are smoothed exponentially:
// before each report they are multiplied by e^(−Δt/τ), with τ 30 s. The baseline is
// the smoothed latency of successes, with 5 min downwards and 30 min upwards.
type Track struct {
	// At is the time of the last report.
	At time.Time `json:"at"`
	// Good and Bad are faded counts of successes and failures, Cost the faded sum
	// of what they cost, in seconds.
	Good float64 `json:"good"`
	Bad  float64 `json:"bad"`
	Cost float64 `json:"cost"`
	// Baseline and Timeout are in seconds; zero: not known yet.
	Baseline float64 `json:"baseline"`
	Timeout  float64 `json:"timeout"`
}

// Saw takes in a report. A clock that went back fades nothing.
func (t *Track) Saw(now time.Time, r Report) {
	passed := max(now.Sub(t.At), 0)
	keep := fade(passed)
	good, bad := float64(max(r.Succeeded, 0)), float64(max(r.Failed, 0))
	switch {
	case r.Timeout > 0:
		t.Timeout = r.Timeout.Seconds()
	case t.Timeout == 0:
		t.Timeout = unsaidTimeout.Seconds()
	}
	latency := min(max(r.Latency.Seconds(), 0), t.Timeout)
	t.Good = t.Good*keep + good
	t.Bad = t.Bad*keep + bad
	t.Cost = t.Cost*keep + good*latency + bad*t.Timeout
	t.At = now
	switch {
	case good == 0:
	case t.Baseline == 0:
		t.Baseline = latency
	default:
		t.Baseline = baselineTaus.Follow(t.Baseline, latency, min(passed, longestGap))
	}
}

// Evidence returns what the track still says at a time.
func (t Track) Evidence(now time.Time) Evidence {
	keep := fade(now.Sub(t.At))
	e := Evidence{
		Good: t.Good * keep, Bad: t.Bad * keep,
		Baseline: seconds(t.Baseline), Timeout: seconds(t.Timeout),
	}
	if n := t.Good + t.Bad; n > 0 {
		e.Cost = seconds(t.Cost / n)
	}
	return e
}

// fade is the weight that is left after a time; a clock that went back takes
// nothing away.
func fade(passed time.Duration) float64 {
	return math.Exp(-max(passed.Seconds(), 0) / trackMemory.Seconds())
}

func seconds(s float64) time.Duration {
	return time.Duration(min(amount(s), 1e9) * float64(time.Second))
}
