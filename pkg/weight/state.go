package weight

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// State is what a controller remembers from one step to the next. Whoever runs
// it may store it as JSON and go on with [ParseState], or begin anew with the
// zero value, in which every region starts at its score.
type State struct {
	// At is the time of the last step.
	At time.Time `json:"at"`
	// Regions are ordered by name.
	Regions []RegionState `json:"regions"`
}

// RegionState is what is remembered of one region.
type RegionState struct {
	Name string `json:"name"`
	// Level is how much of its capacity counts, 0 to 1.
	Level float64 `json:"level"`
	// Score is its smoothed score; 1 as long as Seen is false.
	Score float64 `json:"score"`
	Seen  bool    `json:"seen"`
	// Capacity is what it was, so that what is added can come in slowly; zero for
	// a region that was dead.
	Capacity  float64   `json:"capacity"`
	Direction Direction `json:"direction"`
	// Held is for how long it has gone in this direction, as far as steps have
	// counted the time; in nanoseconds, 24 h at most.
	Held time.Duration `json:"held_ns"`
	// Dead: it was dead, and has not come back since. What was not drained for its
	// health need not be healthier to come back than others to stay.
	Dead bool `json:"dead,omitempty"`
	// Relapses is how often in a row it came back and did not last.
	Relapses int `json:"relapses"`
}

// longestHeld bounds what is counted: longer than any dwell time.
const longestHeld = 24 * time.Hour

// mostRelapses bounds how often a dwell time is doubled: 30 s become 8 minutes.
const mostRelapses = 4

// ParseState reads what json.Marshal made of a state. What can't be a state is an
// error, so that a controller begins anew instead of going on from nonsense.
func ParseState(text []byte) (State, error) {
	var s State
	if err := json.Unmarshal(text, &s); err != nil {
		return State{}, fmt.Errorf("parse the state of the weights: %w", err)
	}
	slices.SortFunc(s.Regions, func(a, b RegionState) int { return strings.Compare(a.Name, b.Name) })
	for i := range s.Regions {
		r := &s.Regions[i]
		if err := r.check(); err != nil {
			return State{}, fmt.Errorf("parse the state of the weights: region %q: %w", r.Name, err)
		}
		if i > 0 && s.Regions[i-1].Name == r.Name {
			return State{}, fmt.Errorf("parse the state of the weights: region %q comes twice", r.Name)
		}
	}
	s.At = s.At.UTC()
	return s, nil
}

func (r *RegionState) check() error {
	switch {
	case r.Level != unit(r.Level) || math.Signbit(r.Level):
		return fmt.Errorf("level %g is not in 0..1", r.Level)
	case r.Score != unit(r.Score) || math.Signbit(r.Score):
		return fmt.Errorf("score %g is not in 0..1", r.Score)
	case r.Capacity != amount(r.Capacity) || math.Signbit(r.Capacity):
		return fmt.Errorf("capacity %g is out of range", r.Capacity)
	case r.Direction != In && r.Direction != Out:
		return fmt.Errorf("direction %q is neither %q nor %q", r.Direction, In, Out)
	case r.Held < 0 || r.Held > longestHeld:
		return fmt.Errorf("held for %s is not in 0..%s", r.Held, longestHeld)
	case r.Relapses < 0 || r.Relapses > mostRelapses:
		return fmt.Errorf("%d relapses are not in 0..%d", r.Relapses, mostRelapses)
	}
	return nil
}

// find returns what is remembered of a region.
func (s *State) find(name string) (RegionState, bool) {
	for i := range s.Regions {
		if s.Regions[i].Name == name {
			return s.Regions[i], true
		}
	}
	return RegionState{}, false
}
