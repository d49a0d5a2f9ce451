package agent

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/guest"
	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/proto"
)

// machine is one sandbox on this node, from the node's yes until the last
// resource is free and the record says how it ended.
//
// One goroutine (run) takes it through its life; what others see of it is
// behind mu. The record may only be written by run.
type machine struct {
	agent  *Agent
	tenant string
	id     string
	epoch  uint64
	log    *slog.Logger
	active *activity
	// traffic is what relays have under way to it.
	traffic traffic

	// sync is poked when the record may have changed; changed says that it has.
	sync    chan struct{}
	changed atomic.Bool
	// told takes the end of a running sandbox from whoever does not write it into the
	// record first: its tenant's, or that of one that must make room at once.
	told chan *siroccov1.End
	// incoming is the stream on which the sandbox comes from another node; nil for one
	// that was made here, or has come.
	incoming *incoming
	// watched is its bond to a guard; nil for none. taken: the guard has taken it over.
	watched atomic.Pointer[watched]
	taken   atomic.Bool
	// unfollow ends the listening to a sandbox that has ended. Only run has it.
	unfollow func()
	// still is held by who pauses it, and lets it run again.
	still sync.Mutex
	// guardedOn is the node that kept the last checkpoint. Only copies has it.
	guardedOn string
	// noticed is the record as orders for the node have left it; nil before. Only obey has
	// it.
	noticed *siroccov1.Sandbox
	// gone is closed when nothing of the sandbox is left on this node.
	gone chan struct{}

	mu       sync.Mutex
	record   *siroccov1.Sandbox // as last read or written
	entry    *entry
	cell     *cell // nil until it has one; then it keeps it. run reads it without mu
	mainDone *guest.Exec
	// forgotten: the bus has no record of it any more.
	forgotten bool
}

// newMachine makes the machine of an execution: epoch is that of the record's placement,
// or of its move for a sandbox that comes.
func newMachine(a *Agent, sb *siroccov1.Sandbox, e *entry, epoch uint64) *machine {
	m := &machine{
		agent: a, tenant: sb.GetTenant(), id: sb.GetId(), epoch: epoch,
		log:      a.log.With("sandbox", sb.GetId(), "tenant", sb.GetTenant(), "epoch", epoch),
		active:   newActivity(sb.GetSpec().GetIdle(), time.Now()),
		unfollow: func() {},
		sync:     make(chan struct{}, 1), gone: make(chan struct{}), told: make(chan *siroccov1.End, 1),
		record: sb, entry: e,
	}
	m.bind(e.Guard, 0)
	return m
}

// poke makes run read the record again.
func (m *machine) poke() {
	select {
	case m.sync <- struct{}{}:
	default:
	}
}

// pokeChanged is poke for who knows that the record has changed: run reads it from a
// server of the bus that has heard of it.
func (m *machine) pokeChanged() {
	m.changed.Store(true)
	m.poke()
}

// current returns the record as the agent knows it. It must not be changed.
func (m *machine) current() *siroccov1.Sandbox {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.record
}

// run takes the sandbox through its life. It returns when nothing of it is left
// and the record says so, or when ctx ends: then the sandbox lives on, and the
// next agent goes on from the journal.
func (m *machine) run(ctx context.Context, adopted bool) {
	defer close(m.gone)
	if m.incoming != nil || m.entry.Arriving != notArriving {
		here, err := m.arrive(ctx)
		if err != nil {
			m.log.Debug("left to the next agent", "reason", err)
			return
		}
		if !here {
			m.finish(ctx, nil)
			return
		}
	}
	end := m.entry.end()
	if end == nil {
		if adopted && m.cell == nil && m.wasReady() {
			end = &siroccov1.End{Cause: siroccov1.Cause_CAUSE_NODE_LOST, Message: "it was gone when its node-agent came back: the machine was restarted, or the sandbox was killed from outside"}
		} else {
			var err error
			if end, err = m.live(ctx); err != nil {
				m.log.Debug("left to the next agent", "reason", err)
				return
			}
		}
	}
	m.finish(ctx, end)
}

// errSuperseded: a newer placement, or the end of the record, has overtaken
// this execution. It is destroyed and nothing is written.
var errSuperseded = errors.New("superseded")

// live starts the sandbox if it does not run yet and watches over it. It
// returns how it ended, nil if the record belongs to somebody else, and an
// error when ctx ended first.
func (m *machine) live(ctx context.Context) (*siroccov1.End, error) {
	if !m.wasReady() {
		sctx, done := m.unlessStopped(ctx)
		err := m.start(sctx)
		end, stopped := done()
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case stopped:
			return end, nil
		case errors.Is(err, errSuperseded):
			return nil, nil
		case err != nil:
			return m.startFailure(ctx, err), nil
		}
	}
	return m.watch(ctx)
}

