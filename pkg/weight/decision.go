package weight

import "fmt"

// Direction is where a region's level is going. It is stored, so the words are a
// contract.
type Direction string

// The directions: In is up to 1, or already there; Out is down to the score.
const (
	In  Direction = "in"
	Out Direction = "out"
)

// Cause is why a region's level is what it is. It is published, so the words are
// a contract.
type Cause string

// The causes. When several hold, the first of this list is named.
const (
	// CauseDead: it is known dead, or has no capacity.
	CauseDead Cause = "dead"
	// CauseOverride: a person said so.
	CauseOverride Cause = "override"
	// CauseUnknown: nothing is known of its health, so all stays.
	CauseUnknown Cause = "unknown"
	// CauseHalf: without it less than half of the capacity would be left.
	CauseHalf Cause = "half"
	// CauseReceivers: it would change faster, but who gets the share, itself or
	// others, can't start sandboxes that fast.
	CauseReceivers Cause = "receivers"
	// CauseDwell: it would turn, but has not gone in its direction for long enough.
	CauseDwell Cause = "dwell"
	// CauseDraining: its level falls to its score, or stays there.
	CauseDraining Cause = "draining"
	// CauseReturning: its level rises to 1.
	CauseReturning Cause = "returning"
	// CauseSteady: it has its whole share.
	CauseSteady Cause = "steady"
)

// Decision is what a step says of one region.
type Decision struct {
	Region string `json:"region"`
	// Weight is its share of new sandboxes, 0 to 1.
	Weight float64 `json:"weight"`
	// Level is how much of its capacity counts, 0 to 1.
	Level float64 `json:"level"`
	// Score is its smoothed health, 0 to 1; 1 as long as nothing is known.
	Score     float64   `json:"score"`
	Direction Direction `json:"direction"`
	Cause     Cause     `json:"cause"`
}

// Alive says whether the region was not known dead.
func (d Decision) Alive() bool { return d.Cause != CauseDead }

// Closed says whether a person has closed the region for new sandboxes.
func (d Decision) Closed() bool { return d.Cause == CauseOverride && d.Level == 0 }

// Text explains the decision to a person.
func (d Decision) Text() string {
	var why string
	switch d.Cause {
	case CauseDead:
		return "dead: nothing new goes there"
	case CauseOverride:
		why = "set by a person"
	case CauseUnknown:
		why = "stays, nothing is known of its health"
	case CauseHalf:
		why = "kept in: half of the capacity that is alive must stay"
	case CauseReceivers:
		why = "held back: who gets the share can't start sandboxes faster"
	case CauseDwell:
		why = "about to turn, after its dwell time"
	case CauseDraining:
		why = "draining to its score"
	case CauseReturning:
		why = "coming back"
	default:
		why = "healthy"
	}
	return fmt.Sprintf("level %.2f, score %.2f: %s", d.Level, d.Score, why)
}
