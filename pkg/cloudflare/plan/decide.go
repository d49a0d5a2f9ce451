package plan

import (
	"math"
	"slices"
	"time"
)

// State is what is remembered between steps, and from one publisher to the next.
// All times are those of the publisher that wrote them; a time that lies further
// ahead than any pause here is not believed.
type State struct {
	// Want is what was wanted last.
	Want Wanted `json:"want"`
	// Have is what Cloudflare holds, as far as Checked says so.
	Have Edge `json:"have"`
	// Checked is when a part was last read, or a write of it was confirmed. A part
	// that is missing is not known: read it before anything is written.
	Checked map[Part]time.Time `json:"checked,omitempty"`
	// Pending is the part that is being written, "" if none. After a crash nobody
	// knows whether it was.
	Pending Part `json:"pending,omitempty"`
	// Wrote is when writing a part was last begun.
	Wrote map[Part]time.Time `json:"wrote,omitempty"`
	// NotBefore is until when Cloudflare wants to be left alone, or is.
	NotBefore time.Time `json:"not_before,omitzero"`
	// Failures in a row.
	Failures int `json:"failures,omitempty"`
	// Refused is until when a part that Cloudflare refused is not sent again.
	Refused map[Part]time.Time `json:"refused,omitempty"`
	// Problems are the errors of the parts whose last request failed.
	Problems map[Part]Problem `json:"problems,omitempty"`
}

// Problem is why a part could not be read or written.
type Problem struct {
	Text string    `json:"text"`
	At   time.Time `json:"at"`
	// Refused: waiting does not help, somebody has to change something.
	Refused bool `json:"refused,omitempty"`
}

// Action is what is to be done.
type Action int

// Actions.
const (
	Wait  Action = iota // nothing, until Step.Until or until something else is wanted
	Read                // find out what Cloudflare holds of Step.Part
	Write               // send Step.Part
)

// Step is the next thing to do.
type Step struct {
	Action Action
	Part   Part
	// Until is when to decide again, for Wait.
	Until time.Time
}

// minChange is the least change of a weight that is sent, in hundredths.
const minChange = 2

// Decide returns the next step. Urgent is what sends traffic to a region that had
// none, or takes the last of it away; of the rest, what was written longest ago
// comes first, so that nothing keeps the others from their turn.
func Decide(now time.Time, want Wanted, s State, r Rules) Step {
	next := now.Add(r.Check)
	wake := func(t time.Time) {
		if t.Before(next) {
			next = t
		}
	}
	var reads, writes []Part
	urgent := false
	for _, part := range want.Parts() {
		if until := s.Refused[part]; believed(now, until, refusedPause) {
			wake(until)
			continue
		}
		checked, known := s.Checked[part]
		switch {
		case !known || now.Sub(checked) >= r.Check:
			reads = append(reads, part)
		case differs(part, want, s.Have):
			writes = append(writes, part)
			urgent = urgent || part == Weights && crosses(want, s.Have)
		default:
			wake(checked.Add(r.Check))
		}
	}
	if len(reads)+len(writes) > 0 && believed(now, s.NotBefore, maxPause) {
		return Step{Until: s.NotBefore}
	}
	last, at := s.lastWrite()
	slices.SortStableFunc(writes, func(a, b Part) int {
		if urgent && last != Weights && (a == Weights) != (b == Weights) {
			return boolean(b == Weights) - boolean(a == Weights)
		}
		return s.Wrote[a].Compare(s.Wrote[b])
	})
	if len(writes) > 0 {
		free := at.Add(r.Every)
		if !believed(now, free, r.Every) {
			return Step{Action: Write, Part: writes[0]}
		}
		wake(free)
	}
	if len(reads) > 0 {
		return Step{Action: Read, Part: reads[0]}
	}
	return Step{Until: next}
}

// Due says whether something is to be read or written, now or later.
func Due(want Wanted, s State) bool {
	for _, part := range want.Parts() {
		if _, known := s.Checked[part]; !known || differs(part, want, s.Have) {
			return true
		}
	}
	return false
}

// believed says whether t is ahead, and no further than a pause can be: clocks of
// two machines differ, and one that was wrong must not silence the next publisher.
func believed(now, t time.Time, pause time.Duration) bool {
	return t.After(now) && t.Sub(now) <= pause
}

func (s State) lastWrite() (last Part, at time.Time) {
	for part, t := range s.Wrote {
		if t.After(at) {
			last, at = part, t
		}
	}
	return last, at
}

func differs(part Part, want Wanted, have Edge) bool {
	if pool, ok := part.Pool(); ok {
		return want.Enabled[pool] != have.Enabled[pool]
	}
	if part == Records {
		return !slices.Equal(want.Records, have.Records)
	}
	for pool, w := range want.Weights {
		h, ok := have.Weights[pool]
		if !ok || h < 0 || w != h && math.Abs(want.Exact[pool]-float64(h)) >= minChange-slack {
			return true
		}
	}
	return crosses(want, have)
}

// crosses says whether a pool goes to or from zero. One whose weight is small but
// not zero has not gone to zero, or noise would be sent.
func crosses(want Wanted, have Edge) bool {
	for pool, w := range want.Weights {
		h, ok := have.Weights[pool]
		if !ok || h < 0 {
			continue
		}
		if h > 0 && want.Exact[pool] == 0 || h == 0 && w > 0 {
			return true
		}
	}
	return false
}
