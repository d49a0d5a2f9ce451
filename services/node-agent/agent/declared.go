package agent

import (
	"context"
	"maps"
	"path/filepath"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/subject"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/sirocco-run/sirocco/services/node-agent/pool"
	"google.golang.org/protobuf/proto"
)

// stock makes what cells come from, and the pools, which are empty.
func (a *Agent) stock() error {
	j, err := openJournal[cellEntry](filepath.Join(a.runDir(), "cells"))
	if err != nil {
		return err
	}
	a.cells = &cells{
		parts: a.parts, imports: a.imports, stage: a.stage,
		turns: make(chan struct{}, a.cfg.Starts), setups: make(chan struct{}, 2*a.cfg.Starts), ends: newTurnstile(8*a.cfg.Starts, endTurn),
		held: map[string]bool{}, gone: func(string) {},
	}
	if a.cfg.Simulation != nil {
		a.cells.gone = a.cfg.Simulation.forget
	}
	a.pools = &pools{
		cells: a.cells, journal: j, metrics: a.metrics, log: a.log, changed: a.pokeHeartbeat,
		rules: pool.Rules{
			BudgetBytes: a.cfg.PoolBytes, MaxAge: a.cfg.PoolAge, Parallel: min(a.cfg.Starts, poolBuilds),
			Patience: refillPatience, Reserve: pool.Room{MemoryBytes: 256 << 20, Sandboxes: 4},
		},
		free: func() pool.Room {
			used, capacity := a.ledger.totals()
			return pool.Room{
				MemoryBytes: capacity.memoryBytes - used.memoryBytes, Sandboxes: int(capacity.sandboxes - used.sandboxes),
			}
		},
		wake: make(chan struct{}, 1), filled: make(chan struct{}), shelves: map[string]*shelf{},
	}
	return nil
}

const (
	// poolBuilds is how many cells are built at a time for the pools: claims and
	// cold starts need the processors too.
	poolBuilds = 2
	// refillPatience is how long refilling waits behind starts that follow each
	// other without a pause.
	refillPatience = 5 * time.Second
)

// followPools does what operators declare (`sirocco pool set`), until ctx ends.
func (a *Agent) followPools(ctx context.Context) error {
	var declared map[string]*siroccov1.Pool
	whole := false
	return bus.Watch(ctx, a.env.JS, subject.BucketPools, subject.PoolKeys(a.env.Region), func() {
		declared, whole = map[string]*siroccov1.Pool{}, false
	}, func(e jetstream.KeyValueEntry) {
		switch {
		case e == nil:
			whole = true
		case e.Operation() != jetstream.KeyValuePut:
			delete(declared, e.Key())
		default:
			p := &siroccov1.Pool{}
			if err := proto.Unmarshal(e.Value(), p); err != nil || p.GetTemplate() == nil || p.GetKey() == "" {
				a.log.Error("a declared pool can't be read", "key", e.Key(), "err", err)
				return
			}
			declared[e.Key()] = p
		}
		if whole {
			a.pools.declare(maps.Clone(declared))
		}
	})
}

// followImages gives up warm cells whose image was imported anew or removed, until
// ctx ends: the next sandbox gets the new one.
func (a *Agent) followImages(ctx context.Context) error {
	for ctx.Err() == nil {
		a.watchImages(ctx)
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
		}
	}
	return nil
}

// watchImages does it until the watch breaks. What changed while nobody watched
// is not known, so that all imported images count as changed when it begins.
func (a *Agent) watchImages(ctx context.Context) {
	if bus.Await(ctx, a.env.NC) != nil {
		return
	}
	store, err := a.env.JS.ObjectStore(ctx, subject.BucketImages)
	if err != nil {
		return
	}
	watcher, err := store.Watch(ctx)
	if err != nil {
		return
	}
	defer func() { _ = watcher.Stop() }()
	for {
		select {
		case <-ctx.Done():
			return
		case info, ok := <-watcher.Updates():
			if !ok {
				return
			}
			if info != nil {
				a.pools.outdate(info.Name)
			}
		}
	}
}
