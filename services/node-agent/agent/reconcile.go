package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/sirocco-run/sirocco/pkg/record"
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
	trouble := ""    // of the last sweep, so that what lasts is told once
	var since uint64 // how far the records have been looked at; 0: not yet
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-records.C:
			since = a.compare(ctx, since)
			a.archives.expire(time.Now())
		case <-sweeps.C:
			err := a.sweep(ctx)
			if ctx.Err() == nil {
				trouble = a.tellTrouble(trouble, err)
			}
		}
	}
}

// compare makes the sandboxes whose records others have written since read them
// again, and returns what to give as since the next time: the same until they have.
func (a *Agent) compare(ctx context.Context, since uint64) (next uint64) {
	ctx, cancel := context.WithTimeout(ctx, readLimit)
	defer cancel()
	machines := map[string]*machine{}
	var known []record.Known
	for _, m := range a.all() {
		machines[m.id] = m
		known = append(known, record.Known{Tenant: m.tenant, ID: m.id, Revision: m.current().GetRevision()})
	}
	overtaken, upTo, err := a.store.Overtaken(ctx, known, since)
	if err != nil {
		return 0 // the bus is away: all of them, once it is back
	}
	for _, k := range overtaken {
		machines[k.ID].pokeChanged()
	}
	if len(overtaken) > 0 {
		return since
	}
	return upTo
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
