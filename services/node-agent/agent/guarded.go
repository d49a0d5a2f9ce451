package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"slices"
	"time"

	"github.com/sirocco-run/sirocco/pkg/admission"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/guard"
	"github.com/sirocco-run/sirocco/pkg/link"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

const (
	// fenceLook is how often a guarded sandbox is compared with its fence.
	fenceLook = 250 * time.Millisecond
	// copyAgain is how soon a checkpoint is tried again that was not kept.
	copyAgain = 5 * time.Second
	// copyLimit bounds one checkpoint, with its way to the guard.
	copyLimit = 2 * time.Minute
)

// guardNote is what must be known of a sandbox's guard after a restart: noted before the
// guard may hear of it.
type guardNote struct {
	Region string `json:"region"`
	Term   string `json:"term"`
}

// bind makes the machine know its guard; an empty note: that it has none. With spell 0
// it may not run before it has asked.
func (m *machine) bind(n guardNote, spell uint64) {
	var w *watched
	if n.Term != "" {
		w = &watched{fence: m.agent.fences[n.Region], region: n.Region, term: n.Term, spell: spell}
		if w.fence != nil {
			w.fence.use(1)
		}
	}
	if before := m.watched.Swap(w); before != nil && before.fence != nil {
		before.fence.use(-1)
	}
}

