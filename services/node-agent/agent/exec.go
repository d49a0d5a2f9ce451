package agent

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/sirocco-run/sirocco/pkg/admission"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/guest"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// execService implements siroccov1connect.ExecServiceHandler.
type execService struct{ *services }

// maxExecWait bounds one Wait; the caller asks again.
const maxExecWait = time.Hour

func (s execService) Start(ctx context.Context, req *connect.Request[siroccov1.StartExecRequest]) (*connect.Response[siroccov1.Exec], error) {
	r := req.Msg
	m, err := s.open(req.Header(), r.GetSandboxId())
	if err != nil {
		return nil, err
	}
	x, err := m.startExec(ctx, r)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(execMessage(&x)), nil
}

// startExec starts a process, unless there is one of that id.
func (m *machine) startExec(ctx context.Context, r *siroccov1.StartExecRequest) (guest.Exec, error) {
	start, err := startRequest(r)
	if err != nil {
		return guest.Exec{}, err
	}
	// The folder that the sandbox was made with is as binding as the exec's own;
	// the image's is a default, which the supervisor knows.
	start.Workdir = cmp.Or(start.Workdir, m.current().GetSpec().GetWorkdir())
	return call(ctx, m, func(c *guest.Client) (guest.Exec, error) { return c.Start(ctx, start) })
}

// startFirst does what the start of an attach asks for, and completes the attach.
func (s execService) startFirst(ctx context.Context, header http.Header, r *siroccov1.AttachExecRequest) error {
	start := r.GetStart()
	r.SandboxId = cmp.Or(r.GetSandboxId(), start.GetSandboxId())
	r.ExecId = cmp.Or(r.GetExecId(), start.GetExecId())
	switch {
	case start.GetExecId() == "":
		return fault.Invalid("start.exec_id", "there is none")
	case r.GetExecId() != start.GetExecId():
		return fault.Invalid("start.exec_id", "it is not the exec_id of the attach")
	case start.GetSandboxId() != "" && start.GetSandboxId() != r.GetSandboxId():
		return fault.Invalid("start.sandbox_id", "it is not the sandbox_id of the attach")
	}
	m, err := s.open(header, r.GetSandboxId())
	if err != nil {
		return err
	}
	_, err = m.startExec(ctx, start)
	return err
}

// startRequest checks a request and fills in its defaults.
func startRequest(r *siroccov1.StartExecRequest) (guest.StartRequest, error) {
	start := guest.StartRequest{ID: r.GetExecId(), Command: r.GetCommand(), Workdir: r.GetWorkdir(), User: r.GetUser(), Stdin: r.GetStdin()}
	if start.ID == "" {
		start.ID = uuid.NewString()
	}
	if len(start.Command) == 0 {
		return start, fault.Invalid("command", "there is none")
	}
	if start.ID == guest.MainExec {
		return start, fault.Invalid("exec_id", "%q is the sandbox's own command", guest.MainExec)
	}
	for _, err := range []error{
		admission.CheckExecID("exec_id", start.ID), admission.CheckCommand("command", r.GetCommand()),
		admission.CheckEnv("env", r.GetEnv()), admission.CheckPath("workdir", r.GetWorkdir(), true),
		admission.CheckUser("user", r.GetUser()),
	} {
		if err != nil {
			return start, err
		}
	}
	start.Env = mergeEnv(nil, r.GetEnv())
	if t := r.GetTimeout(); t != nil {
		if !t.IsValid() || t.AsDuration() < 0 {
			return start, fault.Invalid("timeout", "want a time of zero or more")
		}
		start.Timeout = t.AsDuration()
	}
	if r.GetTty() != nil {
		size, err := ttySize("tty", r.GetTty())
		if err != nil {
			return start, err
		}
		start.TTY = &size
	}
	return start, nil
}

func ttySize(field string, s *siroccov1.TerminalSize) (guest.Size, error) {
	if s.GetRows() > 65535 || s.GetCols() > 65535 {
		return guest.Size{}, fault.Invalid(field, "rows and cols must be below 65536")
	}
	return guest.Size{Rows: uint16(s.GetRows()), Cols: uint16(s.GetCols())}, nil //nolint:gosec // checked above
}