// readLimit bounds a reading of the record.
const readLimit = 5 * time.Second

// reread reads the record and says whether this execution must stop, and with
// which end; nil for one that is not to be written. It returns at deadline at
// the latest: a bus that hangs must not keep the sandbox alive.
func (m *machine) reread(ctx context.Context, deadline time.Time) (*siroccov1.End, bool) {
	if !m.agent.env.NC.IsConnected() {
		return nil, false // what was known stays true; reconcile comes again
	}
	if limit := time.Now().Add(readLimit); limit.Before(deadline) {
		deadline = limit
	}
	rctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	get := m.agent.store.Get
	if m.changed.Swap(false) {
		get = func(ctx context.Context, tenant, id string) (*siroccov1.Sandbox, error) {
			return m.agent.store.GetNewer(ctx, tenant, id, m.current().GetRevision())
		}
	}
	sb, err := get(rctx, m.tenant, m.id)
	if fault.CodeOf(err) == fault.NotFound {
		return nil, true
	}
	if err != nil {
		return nil, false // as above
	}
	return m.judge(sb)
}

// judge takes over a newer record and says whether this execution must stop. A
// server of the bus that has not caught up may answer with a placement of before:
// that ends nothing.
func (m *machine) judge(sb *siroccov1.Sandbox) (*siroccov1.End, bool) {
	ended := lifecycle.Ended(sb.GetState())
	if !ended && sb.GetPlacement().GetEpoch() < m.epoch {
		return nil, false
	}
	if ended || sb.GetPlacement().GetEpoch() != m.epoch || sb.GetPlacement().GetNode() != m.agent.name {
		return nil, true
	}
	m.mu.Lock()
	newer := sb.GetRevision() > m.record.GetRevision()
	if newer {
		m.record = sb
	}
	m.mu.Unlock()
	if d := sb.GetDesired(); d.GetStop() {
		// The journal gets the end, and the record with it.
		return &siroccov1.End{Cause: d.GetStopCause(), Message: d.GetStopReason(), Limit: limitOf(sb, d.GetStopCause())}, true
	}
	if newer {
		m.save()
	}
	return nil, false
}

// learn takes over what the record has become, if it is newer than what was known.
func (m *machine) learn(sb *siroccov1.Sandbox) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if sb.GetRevision() >= m.record.GetRevision() {
		m.record = sb
	}
}

// home returns the sandbox's cell; nil until it has one.
func (m *machine) home() *cell {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.cell
}

// guest returns the connection to the sandbox's supervisor.
func (m *machine) guest(ctx context.Context) (*guest.Client, error) {
	b := m.home()
	if b == nil {
		return nil, errStarting()
	}
	if m.fenced() {
		return nil, m.errFenced()
	}
	return b.guest(ctx)
}

// wasReady says whether the sandbox has been ready once.
func (m *machine) wasReady() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.entry.Running
}

// save writes the journal. A failure is logged: the sandbox goes on, and only a crash of
// the agent would now lose it.
func (m *machine) save() {
	if err := m.note(); err != nil {
		m.log.Error("journal not written", "err", err)
	}
}

// note writes the journal, once there is something to find again.
func (m *machine) note() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.entry.Cell == nil {
		return nil
	}
	raw, err := proto.Marshal(m.record)
	if err != nil {
		return err
	}
	m.entry.Record = raw
	return m.agent.journal.write(m.id, m.entry)
}

// write takes a step on the record, for as long as it takes: the bus may be
// away. It returns the record as it is afterwards, or an error when ctx ended
// or the record is gone for good.
func (m *machine) write(ctx context.Context, step lifecycle.Step) (*siroccov1.Sandbox, error) {
	sb, err := m.update(ctx, m.current(), step)
	if err == nil {
		m.learn(sb)
	}
	return sb, err
}

// update is write by the record as it was in from, and takes nothing over.
func (m *machine) update(ctx context.Context, from *siroccov1.Sandbox, step lifecycle.Step) (*siroccov1.Sandbox, error) {
	wait := 50 * time.Millisecond
	for {
		if err := bus.Await(ctx, m.agent.env.NC); err != nil {
			return nil, err
		}
		sb, err := m.agent.store.Update(ctx, m.tenant, m.id, from, step)
		if err == nil {
			return sb, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if fault.CodeOf(err) != fault.Unavailable {
			return nil, err
		}
		m.log.Warn("the record can't be written; it is tried again", "err", err)
		select {
		case <-time.After(wait):
			wait = min(2*wait, 2*time.Second)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		from = nil
	}
}
