package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/link"
	"github.com/sirocco-run/sirocco/pkg/transfer"
	nodev1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/node/v1"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/proto"
)

// incoming is the stream on which a sandbox comes.
type incoming struct {
	in *transfer.Target
	// over is closed when the stream is of no more use.
	over chan struct{}
}

// admit prepares the stream on which a sandbox comes for which a place is kept. The
// machine lives in mctx, for it may outlast the stream.
func (a *Agent) admit(mctx context.Context, h link.Header) (func(net.Conn), error) {
	sb := a.moves.take(h.Tenant, h.Sandbox, h.Epoch)
	if sb == nil {
		return nil, fault.New(fault.FailedPrecondition, "no place is kept here for epoch %d of sandbox %s", h.Epoch, h.Sandbox)
	}
	// The machine has the epoch that the sandbox is to have here.
	there := proto.CloneOf(sb)
	move := sb.GetMove()
	there.Placement = &siroccov1.Placement{Region: move.GetRegion(), Node: move.GetNode(), NodeAddress: move.GetNodeAddress(), Epoch: move.GetEpoch()}
	return func(conn net.Conn) {
		defer func() { _ = conn.Close() }()
		m := newMachine(a, there, &entry{})
		m.incoming = &incoming{transfer.NewTarget(conn, transfer.Options{}), make(chan struct{})}
		over := m.incoming.over
		a.launch(mctx, m, false)
		<-over
	}, nil
}

// arrive brings the sandbox here. here says whether it runs here from now on; if not,
// whatever there is of it is to be removed. The error is that of ctx: the next agent goes
// on then.
func (m *machine) arrive(ctx context.Context) (here bool, err error) {
	ctx, span := m.agent.tracer.Start(ctx, "agent.arrive")
	defer span.End()
	if m.cell == nil && m.entry.Arriving {
		// The copy is gone, and the move may have been made: then the sandbox is lost, as
		// if this node had been, and the record is the one to say so.
		return m.lost(ctx)
	}
	var sb *siroccov1.Sandbox
	var told time.Time
	if m.incoming != nil {
		defer close(m.incoming.over)
		mctx, cancel := context.WithDeadline(ctx, m.current().GetMove().GetDeadline().AsTime())
		defer cancel()
		if err := m.takeIn(mctx, m.incoming.in); err != nil {
			_ = m.incoming.in.Fail(moveFault("take the sandbox in", err))
			m.releaseName(ctx)
			m.log.WarnContext(ctx, "a sandbox did not arrive", "from", m.current().GetMove().GetFromNode(), "err", err)
			return false, ctx.Err()
		}
		wctx, stop := context.WithTimeout(ctx, moveLimit)
		sb, err = m.incoming.in.AwaitProceed(wctx)
		stop()
		told = time.Now()
		if off := new(transfer.GaveUp); errors.As(err, &off) {
			m.releaseName(ctx)
			m.log.InfoContext(ctx, "a move was called off", "err", err)
			return false, ctx.Err()
		}
	}
	if sb == nil {
		m.log.WarnContext(ctx, "whether the move was made is asked of the record", "err", err)
		if sb, err = m.ask(ctx); err != nil || sb == nil {
			m.releaseName(ctx)
			return false, err
		}
	}
	return true, m.settle(ctx, sb, told)
}

// takeIn makes the copy, paused.
func (m *machine) takeIn(ctx context.Context, in *transfer.Target) error {
	parcel, err := in.AwaitParcel(ctx)
	if err != nil {
		return err
	}
	sb := parcel.GetSandbox()
	if p := sb.GetPlacement(); sb.GetId() != m.id || sb.GetTenant() != m.tenant || p.GetEpoch() != m.epoch || p.GetNode() != m.agent.name {
		return fault.New(fault.InvalidArgument, "the parcel is that of another sandbox")
	}
	m.mu.Lock()
	m.record = sb
	m.mu.Unlock()
	if err := m.claimName(ctx); err != nil {
		return err
	}
	dir, remove, err := m.agent.moves.folder(m.id)
	if err != nil {
		return err
	}
	defer remove()
	defer m.agent.pools.begin()()
	b, err := m.agent.cells.restore(ctx, parcel, func(ctx context.Context) (string, error) {
		// Only now is the sandbox paused where it is.
		if err := in.Accept(ctx); err != nil {
			return "", err
		}
		_, err := in.Files(ctx, dir)
		return dir, err
	})
	if err != nil {
		return err
	}
	// The sandbox pays for what is kept of it in memory.
	remove()
	m.mu.Lock()
	m.cell, m.entry.Cell, m.entry.Arriving = b, b.entry(), true
	m.mu.Unlock()
	if err := m.note(); err != nil {
		return fmt.Errorf("note the arrival: %w", err)
	}
	return in.Restored(ctx)
}

