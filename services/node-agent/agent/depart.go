package agent

import (
	"context"
	"errors"
	"time"

	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/link"
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
)

// leaving returns the move that the record asks of this node; nil if there is none.
func (m *machine) leaving() *siroccov1.Move {
	sb := m.current()
	move := sb.GetMove()
	if sb.GetState() != siroccov1.State_STATE_MIGRATING || move.GetEpoch() <= m.epoch || sb.GetPlacement().GetEpoch() != m.epoch {
		return nil
	}
	return move
}

// onTheMove says whether the sandbox is leaving: then who wants something of it has to
// say so in the record, which goes with it.
func (m *machine) onTheMove() bool { return m.leaving() != nil }

// depart carries the sandbox to where its record says. gone: the move was made, and what
// is here is to be removed. If not, it runs on here, and the record says why; unless ctx
// has ended, when the next agent goes on.
//
// The record is the judge, and only this node writes the step that makes the move. Until
// it tries to, the sandbox may be resumed whatever happens; from then on only after the
// record says that the move was called off.
func (m *machine) depart(ctx context.Context, move *siroccov1.Move) (gone bool) {
	ctx, span := m.agent.tracer.Start(ctx, "agent.depart")
	defer span.End()
	began := time.Now()
	// The end of its lifetime waits for no move.
	until, _ := m.nextDeadline(began)
	if d := move.GetDeadline().AsTime(); d.Before(until) {
		until = d
	}
	mctx, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	m.log.InfoContext(ctx, "sandbox leaves", "to", move.GetNode(), "region", move.GetRegion(), "reason", move.GetReason())
	err := m.carry(mctx, move)
	if err == nil {
		m.log.InfoContext(ctx, "sandbox has left", "to", move.GetNode(), "region", move.GetRegion(), "took", time.Since(began))
		m.agent.metrics.left(ctx, true)
		return true
	}
	span.RecordError(err)
	gone = m.stay(ctx, move, err)
	m.agent.metrics.left(ctx, gone)
	return gone
}

// carry does the whole of a move from this side. Without an error the move is made.
func (m *machine) carry(ctx context.Context, move *siroccov1.Move) error {
	if at := move.GetDeadline().AsTime(); !time.Now().Before(at) {
		return moveFault("begin the move", context.DeadlineExceeded)
	}
	conn, err := m.agent.moves.dialer.Open(ctx, move.GetNodeAddress(), link.Header{
		Kind: link.KindMove, Tenant: m.tenant, Sandbox: m.id, Epoch: move.GetEpoch(),
	})
	if err != nil {
		return moveFault("reach "+move.GetNode(), err)
	}
	defer func() { _ = conn.Close() }()
	out := transfer.NewSource(conn, transfer.Options{})
	sent, err := m.handOver(ctx, out, move)
	if err != nil {
		_ = out.Stop(err)
		return err
	}
	if err := m.setLeaving(true); err != nil {
		_ = out.Stop(err)
		return moveFault("note the move", err)
	}
	sb, err := m.agent.store.Update(ctx, m.tenant, m.id, nil, lifecycle.Depart{Epoch: move.GetEpoch()})
	if err == nil && !lifecycle.Departed(sb, move.GetEpoch()) {
		err = fault.New(fault.FailedPrecondition, "it is %s by now", sb.GetState())
	}
	if err != nil {
		return moveFault("make the move", err) // stay finds out whether it was made
	}
	m.sendOn(ctx, out, sb, sent)
	return nil
}

// setLeaving notes whether the move may have been made. Without an error it is in the
// journal; what could not be noted must not be done.
func (m *machine) setLeaving(tried bool) error {
	m.mu.Lock()
	before := m.entry.Leaving
	m.entry.Leaving = tried
	m.mu.Unlock()
	err := m.note()
	if err != nil {
		m.mu.Lock()
		m.entry.Leaving = before
		m.mu.Unlock()
	}
	return err
}

// sent is what a copy has cost so far.
type sent struct {
	bytes  int64
	paused time.Time
}

