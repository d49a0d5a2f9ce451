package weight

import (
	"fmt"
	"time"
)

// Signals are what is seen of a region, or of a node; both have the same shape.
// Whatever is missing (its zero value) counts neither as bad nor as good.
type Signals struct {
	// Answers: how many agents were asked something, or were due to report, and
	// how many did. For a node: its own last asks.
	Answers Answers
	// Creates is how creates went, from a [Track].
	Creates Evidence
	// Headroom is what is free.
	Headroom Headroom
	// Bus is how far its bus is behind.
	Bus Bus
	// Probes is how relays of other regions reached it, from a [Track].
	Probes Evidence
}

// Answers is a share of agents. Asked zero: not known.
type Answers struct{ Answered, Asked int }

// Evidence is how operations of one kind went lately.
type Evidence struct {
	// Good and Bad count successes and failures, old ones less; both zero: nothing
	// happened lately.
	Good, Bad float64
	// Cost is the mean cost of all of them, failures included (see [Track]);
	// Baseline the latency that is usual here, zero if not known; Timeout what a
	// failure costs.
	Cost, Baseline, Timeout time.Duration
}

// Headroom is what is free, in sandboxes or any other unit that is the same for
// all. Capacity zero: not known.
type Headroom struct {
	Free, Capacity float64
	// Warm is how many warm sandboxes there are, WarmWanted how many there should
	// be; zero: none are wanted.
	Warm, WarmWanted float64
}

// Bus is how long a write takes until those who follow the bus have seen it.
type Bus struct {
	Seen bool
	Lag  time.Duration
}

// Signal names a part of a score.
type Signal string

// The signals, in the order of [Health.Parts].
const (
	SignalAnswers  Signal = "answers"
	SignalCreates  Signal = "creates"
	SignalHeadroom Signal = "headroom"
	SignalBus      Signal = "bus"
	SignalProbes   Signal = "probes"
)

// Part is what one signal does to a score.
type Part struct {
	Signal Signal `json:"signal"`
	// Seen is false when there is no such signal.
	Seen bool `json:"seen"`
	// Contribution is what it takes from the score: 0 to −1.
	Contribution float64 `json:"contribution"`
	// Text says why, in a few words.
	Text string `json:"text"`
}

// Health is a score that explains itself.
type Health struct {
	// Score is from 0 (gone) to 1 (as it should be): 1 plus all contributions, and
	// 0 at least.
	Score float64 `json:"score"`
	// Known is false when there was no signal at all; the score then is 1 and says
	// nothing.
	Known bool `json:"known"`
	// Parts has one entry for each signal.
	Parts []Part `json:"parts,omitempty"`
}

// Judge makes a score of signals. Each signal that is worse than it should be
// takes something away, and what they take adds up: a good signal can't hide a
// bad one, as it could in a mean, and several that are a little off do not
// multiply. No signal that gets worse makes the score better.
func Judge(s Signals) Health {
	h := Health{Score: 1, Parts: []Part{
		s.Answers.part(), s.Creates.part(SignalCreates), s.Headroom.part(), s.Bus.part(), s.Probes.part(SignalProbes),
	}}
	for i := range h.Parts {
		h.Score += h.Parts[i].Contribution
		h.Known = h.Known || h.Parts[i].Seen
	}
	h.Score = unit(h.Score)
	return h
}

// take makes the part of a signal that was seen.
func take(signal Signal, cost float64, format string, args ...any) Part {
	p := Part{Signal: signal, Seen: true, Text: fmt.Sprintf(format, args...)}
	if cost = unit(cost); cost > 0 {
		p.Contribution = -cost
	}
	return p
}
