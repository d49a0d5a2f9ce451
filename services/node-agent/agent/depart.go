package agent

import (
	"context"
	"time"

	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/link"
	"github.com/sirocco-run/sirocco/pkg/move"
	"github.com/sirocco-run/sirocco/pkg/transfer"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

const (
	// farewell bounds what is still said to the other node once a move is made.
	farewell = 10 * time.Second
	// lookAgain is how soon the record is looked at again that did not say enough.
	lookAgain = 100 * time.Millisecond
)

// source is what this node knows of a move away from it.
func (m *machine) source(a *attempt) move.Source {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := move.Source{Epoch: m.epoch, Note: m.entry.Leaving, Record: m.record, Forgotten: m.forgotten}
	s.Ready = a != nil && a.err == nil
	s.Broken = s.Note.Phase != move.Idle && !s.Ready
	return s
}

// onTheMove says whether the sandbox is leaving: then who wants something of it has to
// say so in the record, which goes with it.
func (m *machine) onTheMove() bool { return m.source(nil).Next(time.Now()) != move.Live }

// setLeaving notes how far the move of an epoch has come. What could not be noted must
// not be begun.
func (m *machine) setLeaving(n move.Note) error {
	m.mu.Lock()
	before := m.entry.Leaving
	m.entry.Leaving = n
	m.mu.Unlock()
	err := m.note()
	if err != nil {
		m.mu.Lock()
		m.entry.Leaving = before
		m.mu.Unlock()
	}
	return err
}

// attempt is one try to carry the sandbox to another node: a copy that waits there,
// paused, unless err says what was in the way.
type attempt struct {
	err    error
	out    *transfer.Source
	hangUp func()
	// discard removes the checkpoint. That takes its time: nobody waits for it while the
	// sandbox stands still, unless it is to go on here, and pays for what is in memory.
	discard func()
	// since is when the sandbox was paused; zero if it was not.
	since time.Time
	// ahead is for how long it stood still before, to be sent ahead.
	ahead time.Duration
	bytes int64
}

// moveOn does what there is to do about a move until there is nothing more (package move
// decides what). gone: the sandbox is elsewhere, and what is here is to be removed. It
// returns early when the sandbox is to end, with the rest still to do, and when ctx ends,
// when the next agent goes on.
func (m *machine) moveOn(ctx context.Context) (gone bool) {
	if !m.onTheMove() {
		m.resume(ctx)
		return false
	}
	ctx, span := m.agent.tracer.Start(ctx, "agent.depart")
	defer span.End()
	var a *attempt
	defer func() {
		if a != nil {
			a.hangUp()
			a.discard()
		}
	}()
	for ctx.Err() == nil {
		asked := m.current().GetMove()
		switch do := m.source(a).Next(time.Now()); do {
		case move.Live:
			m.resume(ctx)
			return false
		case move.Send:
			a = m.send(ctx, asked)
		case move.Commit:
			m.commit(ctx, a, asked)
		case move.Resume, move.CallOff:
			if a != nil && a.err != nil {
				m.log.WarnContext(ctx, "sandbox stays", "to", asked.GetNode(), "err", a.err)
				a.discard()
			}
			if do == move.Resume {
				// If it can't be noted, the next agent asks the record before it resumes.
				_ = m.setLeaving(move.Note{Epoch: asked.GetEpoch(), Phase: move.Returned})
				m.resume(ctx)
			}
			if !m.callOff(ctx, a) {
				return false
			}
		case move.Forget:
			if a != nil && a.out != nil {
				_ = a.out.Stop(a.err)
				a.discard()
			}
			_ = m.setLeaving(move.Note{}) // what stays noted is forgotten later
			m.resume(ctx)
			m.agent.metrics.left(ctx, false)
			return false
		case move.Leave:
			m.leave(ctx, a)
			return true
		case move.Wait: // not without an attempt that is under way elsewhere: there is none
			return false
		}
	}
	return false
}

// send brings a copy of the sandbox to the other node. The sandbox is then paused, unless
// the attempt failed before.
func (m *machine) send(ctx context.Context, asked *siroccov1.Move) *attempt {
	a := &attempt{hangUp: func() {}, discard: func() {}}
	m.reopen()
	m.log.InfoContext(ctx, "sandbox leaves", "to", asked.GetNode(), "region", asked.GetRegion(), "reason", asked.GetReason())
	if err := m.setLeaving(move.Note{Epoch: asked.GetEpoch(), Phase: move.Sending}); err != nil {
		a.err = moveFault("note the move", err)
		return a
	}
	// The end of its lifetime waits for no move.
	until, _ := m.nextDeadline(time.Now())
	if d := asked.GetDeadline().AsTime(); d.Before(until) {
		until = d
	}
	ctx, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	if a.out, a.hangUp, a.err = m.sourceTo(ctx, link.KindMove, asked.GetNode(), asked.GetNodeAddress(), asked.GetEpoch()); a.err != nil {
		return a
	}
	hctx, done := m.unlessStopped(ctx)
	a.err = m.handOver(hctx, a, asked)
	if _, stopped := done(); stopped {
		a.err = fault.New(fault.FailedPrecondition, "it was told to end")
	}
	if a.err != nil {
		_ = a.out.Stop(a.err)
	}
	return a
}

// commit tries to make the move: the one write after which only the copy may run.
func (m *machine) commit(ctx context.Context, a *attempt, asked *siroccov1.Move) {
	if m.source(nil).Note.Phase == move.Committing {
		a.err = fault.New(fault.Unavailable, "the record could not be written") // once is enough: now it is called off
		return
	}
	if err := m.setLeaving(move.Note{Epoch: asked.GetEpoch(), Phase: move.Committing}); err != nil {
		a.err = moveFault("note the move", err)
		_ = a.out.Stop(a.err)
		return
	}
	ctx, cancel := context.WithDeadline(ctx, asked.GetDeadline().AsTime())
	defer cancel()
	sb, err := m.agent.store.Update(ctx, m.tenant, m.id, m.current(), lifecycle.Depart{Epoch: asked.GetEpoch()})
	if err != nil {
		a.err = moveFault("make the move", err)
		return
	}
	m.learn(sb)
}

// callOff writes that the move is not made, for as long as it takes. If it may have been
// made all the same, the record says so afterwards. goOn is false when the sandbox is to
// end first, or ctx has ended.
func (m *machine) callOff(ctx context.Context, a *attempt) (goOn bool) {
	from := m.current()
	epoch := m.source(a).Note.Epoch
	if epoch == 0 {
		epoch = from.GetMove().GetEpoch() // it is too late to begin
	}
	why := fault.New(fault.Unavailable, "the node-agent was started anew during the move")
	if a != nil && a.err != nil {
		why = fault.From(a.err)
	}
	return m.untilEnd(ctx, func(ctx context.Context) bool {
		sb, err := m.agent.store.Update(ctx, m.tenant, m.id, from, lifecycle.CallOff{Epoch: epoch, Code: string(why.Code), Failure: why.Message})
		switch {
		case fault.CodeOf(err) == fault.NotFound:
			m.mu.Lock()
			m.forgotten = true
			m.mu.Unlock()
			return true
		case err != nil:
			m.log.WarnContext(ctx, "the move can't be called off; it is tried again", "err", err)
			return false
		}
		m.learn(sb)
		from = nil // what was known did not say enough
		next := m.source(a).Next(time.Now())
		return next != move.CallOff && next != move.Resume
	})
}

// untilEnd does something again and again until it is done, and says whether it was. It
// gives up when the sandbox has ended, or its time is over.
func (m *machine) untilEnd(ctx context.Context, do func(ctx context.Context) (done bool)) bool {
	until, _ := m.nextDeadline(time.Now())
	ctx, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	for ctx.Err() == nil {
		if m.agent.env.NC.IsConnected() && do(ctx) {
			return true
		}
		select {
		case <-time.After(lookAgain):
		case <-m.cell.sandbox.Done():
			return false
		case <-ctx.Done():
		}
	}
	return false
}

// leave tells the other node that its copy may run. The move is made: nothing that fails
// here changes that, since the other node asks the record when it is not told.
func (m *machine) leave(ctx context.Context, a *attempt) {
	sb := m.current()
	m.agent.metrics.left(ctx, true)
	m.log.InfoContext(ctx, "sandbox has left", "to", sb.GetPlacement().GetNode(), "region", sb.GetPlacement().GetRegion())
	if a == nil || a.out == nil || !lifecycle.Departed(sb, sb.GetMove().GetEpoch()) {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), farewell)
	defer cancel()
	told := proto.CloneOf(sb)
	told.Move.Pause, told.Move.Bytes = durationpb.New(time.Since(a.since)), a.bytes
	err := a.out.Proceed(ctx, told)
	var there *siroccov1.Sandbox
	if err == nil {
		there, err = a.out.AwaitArrived(ctx)
	}
	if err != nil {
		m.log.WarnContext(ctx, "the move is made; the other node was not told, or has not answered", "node", sb.GetMove().GetNode(), "err", err)
		return
	}
	if sb.GetMove().GetRegion() == m.agent.env.Region {
		return
	}
	// What stays here of the record follows; if not now, the reaper sees to it.
	follow := lifecycle.Follow{Region: m.agent.env.Region, Record: there}
	if _, err := m.agent.store.Update(ctx, m.tenant, m.id, sb, lifecycle.OfShadow{Region: m.agent.env.Region, Step: follow}); err != nil {
		m.log.DebugContext(ctx, "the record that stays behind is brought up to date later", "err", err)
	}
}

// resume lets the sandbox run if it is paused, and may.
func (m *machine) resume(ctx context.Context) {
	m.still.Lock()
	defer m.still.Unlock()
	if m.fenced() || !m.cell.sandbox.Paused() {
		return
	}
	if err := m.cell.sandbox.Resume(context.WithoutCancel(ctx)); err != nil && !m.cell.dead() {
		m.log.ErrorContext(ctx, "the sandbox can't be resumed", "err", err)
	}
}
