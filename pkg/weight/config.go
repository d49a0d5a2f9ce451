package weight

import (
	"errors"
	"fmt"
	"time"
)

// Config is how a controller behaves. Start from [DefaultConfig].
type Config struct {
	// Taus are the time constants by which a level falls and rises.
	Taus Taus
	// TauScore is the time constant by which scores are smoothed before anything is
	// decided on them, so that one odd report turns no region. Zero: not at all.
	TauScore time.Duration
	// A region begins to drain when its score is below OutBelow, and comes back
	// when it is above InAbove. Between the two it goes on in its direction
	// (hysteresis). One that was dead comes back above OutBelow.
	OutBelow, InAbove float64
	// DwellOut is the least time for which a region that began to drain stays in
	// that direction, and for which one that was dead must be alive; DwellIn the
	// least time for which one that came back goes on coming back.
	DwellOut, DwellIn time.Duration
	// Relapse is within what time of its return a region that drains again, or dies,
	// has relapsed. Each relapse in a row doubles DwellOut for it, four times at
	// most: what is wrong with it may show only under load, and each trial costs
	// its users failures (exponential backoff). Zero: never.
	Relapse time.Duration
	// Slew is how much share of all traffic a region may gain in a second, however
	// much it can start.
	Slew float64
	// MaxDrained is the share of the capacity that is alive which the controller
	// takes out at most.
	MaxDrained float64
	// MaxStep is how much time one step counts for at most: what happened in a
	// longer time, nobody has seen.
	MaxStep time.Duration
}

// DefaultConfig is out in about 5 s and in within about 45 s, below 0.8 and above
// 0.95, with never more than half of the capacity drained.
func DefaultConfig() Config {
	return Config{
		Taus:     Taus{Out: 5 * time.Second, In: 45 * time.Second},
		TauScore: 2 * time.Second,
		OutBelow: 0.8, InAbove: 0.95,
		DwellOut: 30 * time.Second, DwellIn: 5 * time.Second,
		Relapse: 10 * time.Minute,
		Slew:    0.2, MaxDrained: 0.5, MaxStep: 10 * time.Second,
	}
}

// Validate says what is wrong with a configuration; all that is wrong, joined.
func (c Config) Validate() error {
	var errs []error
	want := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf("weights: "+format, args...))
		}
	}
	want(c.Taus.Out >= 0 && c.Taus.In >= 0 && c.TauScore >= 0, "time constants out %s, in %s, score %s: none may be negative", c.Taus.Out, c.Taus.In, c.TauScore)
	want(c.OutBelow >= 0 && c.OutBelow < c.InAbove && c.InAbove < 1, "out below %g, in above %g: want 0 ≤ out < in < 1", c.OutBelow, c.InAbove)
	want(c.DwellOut >= 0 && c.DwellOut <= time.Hour && c.DwellIn >= 0 && c.DwellIn <= time.Hour, "dwell out %s, in %s: want 0 to 1h", c.DwellOut, c.DwellIn)
	want(c.Relapse >= 0 && c.Relapse <= longestHeld, "relapse within %s: want 0 to %s", c.Relapse, longestHeld)
	want(c.Slew > 0 && c.Slew <= 1e6, "slew of %g a second: want more than 0", c.Slew)
	want(c.MaxDrained >= 0 && c.MaxDrained <= 0.5, "at most %g drained: want 0 to 0.5", c.MaxDrained)
	want(c.MaxStep > 0, "steps of at most %s: want more than 0", c.MaxStep)
	return errors.Join(errs...)
}