// handOver brings a copy of the sandbox, which is paused, to the other node.
func (m *machine) handOver(ctx context.Context, out *transfer.Source, move *siroccov1.Move) (s sent, err error) {
	there := proto.CloneOf(m.current())
	there.Placement = &siroccov1.Placement{Region: move.GetRegion(), Node: move.GetNode(), NodeAddress: move.GetNodeAddress(), Epoch: move.GetEpoch()}
	if err := out.Offer(ctx, &nodev1.Parcel{Sandbox: there, Secret: m.cell.secret, ImageDigest: m.cell.image.Digest, ImageSum: m.cell.image.Sum}); err != nil {
		return s, moveFault("prepare the move on "+move.GetNode(), err)
	}
	if blocking := m.quiet(ctx, quietLimit); blocking > 0 {
		return s, fault.New(fault.Unavailable, "%d requests to it were still under way after %v", blocking, quietLimit)
	}
	dir, remove, err := m.agent.moves.folder(m.id)
	if err != nil {
		return s, moveFault("checkpoint the sandbox", err)
	}
	defer remove()
	s.paused = time.Now()
	if err := m.cell.sandbox.Pause(ctx); err != nil {
		return s, moveFault("pause the sandbox", err)
	}
	if err := m.cell.sandbox.Checkpoint(ctx, dir); err != nil {
		return s, moveFault("checkpoint the sandbox", err)
	}
	saved := time.Now()
	files, err := out.Files(ctx, dir)
	if err != nil {
		return s, moveFault("send the checkpoint", err)
	}
	s.bytes = files.Wire
	transferred := time.Now()
	if err := out.AwaitRestored(ctx); err != nil {
		return s, moveFault("restore the sandbox on "+move.GetNode(), err)
	}
	m.log.InfoContext(ctx, "sandbox copied", "bytes", files.Bytes, "sent", files.Wire,
		"save", saved.Sub(s.paused), "transfer", transferred.Sub(saved), "restore", time.Since(transferred))
	return s, nil
}

// sendOn lets the copy run. The move is made: nothing that fails here changes that, since
// the other node asks the record when it is not told.
func (m *machine) sendOn(ctx context.Context, out *transfer.Source, sb *siroccov1.Sandbox, s sent) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), farewell)
	defer cancel()
	told := proto.CloneOf(sb)
	told.Move.Pause, told.Move.Bytes = durationpb.New(time.Since(s.paused)), s.bytes
	err := out.Proceed(ctx, told)
	var there *siroccov1.Sandbox
	if err == nil {
		there, err = out.AwaitArrived(ctx)
	}
	if err != nil {
		m.log.WarnContext(ctx, "the move is made; the other node was not told, or has not answered", "node", sb.GetMove().GetNode(), "err", err)
		return
	}
	if sb.GetMove().GetRegion() == m.agent.env.Region {
		return
	}
	// What stays here of the record follows; if not now, the reaper sees to it.
	if _, err := m.agent.store.Update(ctx, m.tenant, m.id, sb, lifecycle.OfShadow{Region: m.agent.env.Region, Step: lifecycle.Follow{Region: m.agent.env.Region, Record: there}}); err != nil {
		m.log.DebugContext(ctx, "the record that stays behind is brought up to date later", "err", err)
	}
}

// stay lets the sandbox go on here after a move that failed with why, unless the record
// says that it was made all the same: then gone is true.
func (m *machine) stay(ctx context.Context, move *siroccov1.Move, why error) (gone bool) {
	m.mu.Lock()
	tried := m.entry.Leaving
	m.mu.Unlock()
	if !tried {
		m.resume(ctx)
	}
	f := fault.From(why)
	sb, err := m.write(ctx, lifecycle.CallOff{Epoch: move.GetEpoch(), Code: string(f.Code), Failure: f.Message})
	switch {
	case err != nil && ctx.Err() != nil:
		return false // the next agent finds out
	case fault.CodeOf(err) == fault.NotFound:
		return true // nobody wants it any more
	case err == nil && lifecycle.Departed(sb, move.GetEpoch()):
		m.log.WarnContext(ctx, "the move was made, though it looked as if it had failed", "to", move.GetNode(), "err", why)
		return true
	case err != nil:
		m.log.ErrorContext(ctx, "the move can't be called off", "err", err)
	}
	m.log.WarnContext(ctx, "sandbox stays", "to", move.GetNode(), "err", why)
	if tried {
		// If that can't be noted, an agent that comes after this one asks once more.
		_ = m.setLeaving(false)
		m.resume(ctx)
	}
	return false
}

// resume lets a sandbox run that may be paused.
func (m *machine) resume(ctx context.Context) {
	if err := m.cell.sandbox.Resume(context.WithoutCancel(ctx)); err != nil && !m.cell.dead() {
		m.log.ErrorContext(ctx, "the sandbox can't be resumed", "err", err)
	}
}

// unpause deals with a sandbox that the agent before this one has left in the middle of a
// move. gone is as for depart.
func (m *machine) unpause(ctx context.Context) (gone bool) {
	m.mu.Lock()
	tried, move := m.entry.Leaving, m.record.GetMove()
	m.mu.Unlock()
	if tried {
		return m.stay(ctx, move, errors.New("the node-agent was started anew during the move"))
	}
	if m.cell.sandbox.Paused() {
		m.resume(ctx)
	}
	return false
}
