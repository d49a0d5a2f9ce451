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
	"github.com/sirocco-run/sirocco/pkg/move"
	"github.com/sirocco-run/sirocco/pkg/transfer"
	nodev1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/node/v1"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

// incoming is the stream on which a sandbox comes.
type incoming struct {
	in *transfer.Target
	// discard removes the checkpoint that came, which is of no use once it is restored.
	// That takes its time, in which the sandbox could run already.
	discard func()
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
	return func(conn net.Conn) {
		defer func() { _ = conn.Close() }()
		m := newMachine(a, sb, &entry{}, sb.GetMove().GetEpoch())
		m.incoming = &incoming{transfer.NewTarget(conn, transfer.Options{}), func() {}, make(chan struct{})}
		over := m.incoming.over
		a.launch(mctx, m, false)
		<-over
	}, nil
}

// arriving is how far a sandbox has come that moves here.
type arriving string

const (
	notArriving arriving = ""
	// waiting: the copy is whole, and may not run before the record says that the move
	// was made.
	waiting arriving = "waiting"
	// landing: the copy is the sandbox, and its arrival is yet to be written. Record is
	// the one that was committed.
	landing arriving = "landing"
)

// arrive brings the sandbox here. here says whether it is here from now on; if not,
// whatever there is of it is to be removed. The error is that of ctx: the next agent goes
// on then.
func (m *machine) arrive(ctx context.Context) (here bool, err error) {
	ctx, span := m.agent.tracer.Start(ctx, "agent.arrive")
	defer span.End()
	var sb *siroccov1.Sandbox
	var told time.Time
	if m.incoming != nil {
		defer func() {
			m.incoming.discard()
			m.incoming.in.Close()
			close(m.incoming.over)
		}()
		deadline := m.current().GetMove().GetDeadline().AsTime()
		mctx, cancel := context.WithDeadline(ctx, deadline)
		defer cancel()
		if err := m.takeIn(mctx, m.incoming.in); err != nil {
			_ = m.incoming.in.Fail(moveFault("take the sandbox in", err))
			m.releaseName(ctx)
			m.log.WarnContext(ctx, "a sandbox did not arrive", "from", m.current().GetMove().GetFromNode(), "err", err)
			return false, ctx.Err()
		}
		sb, err = m.incoming.in.AwaitProceed(mctx)
		told = time.Now()
		if off := new(transfer.GaveUp); errors.As(err, &off) {
			m.releaseName(ctx)
			m.log.InfoContext(ctx, "a move was called off", "err", err)
			return false, ctx.Err()
		}
	}
	if m.entry.Arriving == landing {
		sb = m.current()
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
	if to := sb.GetMove(); sb.GetId() != m.id || sb.GetTenant() != m.tenant || to.GetEpoch() != m.epoch || to.GetNode() != m.agent.name {
		return fault.New(fault.InvalidArgument, "the parcel is that of another sandbox")
	}
	m.mu.Lock()
	m.record = sb
	m.mu.Unlock()
	if err := m.announce(ctx); err != nil {
		return err
	}
	dir, remove, err := m.agent.moves.folder(m.id)
	if err != nil {
		return err
	}
	m.incoming.discard = remove
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
	m.mu.Lock()
	m.cell, m.entry.Cell, m.entry.Arriving = b, b.entry(), waiting
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

// ask asks the record where the sandbox comes from what becomes of the copy, until it
// knows: nil if it will never run. The error is that of ctx. There is no other limit: a
// copy that was not told is never let go because of time alone.
func (m *machine) ask(ctx context.Context) (*siroccov1.Sandbox, error) {
	t := move.Target{Region: m.agent.env.Region, Node: m.agent.name, Epoch: m.epoch}
	from := m.current().GetMove().GetFromRegion()
	for {
		var err error
		t.Record, err = m.askOnce(ctx, from)
		t.Forgotten = fault.CodeOf(err) == fault.NotFound
		if err == nil || t.Forgotten {
			switch t.Next() {
			case move.Release:
				return t.Record, nil
			case move.Discard:
				return nil, nil
			case move.Unknown:
			}
		}
		select {
		case <-time.After(askPause):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (m *machine) askOnce(ctx context.Context, region string) (*siroccov1.Sandbox, error) {
	ctx, cancel := context.WithTimeout(ctx, readLimit)
	defer cancel()
	records, err := m.agent.recordsOf(ctx, region)
	if err != nil {
		return nil, err
	}
	return records.Get(ctx, m.tenant, m.id)
}

// settle makes the copy the sandbox: it notes so, lets it run, and has the arrival
// written. sb is the record as it was committed; told is when this node was told, zero if
// it had to ask. The error is that of ctx.
func (m *machine) settle(ctx context.Context, sb *siroccov1.Sandbox, told time.Time) error {
	m.mu.Lock()
	m.record, m.entry.Arriving, m.entry.Running = sb, landing, true
	m.mu.Unlock()
	// If that can't be noted, the next agent asks the record, which says the same.
	m.save()
	if m.cell == nil {
		return m.land(ctx) // the copy is gone, and so is the sandbox: run says how
	}
	m.resume(ctx)
	pause := sb.GetMove().GetPause().AsDuration()
	if told.IsZero() {
		pause = time.Since(sb.GetMove().GetBegun().AsTime())
	} else {
		pause += time.Since(told)
	}
	m.mu.Lock()
	m.record = proto.CloneOf(sb)
	m.record.Move.Pause = durationpb.New(pause)
	m.mu.Unlock()
	m.agent.metrics.arrived(ctx, pause)
	m.untilEnd(ctx, func(ctx context.Context) bool { return m.landOnce(ctx) == nil })
	if m.incoming != nil && m.entry.Arriving == notArriving {
		_ = m.incoming.in.Arrived(ctx, m.current())
	}
	now := time.Now()
	m.active.touch(siroccov1.Activity_ACTIVITY_EXEC, now)
	m.active.touch(siroccov1.Activity_ACTIVITY_TUNNEL, now)
	m.log.InfoContext(ctx, "sandbox has arrived", "from", sb.GetMove().GetFromNode(), "region", sb.GetMove().GetFromRegion(), "cell", m.cell.id, "pause", pause)
	return m.readdress(ctx)
}

// landOnce tries to write that the sandbox is here.
func (m *machine) landOnce(ctx context.Context) error {
	m.mu.Lock()
	sb := m.record
	m.mu.Unlock()
	observed := proto.CloneOf(sb.GetObserved())
	if observed == nil {
		observed = &siroccov1.Observed{}
	}
	observed.Epoch, observed.Warm = m.epoch, false
	if m.cell != nil {
		observed.Address = m.cell.slot.Address.String()
	}
	arrive := lifecycle.Arrive{Observed: observed, Pause: sb.GetMove().GetPause().AsDuration(), Bytes: sb.GetMove().GetBytes()}
	written, err := m.agent.store.Land(ctx, sb, m.agent.env.Region, arrive)
	if err != nil {
		m.log.WarnContext(ctx, "the arrival can't be written; it is tried again", "err", err)
		return err
	}
	m.mu.Lock()
	// Revisions are those of this region's bucket from here on.
	m.record, m.entry.Arriving = written, notArriving
	m.mu.Unlock()
	m.save()
	return nil
}

// land is landOnce for as long as it takes. The error is that of ctx.
func (m *machine) land(ctx context.Context) error {
	for m.entry.Arriving == landing {
		if err := bus.Await(ctx, m.agent.env.NC); err != nil {
			return err
		}
		if m.landOnce(ctx) == nil {
			break
		}
		select {
		case <-time.After(askPause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
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

// announce writes the sandbox's record into this region, if it comes from another one,
// and takes its name here.
func (m *machine) announce(ctx context.Context) error {
	sb := m.current()
	if sb.GetMove().GetFromRegion() == m.agent.env.Region {
		return nil
	}
	if err := m.agent.store.ClaimName(ctx, m.tenant, sb.GetSpec().GetName(), m.id); err != nil {
		return err
	}
	return m.agent.store.Announce(ctx, sb, m.agent.env.Region)
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
