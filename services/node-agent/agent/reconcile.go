package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
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
	trouble := "" // of the last sweep, so that what lasts is told once
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
			err := a.sweep(ctx)
			if ctx.Err() == nil {
				trouble = a.tellTrouble(trouble, err)
			}
		}
	}
}

// tellTrouble logs what kept a sweep from its work, unless the one before had
// the same to say, and returns what there is to say.
func (a *Agent) tellTrouble(before string, err error) string {
	switch {
	case err == nil:
		if before != "" {
			a.log.Info("sweeps work again")
		}
		return ""
	case errors.Is(err, fs.ErrNotExist):
		if _, serr := os.Stat(a.cfg.StateDir); errors.Is(serr, fs.ErrNotExist) {
			err = fmt.Errorf("the state folder %s is gone while the agent runs: nothing new can start here; bring it back or start the agent again: %w", a.cfg.StateDir, err)
		}
	}
	if err.Error() != before {
		a.log.Error("sweep (told once, until it changes)", "err", err)
	}
	return err.Error()
}

// sweep removes what belongs to no sandbox: processes, cgroups, mounts,
// folders, network slots.
func (a *Agent) sweep(ctx context.Context) error {
	removed, err := a.parts.runtime.Sweep(ctx)
	slots, serr := a.parts.slots.Sweep(ctx, a.cells.living())
	for _, line := range append(removed, slots...) {
		a.log.Warn("removed a leftover", "what", line)
	}
	return errors.Join(err, serr)
}
