package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirocco-run/sirocco/pkg/invariants"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	sirocco "github.com/sirocco-run/sirocco/sdk/go"
)

// Migrate configures a measurement of sandboxes that move while they are used.
type Migrate struct {
	// N is how many moves, Parallel how many are under way at a time.
	N, Parallel int
	// Each is how many sandboxes there are of each kind: one that idles, one with a
	// server, and for each of Sizes one whose server holds so many MiB.
	Each  int
	Sizes []int
	// Program is the sirocco command, of which a platform is started; Programs are
	// beside it.
	Program  string
	Programs Programs
	// FloorRuns is how often a checkpoint and restore without a platform are measured
	// for each kind; 0 for not at all.
	FloorRuns int
	// Log is a file to which the platform's log is copied; "" for none.
	Log string
}

const (
	// moveTimeout bounds a call that moves a sandbox.
	moveTimeout = 2 * time.Minute
	// warmUpMoves is how often each sandbox moves before anything is measured: images
	// are laid out and pages read then.
	warmUpMoves = 1
	// aloneTime is for how long what clients take is measured before the first move.
	aloneTime = 5 * time.Second
)

// kind is a kind of sandbox.
type kind struct {
	name string
	// serves: it has a server behind a tunnel, which holds mb MiB.
	serves bool
	mb     int
}

func (cfg Migrate) kinds() []kind {
	all := []kind{{name: "idle"}, {name: "server", serves: true}}
	for _, mb := range cfg.Sizes {
		all = append(all, kind{name: fmt.Sprintf("%d MiB", mb), serves: true, mb: mb})
	}
	return all
}

// Migrate moves sandboxes of several kinds back and forth between two regions, which it
// starts for itself, while clients use them all the time. Whatever a client notices but
// that it had to wait is a failure.
func (b *Bench) Migrate(ctx context.Context, cfg Migrate) (*Report, error) {
	if cfg.N < 1 || cfg.Parallel < 1 || cfg.Each < 1 {
		return nil, errors.New("want at least one move, one at a time, and one sandbox of each kind")
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("real sandboxes need root")
	}
	m := &migrateRun{cfg: cfg, kinds: cfg.kinds()}
	b.Progress.Say("migrate: measuring checkpoints without a platform")
	floors, floorErr := cfg.floors(ctx)
	b.Progress.Say("migrate: starting two regions")
	var err error
	if m.regions, err = StartRegions(ctx, cfg.Program, []string{"east", "west"}); err != nil {
		return nil, err
	}
	defer m.regions.Close()
	m.run = b.begin(ctx, "migrate", fmt.Sprintf("%d moves between two regions, %d at a time, of %d sandboxes in use", cfg.N, cfg.Parallel, cfg.Each*len(m.kinds)))
	var before []invariants.Baseline
	for _, l := range m.regions.Locals {
		before = append(before, l.baseline(ctx))
	}
	err = m.measure(ctx)
	took := m.since()
	for _, one := range m.all {
		m.failures.Add(end(ctx, one.sandbox, time.Minute))
	}
	if err = errors.Join(err, ctx.Err()); err != nil {
		return nil, err
	}
	m.report(floors)
	if floorErr != nil {
		m.Note("the floor was not measured: %v", floorErr)
	}
	m.Seconds = round(took.Seconds())
	m.Fail(&m.failures)
	m.Progress.Say("migrate: checking what must always hold")
	for i, l := range m.regions.Locals {
		v := l.verdict(ctx, before[i])
		m.Invariants.Broken = append(m.Invariants.Broken, v.Broken...)
	}
	if cfg.Log != "" {
		if err := m.regions.KeepLog(cfg.Log); err != nil {
			return nil, err
		}
	}
	m.Progress.Done()
	return m.Report, nil
}

type migrateRun struct {
	*run
	cfg     Migrate
	kinds   []kind
	regions *Regions
	all     []*migrant

	took Samples
	made atomic.Int64
}

// measure brings the sandboxes up, moves them under load, and looks at what they are
// then.
func (m *migrateRun) measure(ctx context.Context) error {
	for range m.cfg.Each {
		for k := range m.kinds {
			m.Progress.Say("migrate: %d of %d sandboxes live", len(m.all), m.cfg.Each*len(m.kinds))
			one, err := m.settle(ctx, k, len(m.all)%len(m.regions.Names))
			if one != nil {
				m.all = append(m.all, one)
			}
			if err != nil {
				return err
			}
		}
	}
	for range warmUpMoves {
		for _, one := range m.all {
			if _, err := m.move(ctx, one, 0); err != nil {
				return fmt.Errorf("the first move of %s: %w", one.sandbox.ID, err)
			}
		}
	}
	lctx, stop := context.WithCancel(ctx)
	m.start = time.Now()
	var load sync.WaitGroup
	for _, one := range m.all {
		load.Go(func() { m.use(lctx, one) })
	}
	busy, err := m.busyAlone(ctx)
	if err == nil {
		m.Figure("processors busy with clients alone, before the first move", 100*busy, "%", 0)
		m.moveAll(ctx)
	}
	stop()
	load.Wait()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	m.look(ctx)
	return err
}

