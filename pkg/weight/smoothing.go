package weight

import (
	"math"
	"time"
)

// Alpha is the share of the way to its target that a smoothed value goes in a
// time dt, with the time constant tau: α = 1 − e^(−Δt/τ), the step response of a
// first-order low-pass filter, so that many small steps come to the same as one
// large (A. Eckner, "Algorithms for Unevenly Spaced Time Series: Moving Averages
// and Other Rolling Operators"). It is 0 for a clock that stood still or went
// back, and 1 if there is no time constant.
func Alpha(dt, tau time.Duration) float64 {
	switch {
	case dt <= 0:
		return 0
	case tau <= 0:
		return 1
	}
	return -math.Expm1(-float64(dt) / float64(tau))
}

// Approach moves a value towards a target by the share alpha of the difference:
// v + α·(target − v). It never goes past the target for 0 ≤ α ≤ 1.
func Approach(value, target, alpha float64) float64 {
	return value + alpha*(target-value)
}

// Taus are the time constants of a value that falls faster than it rises, or the
// other way round.
type Taus struct {
	// Out is for targets below the value, In for those above it.
	Out, In time.Duration
}

// Follow moves a value towards a target for a time dt.
func (t Taus) Follow(value, target float64, dt time.Duration) float64 {
	tau := t.In
	if target < value {
		tau = t.Out
	}
	return Approach(value, target, Alpha(dt, tau))
}

// unit brings a number into 0..1; what is no number becomes 0.
func unit(x float64) float64 {
	if math.IsNaN(x) {
		return 0
	}
	return min(max(x, 0), 1)
}

// amount brings a quantity into 0..mostAmount; what is no number becomes 0.
func amount(x float64) float64 {
	if math.IsNaN(x) {
		return 0
	}
	return min(max(x, 0), mostAmount)
}

// mostAmount is more than anything that is counted here; sums of it stay exact
// enough for shares.
const mostAmount = 1e15
