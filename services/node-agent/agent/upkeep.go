package agent

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/sirocco-run/sirocco/services/node-agent/pool"
	"google.golang.org/protobuf/proto"
)

// fillPatience is how long a node waits for its declared pools before it takes
// sandboxes without them.
const fillPatience = 30 * time.Second

// upkeepEvery is how often the pools are looked at when nothing happens.
const upkeepEvery = time.Second

// empty gives up every warm cell and waits until nothing of them is left. Only an
// agent that was killed leaves its warm ones to the next: one that ends in order may
// be followed by another version, or by none.
func (p *pools) empty() {
	p.work.Wait()
	p.mu.Lock()
	for _, s := range p.shelves {
		for len(s.Warm) > 0 {
			p.discard(s.takeLocked(0))
		}
	}
	p.mu.Unlock()
	p.work.Wait()
}

// run keeps the pools until ctx ends.
func (p *pools) run(ctx context.Context) error {
	tick := time.NewTicker(upkeepEvery)
	defer tick.Stop()
	for {
		p.upkeep(ctx, time.Now())
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-p.wake:
		}
	}
}

// upkeep does what the pools need now.
func (p *pools) upkeep(ctx context.Context, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	rules, state := p.rules, pool.State{Free: p.free(), Busy: p.busy, BusySince: p.busySince, Lull: now.Before(p.lullUntil), Ready: p.ready}
	if p.paused {
		rules.BudgetBytes = 0
	}
	for _, key := range slices.Sorted(maps.Keys(p.shelves)) {
		s := p.shelves[key]
		p.buryLocked(s)
		if len(s.warm)+s.Building+len(s.declared) == 0 && !s.Demand.Lately(now) {
			delete(p.shelves, key)
			continue
		}
		state.Templates = append(state.Templates, s.Template)
	}
	plan := rules.Plan(now, state)
	if plan.Filled && p.told {
		p.setReadyLocked()
	}
	for _, d := range plan.Drop {
		s := p.shelves[d.Template]
		i := slices.IndexFunc(s.Warm, func(w pool.Warm) bool { return w.ID == d.ID })
		p.log.Debug("a warm cell is given up", "cell", d.ID, "template", d.Template, "why", d.Why)
		p.discard(s.takeLocked(i))
	}
	for _, key := range plan.Build {
		s := p.shelves[key]
		s.Building++
		t, changes := s.template, s.changes
		p.work.Go(func() { p.add(ctx, t, changes) })
	}
}

// buryLocked removes what has died on its shelf.
func (p *pools) buryLocked(s *shelf) {
	for i := len(s.Warm) - 1; i >= 0; i-- {
		if b := s.warm[s.Warm[i].ID]; b.dead() {
			p.log.Warn("a warm cell has ended by itself", "cell", b.id, "exit", b.sandbox.Exit())
			p.discard(s.takeLocked(i))
		}
	}
}

// discard destroys a cell that has left its shelf.
func (p *pools) discard(b *cell) {
	p.changed()
	p.work.Go(func() {
		if err := p.cells.destroy(context.Background(), b); err != nil {
			p.log.Error("a warm cell was not removed whole; the sweep comes again", "cell", b.id, "err", err)
		}
		p.forget(b.id)
	})
}

// add builds a cell for the shelf of a template. The journal knows it before
// anybody can claim it. changes is as for put.
func (p *pools) add(ctx context.Context, t template, changes int) {
	b, err := p.cells.build(ctx, t, ahead)
	if err == nil {
		e := b.entry()
		if e.Template, err = proto.Marshal(t.Template); err == nil {
			err = p.journal.write(b.id, e)
		}
		if err != nil {
			err = errors.Join(err, p.cells.destroy(ctx, b))
		}
	}
	if ctx.Err() == nil {
		took := time.Duration(0)
		if err == nil {
			took = b.took
		} else {
			p.log.Warn("a warm cell was not built; it is tried again", "template", t.key, "image", t.GetImage(), "err", err)
		}
		p.built(t, took, err)
	}
	if err == nil {
		p.put(t, b, changes)
	}
	p.mu.Lock()
	p.shelfLocked(t).Building--
	p.mu.Unlock()
	p.poke()
}

// awaitFilled returns when the declared pools are as full as they get, or have
// had their time; with an error only when ctx ends.
func (p *pools) awaitFilled(ctx context.Context) error {
	limit := time.NewTimer(fillPatience)
	defer limit.Stop()
	select {
	case <-p.filled:
	case <-limit.C:
		p.log.Warn("the declared pools are not full; the node takes sandboxes without them")
		p.mu.Lock()
		p.setReadyLocked()
		p.mu.Unlock()
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

func (p *pools) setReadyLocked() {
	if !p.ready {
		p.ready = true
		close(p.filled)
	}
}
