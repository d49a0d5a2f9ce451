package agent

import (
	"context"
	"time"

	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/record"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/proto"
)

// finish destroys what there is of the sandbox and writes how it ended; a nil
// end is not written, because the record belongs to somebody else by now. The
// end is in the journal first, so that a crash between the two loses neither.
func (m *machine) finish(ctx context.Context, end *siroccov1.End) {
	began := time.Now()
	if end != nil && m.entry.End == nil {
		if raw, err := proto.Marshal(end); err == nil {
			m.mu.Lock()
			m.entry.End = raw
			m.mu.Unlock()
			m.save()
		}
	}
	if err := m.takeDown(ctx, end); err != nil {
		if ctx.Err() != nil {
			return
		}
		m.log.Error("the sandbox was not removed whole; the sweep comes again", "err", err)
	}
	if end != nil && m.land(ctx) != nil {
		return
	}
	var err error
	if end, err = m.ending(ctx, end); err != nil {
		return
	}
	if end != nil {
		if _, err := m.write(ctx, lifecycle.Finish{Epoch: m.epoch, End: end}); err != nil {
			if ctx.Err() != nil {
				return
			}
			m.log.Error("the end could not be written", "err", err)
		}
		m.log.InfoContext(ctx, "sandbox ended", "cause", record.CauseName(end.GetCause()), "message", end.GetMessage(), "error_id", end.GetErrorId(), "took", time.Since(began))
		m.agent.ended(ctx, end.GetCause())
	} else {
		m.log.InfoContext(ctx, "sandbox removed: its record has moved on")
	}
	if m.watched.Load() != nil {
		// Nothing of it is here any more, however long its guard can't be told.
		m.agent.forget(m)
		if m.forsake(ctx) != nil {
			return
		}
	}
	if err := m.agent.journal.remove(m.id); err != nil {
		m.log.Error("journal", "err", err)
	}
	m.agent.forget(m)
}

// endTurn is how long a sandbox that is taken down is waited for by others: those whose
// supervisors answer nothing, which their tenants can bring about, must not keep the others
// alive.
const endTurn = 500 * time.Millisecond

// takeDown keeps the command's output and frees everything. Of many that end at once
// the first are then gone early, and the last no later; and the kernel, which does most of
// the work, leaves some of the processors to the bus, and so to those who wait.
func (m *machine) takeDown(ctx context.Context, end *siroccov1.End) error {
	// To end it before would wake what is about to be destroyed.
	defer func() { m.unfollow() }()
	defer m.agent.cells.ends.enter(ctx)()
	m.archive(ctx, end)
	return m.destroy(ctx)
}

// destroy frees everything that the sandbox holds on this machine. It may be
// called again.
func (m *machine) destroy(ctx context.Context) error {
	defer m.agent.ledger.release(m.id)
	if m.cell == nil {
		return nil
	}
	return m.agent.cells.destroy(ctx, m.cell)
}
