package weight

import (
	"math"
	"time"
)

// What the signals may take from a score, and from where on.
const (
	// goodWill is how much evidence counts half: the cost of n operations is
	// multiplied by n/(n + goodWill), the shrinkage of an estimate towards "nothing
	// known" (Bühlmann's credibility factor). One failure of one create takes 1/6
	// and drains nothing, two of two do.
	goodWill = 5
	// leastEvidence is what counts as none: one operation two minutes ago.
	leastEvidence = 0.02
	// slowFrom is how many times the baseline a mean cost may be without taking
	// anything.
	slowFrom = 1.5
	// quick is the least baseline: below, differences are chance.
	quick = 10 * time.Millisecond

	// A region of which less than scarce is free loses headroomWorth on the way to
	// full: it can't take its share. Empty pools take warmWorth, which is less than
	// what is between a full score and coming back, so that they alone keep no
	// region out.
	scarce        = 0.1
	headroomWorth = 0.6
	warmWorth     = 0.04

	// A bus that is lagFrom behind begins to count; at lagFull, which is near the
	// 12 s for which an accept waits, it takes busWorth.
	lagFrom  = 500 * time.Millisecond
	lagFull  = 10 * time.Second
	busWorth = 0.8
)

// part takes the share of agents that did not answer.
func (a Answers) part() Part {
	if a.Asked <= 0 {
		return Part{Signal: SignalAnswers, Text: "no agent was asked"}
	}
	n := min(max(a.Answered, 0), a.Asked)
	return take(SignalAnswers, 1-float64(n)/float64(a.Asked), "%d of %d agents answered", n, a.Asked)
}

// part takes from nothing, at slowFrom times the baseline, to everything, when
// each operation costs its time-out, by the logarithm of the cost: a region that
// is twice as slow as before loses the same whether it was quick or slow, and
// failures, each as dear as thousands of quick creates, do not hide how slow the
// rest is.
func (e Evidence) part(signal Signal) Part {
	n := amount(e.Good) + amount(e.Bad)
	if n < leastEvidence {
		return Part{Signal: signal, Text: "nothing lately"}
	}
	// A baseline near the time-out would hide that everything fails.
	timeout := max(float64(e.Timeout), float64(2*quick))
	base := min(max(float64(e.Baseline), float64(quick)), timeout/2)
	times, worst := float64(max(e.Cost, 0))/base, timeout/base
	from := min(slowFrom, math.Sqrt(worst))
	var cost float64
	if times > from {
		cost = min(math.Log(times/from)/math.Log(worst/from), 1) * n / (n + goodWill)
	}
	return take(signal, cost, "%.0f%% failed; mean cost %s, usual %s",
		100*amount(e.Bad)/n, round(e.Cost), round(e.Baseline))
}

// part takes the scarcity of room, and a little for pools that are not full.
func (h Headroom) part() Part {
	capacity := amount(h.Capacity)
	if capacity == 0 {
		return Part{Signal: SignalHeadroom, Text: "capacity not known"}
	}
	free := unit(amount(h.Free) / capacity)
	cost := headroomWorth * unit(1-free/scarce)
	wanted := amount(h.WarmWanted)
	if wanted == 0 {
		return take(SignalHeadroom, cost, "%.0f%% free", 100*free)
	}
	warm := unit(amount(h.Warm) / wanted)
	return take(SignalHeadroom, cost+warmWorth*(1-warm), "%.0f%% free, pools %.0f%% full", 100*free, 100*warm)
}

// part takes in proportion to the lag.
func (b Bus) part() Part {
	if !b.Seen {
		return Part{Signal: SignalBus, Text: "lag not known"}
	}
	over := unit(float64(max(b.Lag, 0)-lagFrom) / float64(lagFull-lagFrom))
	return take(SignalBus, busWorth*over, "%s behind", round(b.Lag))
}

func round(d time.Duration) time.Duration { return max(d, 0).Round(100 * time.Microsecond) }
