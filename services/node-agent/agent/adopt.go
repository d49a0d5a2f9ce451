package agent

import (
	"context"
	"errors"
	"fmt"

	"github.com/sirocco-run/sirocco/pkg/network"
	"github.com/sirocco-run/sirocco/pkg/runtime"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"
)

// adopt finds the sandboxes and the warm cells of the agent before this one, and
// removes what belongs to none. Sandboxes live in mctx.
func (a *Agent) adopt(ctx, mctx context.Context) error {
	entries, err := a.journal.all()
	if err != nil {
		return err
	}
	warm, err := a.pools.journal.all()
	if err != nil {
		return err
	}
	for id, e := range entries {
		if sb, err := e.sandbox(); err != nil || sb.GetId() != id || e.Cell == nil {
			a.log.Error("journal entry is damaged; its sandbox is removed", "sandbox", id, "err", err)
			_ = a.journal.remove(id)
			delete(entries, id)
			continue
		}
		if warm[e.Cell.ID] != nil {
			a.pools.forget(e.Cell.ID)
			delete(warm, e.Cell.ID)
		}
	}
	home, err := a.findCells(ctx, entries, warm)
	if err != nil {
		return err
	}
	for id, e := range entries {
		sb, _ := e.sandbox()
		epoch := sb.GetPlacement().GetEpoch()
		if e.Arriving != notArriving {
			epoch = sb.GetMove().GetEpoch()
		}
		m := newMachine(a, sb, e, epoch)
		if m.cell = home[e.Cell.ID]; m.cell == nil && !e.Running {
			e.Cell = nil // it ended while it was set up: it gets another
		}
		a.ledger.force(id, needOf(sb.GetSpec()))
		a.launch(mctx, m, true)
	}
	for id, e := range warm {
		t := &siroccov1.Template{}
		switch b := home[id]; {
		case b == nil:
			a.pools.forget(id)
		case b.runtime != a.parts.runtime.Version() || proto.Unmarshal(e.Template, t) != nil:
			a.pools.discard(b)
		default:
			a.pools.put(template{b.key, t}, b, 0)
		}
	}
	a.log.Info("adopted", "cells", len(home), "sandboxes", len(entries))
	return a.sweep(ctx)
}

// findCells returns the cells that are known and still run, by id. All others are
// destroyed.
func (a *Agent) findCells(ctx context.Context, entries map[string]*entry, warm map[string]*cellEntry) (map[string]*cell, error) {
	known := map[string]*cellEntry{}
	for id, e := range warm {
		known[id] = e
	}
	for _, e := range entries {
		known[e.Cell.ID] = e.Cell
	}
	found, err := a.parts.runtime.Adopt(ctx)
	if err != nil {
		return nil, err
	}
	remove := func(sandbox runtime.Sandbox) {
		if err := sandbox.Destroy(ctx); err != nil {
			a.log.Error("destroy", "cell", sandbox.ID(), "err", err)
		}
	}
	alive := map[string]runtime.Sandbox{}
	var strangers errgroup.Group
	strangers.SetLimit(8)
	for _, sandbox := range found {
		if known[sandbox.ID()] != nil {
			alive[sandbox.ID()] = sandbox
			continue
		}
		a.log.Warn("removing a cell that no journal knows", "cell", sandbox.ID())
		strangers.Go(func() error {
			remove(sandbox)
			return nil
		})
	}
	_ = strangers.Wait()
	ids := make([]string, 0, len(alive))
	for id := range alive {
		ids = append(ids, id)
	}
	slots, err := a.parts.slots.Adopt(ctx, ids)
	if err != nil {
		return nil, err
	}
	home := map[string]*cell{}
	for id, sandbox := range alive {
		b, err := a.cells.again(known[id], sandbox, slots[id])
		if err != nil {
			a.log.Error("a cell is removed", "cell", id, "err", err)
			remove(sandbox)
			continue
		}
		home[id] = b
	}
	return home, nil
}

// again makes a cell of what was found of it.
func (c *cells) again(e *cellEntry, sandbox runtime.Sandbox, slot *network.Slot) (*cell, error) {
	if slot == nil {
		return nil, errors.New("its network is gone")
	}
	free, err := c.parts.images.Acquire(e.Image.Digest)
	if err != nil {
		return nil, fmt.Errorf("its image: %w", err)
	}
	c.hold(e.ID)
	return &cell{
		id: e.ID, key: e.Key, secret: e.Secret, image: e.Image, slot: slot, sandbox: sandbox, free: free, built: e.Built, runtime: e.Runtime,
	}, nil
}