func (s execService) Stdin(ctx context.Context, req *connect.Request[siroccov1.ExecStdinRequest]) (*connect.Response[siroccov1.ExecStdinResponse], error) {
	r := req.Msg
	m, err := s.open(req.Header(), r.GetSandboxId())
	if err != nil {
		return nil, err
	}
	if r.GetOffset() < 0 {
		return nil, fault.Invalid("offset", "want zero or more")
	}
	m.active.touch(siroccov1.Activity_ACTIVITY_EXEC, time.Now())
	n, err := call(ctx, m, func(c *guest.Client) (int64, error) {
		return c.Stdin(ctx, r.GetExecId(), r.GetOffset(), r.GetData(), r.GetClose())
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&siroccov1.ExecStdinResponse{Offset: n}), nil
}

func (s execService) Resize(ctx context.Context, req *connect.Request[siroccov1.ResizeExecRequest]) (*connect.Response[siroccov1.ResizeExecResponse], error) {
	m, err := s.open(req.Header(), req.Msg.GetSandboxId())
	if err != nil {
		return nil, err
	}
	size, err := ttySize("size", req.Msg.GetSize())
	if err != nil {
		return nil, err
	}
	_, err = call(ctx, m, func(c *guest.Client) (struct{}, error) {
		return struct{}{}, c.Resize(ctx, req.Msg.GetExecId(), size)
	})
	return connect.NewResponse(&siroccov1.ResizeExecResponse{}), err
}

func (s execService) Signal(ctx context.Context, req *connect.Request[siroccov1.SignalExecRequest]) (*connect.Response[siroccov1.SignalExecResponse], error) {
	m, err := s.open(req.Header(), req.Msg.GetSandboxId())
	if err != nil {
		return nil, err
	}
	client, err := m.guest(ctx)
	if err == nil {
		err = client.Signal(ctx, req.Msg.GetExecId(), req.Msg.GetSignal())
	}
	return connect.NewResponse(&siroccov1.SignalExecResponse{}), signalFault(req.Msg.GetExecId(), m.guestFault(ctx, err))
}

// signalFault names the field of a refused signal: of the two that the supervisor
// is given, the id can only be at fault where it is none.
func signalFault(execID string, err error) error {
	var g *guest.Error
	if errors.As(err, &g) && g.Code == guest.CodeInvalid && admission.CheckExecID("exec_id", execID) == nil {
		return fault.Invalid("signal", "%s", g.Text)
	}
	return err
}

func (s execService) Wait(ctx context.Context, req *connect.Request[siroccov1.WaitExecRequest]) (*connect.Response[siroccov1.Exec], error) {
	r := req.Msg
	claims, err := s.admit(req.Header(), r.GetSandboxId())
	if err != nil {
		return nil, err
	}
	timeout := r.GetTimeout().AsDuration()
	if timeout < 0 || timeout > maxExecWait {
		return nil, fault.Invalid("timeout", "want 0 to %v", maxExecWait)
	}
	m := s.agent.find(r.GetSandboxId())
	if m == nil || m.tenant != claims.Tenant {
		return s.waitArchived(claims.Tenant, r)
	}
	x, err := call(ctx, m, func(c *guest.Client) (guest.Exec, error) { return c.Wait(ctx, r.GetExecId(), timeout) })
	if err == nil {
		return connect.NewResponse(execMessage(&x)), nil
	}
	if ctx.Err() != nil || !m.over() {
		return nil, err
	}
	// What was kept of it appears when the sandbox is gone.
	select {
	case <-m.gone:
		return s.waitArchived(claims.Tenant, r)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (s execService) waitArchived(tenant string, r *siroccov1.WaitExecRequest) (*connect.Response[siroccov1.Exec], error) {
	head, _, err := s.agent.archives.read(r.GetSandboxId())
	if err != nil || head.Tenant != tenant || r.GetExecId() != guest.MainExec {
		return nil, errEnded(r.GetSandboxId())
	}
	return connect.NewResponse(execMessage(head.Exec)), nil
}

func (s execService) List(ctx context.Context, req *connect.Request[siroccov1.ListExecsRequest]) (*connect.Response[siroccov1.ListExecsResponse], error) {
	m, err := s.open(req.Header(), req.Msg.GetSandboxId())
	if err != nil {
		return nil, err
	}
	list, err := call(ctx, m, func(c *guest.Client) ([]guest.Exec, error) { return c.ListExecs(ctx) })
	if err != nil {
		return nil, err
	}
	resp := &siroccov1.ListExecsResponse{}
	for i := range list {
		resp.Execs = append(resp.Execs, execMessage(&list[i]))
	}
	return connect.NewResponse(resp), nil
}

func execMessage(x *guest.Exec) *siroccov1.Exec {
	return &siroccov1.Exec{
		Id: x.ID, Command: x.Command, Pid: x.PID, StartedAt: timestamppb.New(x.StartedAt), End: endMessage(x.End),
		StdoutBytes: x.Stdout, StderrBytes: x.Stderr, Tty: x.TTY,
	}
}

func endMessage(e *guest.End) *siroccov1.ExecEnd {
	if e == nil {
		return nil
	}
	return &siroccov1.ExecEnd{ExitCode: e.Code, Signal: e.Signal, TimedOut: e.TimedOut, At: timestamppb.New(e.At), LostBytes: e.LostBytes}
}
