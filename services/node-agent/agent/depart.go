package agent

import (
	"context"
	"net"
	"time"

	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/link"
	"github.com/sirocco-run/sirocco/pkg/move"
	"github.com/sirocco-run/sirocco/pkg/transfer"
	nodev1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/node/v1"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

const (
	// quietLimit is for how long a move waits, with the sandbox running, until no
	// request to it is under way.
	quietLimit = 10 * time.Second
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
	// since is when the sandbox was paused; zero if it was not.
	since time.Time
	bytes int64
}

// moveOn does what there is to do about a move until there is nothing more (package move
// decides what). gone: the sandbox is elsewhere, and what is here is to be removed. It
// returns early when the sandbox is to end, with the rest still to do, and when ctx ends,
// when the next agent goes on.
func (m *machine) moveOn(ctx context.Context) (gone bool) {
	ctx, span := m.agent.tracer.Start(ctx, "agent.depart")
	defer span.End()
	var a *attempt
	defer func() {
		if a != nil && a.hangUp != nil {
			a.hangUp()
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
	a := &attempt{}
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
	conn, err := m.agent.moves.dialer.Open(ctx, asked.GetNodeAddress(), link.Header{
		Kind: link.KindMove, Tenant: m.tenant, Sandbox: m.id, Epoch: asked.GetEpoch(),
	})
	if err != nil {
		a.err = moveFault("reach "+asked.GetNode(), err)
		return a
	}
	a.out, a.hangUp = transfer.NewSource(conn, transfer.Options{Plain: sameMachine(conn)}), func() { _ = conn.Close() }
	hctx, done := m.unlessStopped(ctx)
	a.err = m.handOver(hctx, a, asked)
	if done() {
		a.err = fault.New(fault.FailedPrecondition, "it was told to end")
	}
	if a.err != nil {
		_ = a.out.Stop(a.err)
	}
	return a
}

// unlessStopped returns a context that ends when the sandbox is to end: its end does not
// wait for requests, nor for a copy that nobody needs any more. done must be called before
// the move is made, and says whether the sandbox is to end.
func (m *machine) unlessStopped(ctx context.Context) (hctx context.Context, done func() (stopped bool)) {
	hctx, cancel := context.WithCancel(ctx)
	answer := make(chan bool, 1)
	go func() {
		_, stop := m.awaitStop(hctx)
		if stop {
			cancel()
		}
		answer <- stop
	}()
	return hctx, func() bool {
		cancel()
		return <-answer
	}
}

// sameMachine says whether a stream stays on this machine.
func sameMachine(conn net.Conn) bool {
	here, _, err := net.SplitHostPort(conn.LocalAddr().String())
	there, _, terr := net.SplitHostPort(conn.RemoteAddr().String())
	return err == nil && terr == nil && here == there
}

// handOver is send on a stream that is open.
func (m *machine) handOver(ctx context.Context, a *attempt, asked *siroccov1.Move) error {
	if err := m.unguard(ctx); err != nil {
		return moveFault("end its being guarded", err)
	}
	parcel := &nodev1.Parcel{Sandbox: m.current(), Secret: m.cell.secret, ImageDigest: m.cell.image.Digest, ImageSum: m.cell.image.Sum}
	if err := a.out.Offer(ctx, parcel); err != nil {
		return moveFault("prepare the move on "+asked.GetNode(), err)
	}
	if blocking := m.quiet(ctx, quietLimit); blocking > 0 {
		return fault.New(fault.Unavailable, "%d requests to it were still under way after %v", blocking, quietLimit)
	}
	dir, remove, err := m.agent.moves.folder(m.id)
	if err != nil {
		return moveFault("checkpoint the sandbox", err)
	}
	defer remove()
	a.since = time.Now()
	if err := m.cell.sandbox.Pause(ctx); err != nil {
		return moveFault("pause the sandbox", err)
	}
	if err := m.cell.sandbox.Checkpoint(ctx, dir); err != nil {
		return moveFault("checkpoint the sandbox", err)
	}
	saved := time.Now()
	files, err := a.out.Files(ctx, dir)
	if err != nil {
		return moveFault("send the checkpoint", err)
	}
	a.bytes = files.Wire
	transferred := time.Now()
	if err := a.out.AwaitRestored(ctx); err != nil {
		return moveFault("restore the sandbox on "+asked.GetNode(), err)
	}
	m.log.InfoContext(ctx, "sandbox copied", "bytes", files.Bytes, "sent", files.Wire,
		"save", saved.Sub(a.since), "transfer", transferred.Sub(saved), "restore", time.Since(transferred))
	return nil
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