// busyAlone returns which part of this machine's processors clients, sandboxes and
// services need while nothing moves.
func (m *migrateRun) busyAlone(ctx context.Context) (float64, error) {
	m.Progress.Say("migrate: seeing what clients alone take")
	worked, all, err := processorTimes()
	if err != nil {
		return 0, err
	}
	until(ctx, time.Now().Add(aloneTime))
	workedBy, allBy, err := processorTimes()
	if err != nil {
		return 0, err
	}
	return float64(workedBy-worked) / max(1, float64(allBy-all)), nil
}

// moveAll makes the moves: whoever has been where it is for the longest goes next.
func (m *migrateRun) moveAll(ctx context.Context) {
	waiting := make(chan *migrant, len(m.all))
	for _, one := range m.all {
		waiting <- one
	}
	each(ctx, m.cfg.N, m.cfg.Parallel, func(i int) {
		one := <-waiting
		defer func() { waiting <- one }()
		at, began := m.since(), time.Now()
		sb, err := m.move(ctx, one, i)
		if ctx.Err() != nil || m.failures.Add(err) {
			return
		}
		m.took.Add(at, time.Since(began))
		one.moved(at, m.since(), sb.GetMove())
		m.Progress.Say("migrate: %d of %d moves, %d failed; the last one paused %s for %v", m.made.Add(1), m.cfg.N, m.failures.Count(),
			m.kinds[one.kind].name, sb.GetMove().GetPause().AsDuration().Round(time.Millisecond))
	})
}

// move has a sandbox moved to the other region, through the api of one of both.
func (m *migrateRun) move(ctx context.Context, one *migrant, i int) (*siroccov1.Sandbox, error) {
	ctx, cancel := context.WithTimeout(ctx, moveTimeout)
	defer cancel()
	to := 1 - one.at
	sb, err := m.regions.Clients[i%len(m.regions.Clients)].Sandbox(one.sandbox.ID).Migrate(ctx, m.regions.Names[to], "")
	if err != nil {
		return nil, fmt.Errorf("move %s to %s: %w", one.sandbox.ID, m.regions.Names[to], err)
	}
	if got := sb.GetPlacement().GetRegion(); got != m.regions.Names[to] || sb.GetState() != siroccov1.State_STATE_RUNNING {
		return nil, fmt.Errorf("%s was to move to %s; it is %v in %s", one.sandbox.ID, m.regions.Names[to], sb.GetState(), got)
	}
	one.at = to
	return sb, nil
}

// look finds out, once nothing moves and nobody asks any more, what is lost or double.
func (m *migrateRun) look(ctx context.Context) {
	m.Progress.Say("migrate: looking at what the sandboxes are now")
	for _, one := range m.all {
		if err := m.whole(ctx, one); err != nil {
			m.Lost = append(m.Lost, fmt.Sprintf("%s (%s): %v", one.sandbox.ID, m.kinds[one.kind].name, err))
		}
	}
	m.Invariants = &Verdict{Checked: "records, inventories and host resources of two regions, with all sandboxes live and after their end; nothing runs in both"}
	runs := map[string]string{}
	for i, l := range m.regions.Locals {
		m.Invariants.Broken = append(m.Invariants.Broken, l.Region.Settled(ctx, settleTime)...)
		inventories, silent := l.Region.Inventories(ctx)
		m.Invariants.Broken = append(m.Invariants.Broken, silent...)
		for node, items := range inventories {
			for _, item := range items {
				if other := runs[item.GetId()]; other != "" {
					m.Invariants.Broken = append(m.Invariants.Broken, fmt.Sprintf("%s runs twice: on %s, and on %s in %s", item.GetId(), other, node, m.regions.Names[i]))
				}
				runs[item.GetId()] = node + " in " + m.regions.Names[i]
			}
		}
	}
}

// whole checks that a sandbox runs where it went last, is the same as ever for both
// regions, and has all of its memory.
func (m *migrateRun) whole(ctx context.Context, one *migrant) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	for i, c := range m.regions.Clients {
		sb, err := c.Get(ctx, one.sandbox.ID)
		if err != nil {
			return fmt.Errorf("asked in %s: %w", m.regions.Names[i], err)
		}
		if sb.GetState() != siroccov1.State_STATE_RUNNING || sb.GetPlacement().GetRegion() != m.regions.Names[one.at] {
			return &sirocco.Error{Code: sirocco.Internal, Message: fmt.Sprintf("asked in %s: it is %v in %s: %v", m.regions.Names[i], sb.GetState(), sb.GetPlacement().GetRegion(), sb.GetEnd())}
		}
	}
	if m.kinds[one.kind].serves {
		return one.check(ctx)
	}
	return one.exec(ctx)
}