// stayGuarded has checkpoints of the sandbox kept elsewhere, and lets it run only while
// nobody can have taken it over, until ctx ends. taken is closed when somebody has.
func (m *machine) stayGuarded(ctx context.Context, taken chan<- struct{}) {
	if !admission.Restored(m.current().GetSpec()) && m.watched.Load() == nil {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	copying := make(chan struct{})
	go func() {
		defer close(copying)
		m.copies(ctx)
	}()
	defer func() { cancel(); <-copying }()
	tick := time.NewTicker(fenceLook)
	defer tick.Stop()
	for {
		if m.fenced() {
			m.standStill(ctx)
			if m.comeBack(ctx) != nil {
				close(taken)
				return
			}
		}
		m.resume(ctx)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// standStill pauses the sandbox.
func (m *machine) standStill(ctx context.Context) {
	m.still.Lock()
	defer m.still.Unlock()
	if m.cell.sandbox.Paused() {
		return
	}
	m.log.WarnContext(ctx, "the sandbox stands still: its guard can't be reached")
	if err := m.cell.sandbox.Pause(context.WithoutCancel(ctx)); err != nil && !m.cell.dead() {
		m.log.ErrorContext(ctx, "the sandbox can't be paused", "err", err)
	}
}

// comeBack makes sure that nobody has taken the sandbox over, and nobody will, if the
// guard can be asked. Error: guard.ErrTaken.
func (m *machine) comeBack(ctx context.Context) error {
	w := m.watched.Load()
	spell := w.fence.spell()
	if spell == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, readLimit)
	defer cancel()
	store, err := w.fence.open(ctx)
	if err == nil {
		err = store.Confirm(ctx, m.tenant, m.id, m.agent.env.Region, m.agent.name, m.epoch, w.term)
	}
	switch {
	case errors.Is(err, guard.ErrTaken):
		m.taken.Store(true)
		return err
	case err != nil:
		m.log.WarnContext(ctx, "whether the sandbox was taken over is not known yet", "err", err)
		return nil
	}
	m.bind(guardNote{w.region, w.term}, spell)
	return nil
}

// copies has a checkpoint made and kept on the interval that the request asked for.
func (m *machine) copies(ctx context.Context) {
	if !admission.Restored(m.current().GetSpec()) {
		return
	}
	interval := m.current().GetSpec().GetCheckpointInterval().AsDuration()
	for ctx.Err() == nil {
		wait := interval
		if !m.fenced() {
			if err := m.copyOnce(ctx); err != nil && ctx.Err() == nil {
				m.log.WarnContext(ctx, "no checkpoint of the sandbox is kept elsewhere now", "err", err)
				wait = copyAgain
			}
		} else {
			wait = time.Second
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
	}
}

// copyOnce has one checkpoint made and kept.
func (m *machine) copyOnce(ctx context.Context) error {
	if sb := m.current(); sb.GetState() != siroccov1.State_STATE_RUNNING || sb.GetDesired().GetStop() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, copyLimit)
	defer cancel()
	node, err := m.guardNode(ctx)
	if err != nil {
		return err
	}
	w := m.watched.Load()
	out, hangUp, err := m.sourceTo(ctx, link.KindGuard, node.GetName(), node.GetAddress(), m.epoch)
	if err != nil {
		return err
	}
	defer hangUp()
	parcel := m.parcel()
	parcel.GuardTerm = w.term
	if err := out.Offer(ctx, parcel); err != nil {
		return moveFault("have a checkpoint kept on "+node.GetName(), err)
	}
	dir, remove, err := m.agent.moves.folder(m.id)
	if err != nil {
		return err
	}
	defer remove()
	began := time.Now()
	if err := m.checkpoint(ctx, dir); err != nil {
		return err
	}
	pause := time.Since(began)
	files, err := out.Files(ctx, dir)
	if err != nil {
		return moveFault("send the checkpoint", err)
	}
	if err := out.AwaitRestored(ctx); err != nil {
		return moveFault("keep the checkpoint on "+node.GetName(), err)
	}
	m.log.DebugContext(ctx, "checkpoint kept elsewhere", "peer", w.region, "on", node.GetName(), "pause", pause, "sent", files.Wire, "took", time.Since(began))
	return nil
}

// checkpoint saves the sandbox, which runs again afterwards.
func (m *machine) checkpoint(ctx context.Context, dir string) error {
	defer m.resume(ctx)
	m.still.Lock()
	defer m.still.Unlock()
	if m.fenced() {
		return m.errFenced()
	}
	if err := m.cell.sandbox.Pause(ctx); err != nil {
		return moveFault("pause the sandbox", err)
	}
	if err := m.cell.sandbox.Checkpoint(ctx, dir); err != nil {
		return moveFault("checkpoint the sandbox", err)
	}
	return nil
}

// guardNode returns the node that is to keep the next checkpoint. Within a term that is
// any of one region that fits; where there is none, the term ends, and the next may be in
// another region.
func (m *machine) guardNode(ctx context.Context) (*siroccov1.Node, error) {
	if w := m.watched.Load(); w != nil {
		node, err := m.fitting(ctx, w.fence)
		if node != nil || err != nil {
			return node, err
		}
		if err := m.unguard(ctx); err != nil {
			return nil, err
		}
	}
	var last error = fault.New(fault.NoCapacity, "no other region that the request allows has a node for it")
	for _, region := range m.agent.env.Peers.Regions() {
		if allowed := m.current().GetSpec().GetRegions(); len(allowed) > 0 && !slices.Contains(allowed, region) {
			continue
		}
		f := m.agent.fences[region]
		node, err := m.fitting(ctx, f)
		if err == nil && node != nil {
			if err = m.engage(ctx, f); err == nil {
				return node, nil
			}
		}
		if err != nil {
			last = err
		}
	}
	return nil, last
}

// fitting returns a node of another region on which the sandbox could be restored; nil if
// there is none now.
func (m *machine) fitting(ctx context.Context, f *fence) (*siroccov1.Node, error) {
	if f == nil || !f.peer.Alive() {
		return nil, fault.New(fault.Unavailable, "the region of the guard can't be reached")
	}
	nodes, err := f.nodes(ctx)
	if err != nil {
		return nil, err
	}
	var best *siroccov1.Node
	for _, node := range nodes {
		if !node.GetReady() || node.GetCordoned() || node.GetDraining() ||
			node.GetRuntime() != m.agent.parts.runtime.Name() || node.GetRuntimeVersion() != m.agent.parts.runtime.Version() || node.GetProcessor() != m.agent.processor {
			continue
		}
		// The one that keeps it already, else the emptiest.
		if node.GetName() == m.guardedOn {
			best = node
			break
		}
		if best == nil || node.GetLive() < best.GetLive() {
			best = node
		}
	}
	if best != nil {
		m.guardedOn = best.GetName()
	}
	return best, nil
}

// engage begins a term. From its note on the sandbox runs only within the fence.
func (m *machine) engage(ctx context.Context, f *fence) error {
	f.use(1)
	defer f.use(-1)
	if err := f.renew(ctx); err != nil {
		return err
	}
	spell := f.spell()
	n := guardNote{Region: f.peer.Region, Term: rand.Text()}
	if err := m.noteGuard(n); err != nil {
		return err
	}
	store, err := f.open(ctx)
	if err == nil {
		err = store.Engage(ctx, m.tenant, m.id, m.agent.env.Region, m.agent.name, m.epoch, n.Term)
	}
	if err != nil {
		// Nothing can be claimed without a checkpoint, and none was sent.
		return errors.Join(err, m.noteGuard(guardNote{}))
	}
	m.bind(n, spell)
	return nil
}

// noteGuard writes into the journal which guard the sandbox has.
func (m *machine) noteGuard(n guardNote) error {
	m.mu.Lock()
	m.entry.Guard = n
	m.mu.Unlock()
	return m.note()
}

// unguard ends the term: from then on nobody takes the sandbox over. Error: among others
// guard.ErrTaken, if somebody has.
func (m *machine) unguard(ctx context.Context) error {
	w := m.watched.Load()
	if w == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, readLimit)
	defer cancel()
	store, err := w.fence.open(ctx)
	if err != nil {
		return err
	}
	if err := store.Release(ctx, m.tenant, m.id, m.epoch, w.term); err != nil {
		if errors.Is(err, guard.ErrTaken) {
			m.taken.Store(true)
		}
		return err
	}
	m.bind(guardNote{}, 0)
	return m.noteGuard(guardNote{})
}
