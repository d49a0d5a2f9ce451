package placement

import (
	"math"
	"time"
)

const (
	// trackMemory is the time constant by which what was seen of a node loses its
	// weight. A node that is avoided starts nothing and can't show that it is well
	// again; so it is tried again when its past has faded.
	trackMemory = time.Minute
	// goodWill is how many good starts each node is taken to have had: one failure
	// of one start is no reason to avoid a node, three of three are.
	goodWill = 5
)

// Standing is how a node's starts went. The zero value is that of a node of
// which nothing is known; it counts as well.
type Standing struct {
	// Latency is the smoothed time of the starts that succeeded; zero: not known.
	Latency time.Duration
	// Trust is how much Latency still says, from 1 for what was seen just now to
	// 0.
	Trust float64
	// Failures is the share of starts that failed, 0 to 1.
	Failures float64
}

// Track is what has been seen of a node's starts. Both counts are smoothed
// exponentially: before each report they are multiplied by e^(−Δt/τ). The zero
// value has seen nothing.
type Track struct {
	at        time.Time // of the last report
	good, bad float64
	latency   time.Duration
	latencyAt time.Time // when there were starts to measure it
}

// Saw takes in a report: so many starts succeeded and failed since the last one,
// and the node's smoothed latency is now latency.
func (t *Track) Saw(at time.Time, succeeded, failed int, latency time.Duration) {
	keep := fade(at.Sub(t.at))
	t.good = t.good*keep + float64(max(succeeded, 0))
	t.bad = t.bad*keep + float64(max(failed, 0))
	t.at = at
	if succeeded > 0 || latency != t.latency {
		t.latency, t.latencyAt = latency, at
	}
}

// Failed takes in one start that failed, as when the node did not answer.
func (t *Track) Failed(at time.Time) { t.Saw(at, 0, 1, t.latency) }

// Standing returns what counts of it at a time.
func (t Track) Standing(now time.Time) Standing {
	keep := fade(now.Sub(t.at))
	bad := t.bad * keep
	return Standing{
		Latency: t.latency, Trust: fade(now.Sub(t.latencyAt)),
		Failures: bad / (bad + t.good*keep + goodWill),
	}
}

// fade is the weight that is left after a time; a clock that went back takes
// nothing away.
func fade(passed time.Duration) float64 {
	return math.Exp(-max(passed.Seconds(), 0) / trackMemory.Seconds())
}