// restore makes a cell of a checkpoint, paused. files is called once everything else is
// there, and returns the folder of the checkpoint. On an error nothing stays.
func (c *cells) restore(ctx context.Context, parcel *nodev1.Parcel, files func(context.Context) (string, error)) (_ *cell, err error) {
	sb := parcel.GetSandbox()
	t := templateOf(sb.GetSpec())
	exact := proto.CloneOf(t.Template)
	if source := sb.GetObserved().GetImageDigest(); source != "" {
		exact.Image = source // by now a tag may lead to another image
	}
	b := &cell{id: newCellID(), key: t.key, secret: parcel.GetSecret(), built: time.Now(), runtime: c.parts.runtime.Version()}
	c.hold(b.id)
	defer func() {
		if err != nil {
			err = errors.Join(err, c.destroy(ctx, b))
		}
	}()
	if err := c.prepare(ctx, b, template{t.key, exact}); err != nil {
		return nil, err
	}
	if b.image.Digest != parcel.GetImageDigest() || b.image.Sum != parcel.GetImageSum() {
		return nil, fault.New(fault.FailedPrecondition, "the image %s is another one here, or laid out in another way", exact.GetImage())
	}
	select {
	case c.turns <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	done := sync.OnceFunc(func() { <-c.turns })
	defer done()
	spec := b.spec(t)
	spec.Restore = func(ctx context.Context) (string, error) {
		done() // the files may take their time
		return files(ctx)
	}
	if b.sandbox, err = c.parts.runtime.Create(ctx, spec); err != nil {
		return nil, fmt.Errorf("restore the sandbox: %w", err)
	}
	return b, nil
}

// ask asks the record where the sandbox comes from whether its move was made, until it
// knows: nil if it was not. The error is that of ctx.
func (m *machine) ask(ctx context.Context) (*siroccov1.Sandbox, error) {
	move := m.current().GetMove()
	for {
		if sb, err := m.askOnce(ctx, move); err == nil {
			if lifecycle.Departed(sb, m.epoch) && sb.GetPlacement().GetEpoch() == m.epoch && sb.GetPlacement().GetNode() == m.agent.name && !lifecycle.Ended(sb.GetState()) {
				return sb, nil
			}
			// A server of the bus may answer with a revision of before the move.
			if lifecycle.Ended(sb.GetState()) || sb.GetMove().GetEpoch() > m.epoch || sb.GetMove().GetEpoch() == m.epoch && sb.GetMove().GetEnded() != nil {
				return nil, nil
			}
		} else if fault.CodeOf(err) == fault.NotFound {
			return nil, nil
		}
		select {
		case <-time.After(askPause):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (m *machine) askOnce(ctx context.Context, move *siroccov1.Move) (*siroccov1.Sandbox, error) {
	ctx, cancel := context.WithTimeout(ctx, readLimit)
	defer cancel()
	records, err := m.agent.recordsOf(ctx, move.GetFromRegion())
	if err != nil {
		return nil, err
	}
	return records.Get(ctx, m.tenant, m.id)
}

// settle lets the copy run, and writes that it does. sb is the record as it was committed;
// told is when this node was told, zero if it had to ask. The error is that of ctx.
func (m *machine) settle(ctx context.Context, sb *siroccov1.Sandbox, told time.Time) error {
	m.resume(ctx)
	pause := sb.GetMove().GetPause().AsDuration()
	if told.IsZero() {
		pause = time.Since(sb.GetMove().GetBegun().AsTime())
	} else {
		pause += time.Since(told)
	}
	observed := proto.CloneOf(sb.GetObserved())
	observed.Epoch, observed.Warm, observed.Address = m.epoch, false, m.cell.slot.Address.String()
	step := lifecycle.Arrive{Observed: observed, Pause: pause, Bytes: sb.GetMove().GetBytes()}
	written, err := m.writeArrival(ctx, sb, step)
	if err != nil {
		return err
	}
	m.mu.Lock()
	m.entry.Arriving, m.entry.Running = false, true
	m.mu.Unlock()
	m.save()
	if m.incoming != nil {
		_ = m.incoming.in.Arrived(ctx, written)
	}
	now := time.Now()
	m.active.touch(siroccov1.Activity_ACTIVITY_EXEC, now)
	m.active.touch(siroccov1.Activity_ACTIVITY_TUNNEL, now)
	m.agent.metrics.arrived(ctx, pause)
	m.log.InfoContext(ctx, "sandbox has arrived", "from", sb.GetMove().GetFromNode(), "region", sb.GetMove().GetFromRegion(), "cell", m.cell.id, "pause", pause)
	return m.readdress(ctx)
}

// writeArrival writes that the sandbox runs here. In another region than where it was its
// record comes with it.
func (m *machine) writeArrival(ctx context.Context, sb *siroccov1.Sandbox, step lifecycle.Step) (*siroccov1.Sandbox, error) {
	if sb.GetMove().GetFromRegion() == m.agent.env.Region {
		m.mu.Lock()
		m.record = sb
		m.mu.Unlock()
		return m.write(ctx, step)
	}
	next, err := lifecycle.Apply(sb, step, time.Now())
	if err != nil {
		next = sb // it has been told to end meanwhile
	}
	next.Revision = 0
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
		if err := bus.Await(ctx, m.agent.env.NC); err != nil {
			return nil, err
		}
		written, err := m.agent.store.Import(ctx, next, m.agent.env.Region)
		if err == nil {
			m.mu.Lock()
			m.record = written
			m.mu.Unlock()
			return written, nil
		}
		m.log.WarnContext(ctx, "the record of a sandbox that has come can't be written; it is tried again", "err", err)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// readdress tells the sandbox its new address. What fails of it is no reason to end it.
func (m *machine) readdress(ctx context.Context) error {
	rctx, cancel := context.WithTimeout(ctx, readLimit)
	defer cancel()
	client, err := m.cell.guest(rctx)
	if err == nil {
		err = client.Configure(rctx, m.setup())
	}
	if err != nil {
		m.log.WarnContext(ctx, "the sandbox does not know its new address", "err", err)
	}
	return ctx.Err()
}

// lost deals with a copy that is gone before it ran: if the move was made, the sandbox is.
func (m *machine) lost(ctx context.Context) (here bool, err error) {
	sb, err := m.ask(ctx)
	if err != nil || sb == nil {
		m.releaseName(ctx)
		return false, err
	}
	if _, err := m.writeArrival(ctx, sb, lifecycle.Arrive{Observed: &siroccov1.Observed{Epoch: m.epoch}}); err != nil {
		return false, err
	}
	m.mu.Lock()
	m.entry.Arriving, m.entry.Running = false, true
	m.mu.Unlock()
	return true, nil
}

// claimName takes the sandbox's name in this region, if it comes from another one.
func (m *machine) claimName(ctx context.Context) error {
	sb := m.current()
	if sb.GetMove().GetFromRegion() == m.agent.env.Region {
		return nil
	}
	return m.agent.store.ClaimName(ctx, m.tenant, sb.GetSpec().GetName(), m.id)
}

// releaseName gives the name back: the sandbox did not come.
func (m *machine) releaseName(ctx context.Context) {
	sb := m.current()
	if sb.GetMove().GetFromRegion() == m.agent.env.Region {
		return
	}
	rctx, cancel := context.WithTimeout(ctx, readLimit)
	defer cancel()
	m.agent.store.ReleaseName(rctx, m.tenant, sb.GetSpec().GetName(), m.id)
}
