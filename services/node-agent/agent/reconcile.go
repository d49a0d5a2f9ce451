package agent

import (
	"context"
	"errors"
	"time"
)

const (
	// reconcileEvery is how often each sandbox is compared with its record; well
	// below the 60 s within which an orphan must be gone.
	reconcileEvery = 20 * time.Second
	// sweepEvery is how often the machine is searched for leftovers.
	sweepEvery = 30 * time.Second
)

// reconcile compares what runs with what is wanted until ctx ends: messages may
// have been lost.
func (a *Agent) reconcile(ctx context.Context) error {
	records := time.NewTicker(reconcileEvery)
	defer records.Stop()
	sweeps := time.NewTicker(sweepEvery)
	defer sweeps.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-records.C:
			for _, m := range a.all() {
				m.poke()
			}
			a.archives.expire(time.Now())
		case <-sweeps.C:
			if err := a.sweep(ctx); err != nil && ctx.Err() == nil {
				a.log.Error("sweep", "err", err)
			}
		}
	}
}

// sweep removes what belongs to no sandbox: processes, cgroups, mounts,
// folders, network slots.
func (a *Agent) sweep(ctx context.Context) error {
	removed, err := a.parts.runtime.Sweep(ctx)
	living := make([]string, 0, a.live())
	for _, m := range a.all() {
		living = append(living, m.id)
	}
	slots, serr := a.parts.slots.Sweep(ctx, living)
	for _, line := range append(removed, slots...) {
		a.log.Warn("removed a leftover", "what", line)
	}
	return errors.Join(err, serr)
}
