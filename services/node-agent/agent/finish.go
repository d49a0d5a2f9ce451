package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/google/uuid"
	"github.com/sirocco-run/sirocco/pkg/guest"
	"github.com/sirocco-run/sirocco/pkg/image"
	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/network"
	"github.com/sirocco-run/sirocco/pkg/record"
	"github.com/sirocco-run/sirocco/pkg/runtime"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/proto"
)

// startFailure turns what kept a sandbox from starting into its end.
func (m *machine) startFailure(ctx context.Context, err error) *siroccov1.End {
	end := &siroccov1.End{Message: err.Error()}
	var probe *probeError
	var ended *mainEndedError
	var guestErr *guest.Error
	switch {
	case errors.As(err, &probe):
		end.Cause = siroccov1.Cause_CAUSE_PROBE_FAILED
		end.Limit = limitOf(m.current(), end.Cause)
	case errors.As(err, &ended):
		return m.mainEnd(ctx, ended.exec)
	case errors.Is(err, image.ErrNoSpace):
		end.Cause, end.Limit = siroccov1.Cause_CAUSE_NO_CAPACITY, "disk"
	case errors.Is(err, image.ErrNotFound), errors.Is(err, image.ErrInvalid), errors.Is(err, image.ErrDenied),
		errors.Is(err, image.ErrUnavailable), errors.Is(err, image.ErrTooLarge), errors.Is(err, runtime.ErrRootfs):
		end.Cause = siroccov1.Cause_CAUSE_IMAGE_ERROR
	case errors.Is(err, network.ErrPolicy):
		end.Cause = siroccov1.Cause_CAUSE_START_ERROR
	case errors.As(err, &guestErr) && guestErr.Code != guest.CodeInternal:
		end.Cause = siroccov1.Cause_CAUSE_START_ERROR
		end.ExitCode = proto.Int32(126)
		if guestErr.Code == guest.CodeCommandNotFound {
			end.ExitCode = proto.Int32(127)
		}
	default:
		// A sandbox that broke while starting may have been too small. What was said
		// to it fails at once, its end is known up to a second later.
		if m.sandbox != nil {
			known := time.NewTimer(time.Second)
			defer known.Stop()
			select {
			case <-m.sandbox.Done():
				if m.sandbox.Exit().OOM {
					return m.exitEnd(m.sandbox.Exit())
				}
			case <-known.C:
			case <-ctx.Done():
			}
		}
		return m.agent.internal(m.log, "the sandbox did not start", err)
	}
	return end
}

// internal is the end for a fault of the platform: what happened is in the log,
// under an id that the record carries.
func (a *Agent) internal(log *slog.Logger, what string, err error) *siroccov1.End {
	id := uuid.NewString()
	log.Error(what, "err", err, "error_id", id)
	return &siroccov1.End{Cause: siroccov1.Cause_CAUSE_INTERNAL, Message: what + "; the error id finds the reason in the log", ErrorId: id}
}

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
	m.archive(ctx, end)
	if err := m.destroy(ctx); err != nil {
		if ctx.Err() != nil {
			return
		}
		m.log.Error("the sandbox was not removed whole; the sweep comes again", "err", err)
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
	if err := m.agent.journal.remove(m.id); err != nil {
		m.log.Error("journal", "err", err)
	}
	m.agent.forget(m)
}

// destroy frees everything that the sandbox holds on this machine. It may be
// called again.
func (m *machine) destroy(ctx context.Context) error {
	// A cancelled agent still ends what it has begun to end.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	m.mu.Lock()
	sandbox, client, free := m.sandbox, m.client, m.free
	m.client, m.free = nil, nil
	m.mu.Unlock()
	var errs []error
	if sandbox != nil {
		if err := sandbox.Destroy(ctx); err != nil && !errors.Is(err, runtime.ErrNotFound) {
			errs = append(errs, fmt.Errorf("destroy sandbox: %w", err))
		}
	}
	if client != nil {
		_ = client.Close()
	}
	if err := m.agent.parts.slots.Release(ctx, m.id); err != nil {
		errs = append(errs, err)
	}
	if free != nil {
		free()
	}
	m.agent.ledger.release(m.id)
	return errors.Join(errs...)
}
