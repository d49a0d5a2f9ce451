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
	"github.com/sirocco-run/sirocco/pkg/network"
	"github.com/sirocco-run/sirocco/pkg/runtime"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/proto"
)

// limitOf names the limit that a cause of end has hit.
func limitOf(sb *siroccov1.Sandbox, cause siroccov1.Cause) string {
	spec := sb.GetSpec()
	switch cause {
	case siroccov1.Cause_CAUSE_MAX_LIFETIME:
		return fmt.Sprintf("max_lifetime=%s", spec.GetMaxLifetime().AsDuration())
	case siroccov1.Cause_CAUSE_IDLE:
		return fmt.Sprintf("idle.timeout=%s", spec.GetIdle().GetTimeout().AsDuration())
	case siroccov1.Cause_CAUSE_OOM:
		return fmt.Sprintf("memory_limit_bytes=%d", spec.GetResources().GetMemoryLimitBytes())
	case siroccov1.Cause_CAUSE_PROBE_FAILED:
		return fmt.Sprintf("readiness.timeout=%s", spec.GetReadiness().GetTimeout().AsDuration())
	}
	return ""
}

// mainEnd is how a sandbox ends whose command has ended. A process that the
// kernel killed at the memory limit did not just exit.
func (m *machine) mainEnd(ctx context.Context, x *guest.Exec) *siroccov1.End {
	end := &siroccov1.End{
		Cause: siroccov1.Cause_CAUSE_EXITED, ExitCode: proto.Int32(x.End.Code), Signal: x.End.Signal,
		Message: fmt.Sprintf("its command exited with %d", x.End.Code),
	}
	if x.End.Signal == "" {
		return end
	}
	end.Message = "its command was ended by " + x.End.Signal
	if stats, err := m.cell.sandbox.Stats(ctx); err == nil && stats.OOMKills > 0 {
		m.setOOM(end)
	}
	return end
}

// exitEnd is how a sandbox ends whose machine has ended.
func (m *machine) exitEnd(x runtime.Exit) *siroccov1.End {
	switch {
	case x.OOM:
		end := &siroccov1.End{}
		m.setOOM(end)
		return end
	case x.Err != nil:
		return m.agent.internal(m.log, "the sandbox broke", x.Err)
	}
	// The supervisor ended: the tenant's own root can do that.
	end := &siroccov1.End{Cause: siroccov1.Cause_CAUSE_EXITED, Signal: x.Signal, ExitCode: proto.Int32(int32(x.Code))} //nolint:gosec // exit codes are small
	end.Message = fmt.Sprintf("its process 1 exited with %d", x.Code)
	if x.Signal != "" {
		end.Message = "its process 1 was ended by " + x.Signal
	}
	return end
}

func (m *machine) setOOM(end *siroccov1.End) {
	sb := m.current()
	end.Cause = siroccov1.Cause_CAUSE_OOM
	end.Limit = limitOf(sb, end.Cause)
	end.Message = fmt.Sprintf("it reached its memory limit of %d MiB and the kernel killed it", sb.GetSpec().GetResources().GetMemoryLimitBytes()>>20)
	end.ExitCode, end.Signal = proto.Int32(137), "SIGKILL"
}

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
		var ended *endedError
		if errors.As(err, &ended) && ended.exit.OOM {
			return m.exitEnd(ended.exit)
		}
		if m.cell != nil {
			known := time.NewTimer(time.Second)
			defer known.Stop()
			select {
			case <-m.cell.sandbox.Done():
				if m.cell.sandbox.Exit().OOM {
					return m.exitEnd(m.cell.sandbox.Exit())
				}
			case <-known.C:
			case <-ctx.Done():
			}
		}
		m.agent.startFailed()
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
