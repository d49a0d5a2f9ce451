package plan

import (
	"maps"
	"time"
)

const (
	// firstPause is how long Cloudflare is left alone after a first failure; each
	// further one doubles it, up to lastPause.
	firstPause = time.Second
	lastPause  = time.Minute
	// maxPause is the longest that Cloudflare is left alone on its own request: its
	// limits are over five minutes (Cloudflare Fundamentals: Rate limits).
	maxPause = 15 * time.Minute
	// refusedPause is after what time something that was refused is tried again.
	// Only a person can have mended it.
	refusedPause = 10 * time.Minute
	// reserve is how many requests of the rate limit are left to others who use the
	// same token.
	reserve = 3
)

// Failure is what came of a request instead of what was asked for.
type Failure struct {
	Text string
	// Refused: the same request will be refused again. Otherwise waiting helps.
	Refused bool
	// Unknown: the request may have been carried out all the same.
	Unknown bool
	// RetryAfter is how long Cloudflare asked to be left alone; 0 if it did not.
	RetryAfter time.Duration
}

// Kind of a failure, for metrics.
func (f Failure) Kind() string {
	switch {
	case f.Refused:
		return "refused"
	case f.Unknown:
		return "failed"
	}
	return "limited"
}

// clone keeps states apart: the caller may still be showing the one before.
func (s State) clone() State {
	s.Checked, s.Wrote = copyMap(s.Checked), copyMap(s.Wrote)
	s.Refused, s.Problems = copyMap(s.Refused), copyMap(s.Problems)
	s.Have.Weights, s.Have.Enabled = maps.Clone(s.Have.Weights), copyMap(s.Have.Enabled)
	return s
}

func copyMap[K comparable, V any](m map[K]V) map[K]V {
	if m == nil {
		return map[K]V{}
	}
	return maps.Clone(m)
}

// Begin notes that a part is about to be written.
func (s State) Begin(part Part, want Wanted, now time.Time) State {
	s = s.clone()
	s.Want, s.Pending = want, part
	s.Wrote[part] = now
	return s
}

// Ended notes when the answer to a write came, or stopped being waited for: the
// time until the next write counts from there.
func (s State) Ended(part Part, now time.Time) State {
	s = s.clone()
	s.Wrote[part] = now
	return s
}

// Saw notes what Cloudflare holds of a part, after it was read or written.
func (s State) Saw(part Part, have Edge, now time.Time) State {
	s = s.clone()
	if pool, ok := part.Pool(); ok {
		s.Have.Enabled[pool] = have.Enabled[pool]
	} else if part == Weights {
		s.Have.Weights = have.Weights
	} else {
		s.Have.Records = have.Records
	}
	s.Checked[part] = now
	s.Failures, s.NotBefore = 0, time.Time{}
	delete(s.Refused, part)
	delete(s.Problems, part)
	return s.settled(part)
}

// Failed notes a failure. luck, 0 to 1, spreads what several publishers or several
// tries do at the same time.
func (s State) Failed(part Part, f Failure, now time.Time, luck float64) State {
	s = s.clone()
	if f.Unknown {
		delete(s.Checked, part)
	}
	s.Problems[part] = Problem{Text: f.Text, At: now, Refused: f.Refused}
	if f.Refused {
		s.Refused[part] = now.Add(refusedPause)
		return s.settled(part)
	}
	s.Failures++
	pause := min(firstPause<<min(s.Failures-1, 10), lastPause)
	pause = pause/2 + time.Duration(luck*float64(pause/2))
	if f.RetryAfter > 0 {
		pause = f.RetryAfter + time.Duration(luck*float64(min(f.RetryAfter/10, time.Second)))
	}
	s.NotBefore = now.Add(min(pause, maxPause))
	return s.settled(part)
}

// Limited notes how many more requests Cloudflare takes before its limit starts
// anew.
func (s State) Limited(remaining int, reset time.Duration, now time.Time) State {
	if until := now.Add(min(reset, maxPause)); remaining < reserve && until.After(s.NotBefore) {
		s.NotBefore = until
	}
	return s
}

// TakeOver is what a new publisher makes of what another left: a write that was
// not finished may have been carried out, and what was refused may have been
// mended, or the new one be told otherwise.
func (s State) TakeOver() State {
	s = s.clone()
	clear(s.Refused)
	clear(s.Problems)
	if s.Pending != "" {
		delete(s.Checked, s.Pending)
		s.Pending = ""
	}
	return s
}

// Forget drops what is known of Cloudflare: somebody else may have written.
func (s State) Forget() State {
	s = s.clone()
	clear(s.Checked)
	return s
}

func (s State) settled(part Part) State {
	if s.Pending == part {
		s.Pending = ""
	}
	return s
}
