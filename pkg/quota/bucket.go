package quota

import (
	"math"
	"time"
)

// Bucket counts the creates of one tenant. Its zero value is a tenant that has
// not created anything for long. It remembers what was spent and not what is
// left, so that other limits hold from one create to the next.
//
// A clock that jumps ahead gives one burst at most; one that jumps back gives
// nothing, and takes nothing but the time until then.
type Bucket struct {
	// spent is how many creates have not been made good by the rate yet.
	spent float64
	at    time.Time
}

// Take spends one create. When there is none to spend, nothing is taken, and wait
// is how long it is until there is one.
func (b *Bucket) Take(l Limits, now time.Time) (wait time.Duration) {
	b.settle(l, now)
	if l.Rate <= 0 {
		return 0
	}
	if over := b.spent + 1 - l.burst(); over > 0 {
		// A little more than the quotient, which has been rounded.
		return time.Duration(math.Ceil(over/l.Rate*1e6)+1) * time.Microsecond
	}
	b.spent++
	return 0
}

// Charge counts a create that somebody else has let in. It may leave the tenant
// in debt, by one burst at most.
func (b *Bucket) Charge(l Limits, now time.Time) {
	b.settle(l, now)
	if l.Rate > 0 {
		b.spent = math.Min(b.spent+1, 2*l.burst())
	}
}

// Full says whether nothing is spent any more, so that the bucket may be
// forgotten.
func (b *Bucket) Full(l Limits, now time.Time) bool {
	b.settle(l, now)
	return b.spent == 0
}

// settle makes good what the time since the last look is worth.
func (b *Bucket) settle(l Limits, now time.Time) {
	if l.Rate <= 0 {
		b.spent = 0
	} else if elapsed := now.Sub(b.at); elapsed > 0 {
		b.spent = math.Max(0, math.Min(b.spent, 2*l.burst())-elapsed.Seconds()*l.Rate)
	}
	b.at = now
}
