package scheduler

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/admission"
	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/sandboxid"
	"github.com/sirocco-run/sirocco/pkg/subject"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/proto"
)

// retryDelay is when a command comes again that failed for a reason that may
// pass.
const retryDelay = 500 * time.Millisecond

// command is one message of the queue.
type command struct {
	tenant, verb, key string
	header            nats.Header
	body              []byte
	// at is when the server stored it: the same at each delivery.
	at time.Time
	// again says that it was delivered before, and may have been carried out.
	again bool
}

// handle carries out one command and settles it: acknowledged when done,
// terminated into the dead letters when it can never work, given back
// otherwise.
func (s *Scheduler) handle(ctx context.Context, msg jetstream.Msg) {
	defer s.work.end(msg)
	ctx = bus.Extract(ctx, msg.Headers())
	tenant, verb, key, err := subject.ParseCommand(msg.Subject())
	if err != nil {
		s.reject(ctx, msg, command{tenant: "unknown", verb: "unknown", key: "unknown"}, fault.New(fault.InvalidArgument, "%w", err))
		return
	}
	cmd := command{tenant: tenant, verb: verb, key: key, header: msg.Headers(), body: msg.Data(), at: time.Now()}
	if meta, err := msg.Metadata(); err == nil {
		cmd.at, cmd.again = meta.Timestamp, meta.NumDelivered > 1
	}
	// One that was sent after its sandbox counts from when it was first stored, unless
	// that is nothing that can be.
	if at, err := time.Parse(time.RFC3339Nano, cmd.header.Get(subject.HeaderStored)); err == nil && at.Before(cmd.at) {
		cmd.at = at
	}
	ctx, span := s.tracer.Start(ctx, "scheduler."+verb, trace.WithSpanKind(trace.SpanKindConsumer),
		trace.WithAttributes(attribute.String("sirocco.tenant", tenant)))
	defer span.End()
	err = s.carryOut(ctx, cmd)
	if gone := new(goneError); errors.As(err, &gone) {
		err = s.sendAfter(ctx, msg, cmd, gone)
	}
	if err != nil {
		span.SetStatus(codes.Error, err.Error())
	}
	switch {
	case err == nil:
		_ = msg.Ack() // an ack that is lost brings the command again, which changes nothing
	case ctx.Err() != nil:
		_ = msg.Nak()
	case permanent(err):
		s.reject(ctx, msg, cmd, fault.From(err))
	default:
		s.log.WarnContext(ctx, "command failed; it comes again", "verb", verb, "tenant", tenant, "key", key, "err", err)
		_ = msg.NakWithDelay(retryDelay)
	}
}

func (s *Scheduler) carryOut(ctx context.Context, cmd command) error {
	switch cmd.verb {
	case subject.VerbCreate:
		return s.create(ctx, cmd)
	case subject.VerbTerminate:
		return s.terminate(ctx, cmd)
	case subject.VerbExtend:
		return s.extend(ctx, cmd)
	case subject.VerbSetTags:
		return s.setTags(ctx, cmd)
	case subject.VerbOpenTunnel:
		return s.openTunnel(ctx, cmd)
	case subject.VerbCloseTunnel:
		return s.closeTunnel(ctx, cmd)
	case subject.VerbMigrate:
		return s.migrate(ctx, cmd)
	}
	return fault.Invalid("verb", "%q is not a command", cmd.verb)
}

// permanent says whether trying again is of no use.
func permanent(err error) bool {
	switch fault.CodeOf(err) {
	case fault.InvalidArgument, fault.NotFound, fault.AlreadyExists, fault.FailedPrecondition, fault.PermissionDenied, fault.Quota:
		return true
	}
	return errors.Is(err, lifecycle.ErrEnded) || errors.As(err, new(finalError))
}

// finalError is what a command came to that is not tried again, whatever its code: who
// sent it decides whether to.
type finalError struct{ error }

func (e finalError) Unwrap() error { return e.error }

// reject puts a command that can never work into the dead letters, from which
// the server makes an event for the tenant; then it leaves the queue.
func (s *Scheduler) reject(ctx context.Context, msg jetstream.Msg, cmd command, f *fault.Fault) {
	if errors.Is(f, lifecycle.ErrEnded) {
		f = fault.New(fault.FailedPrecondition, "the sandbox has ended")
	}
	s.log.InfoContext(ctx, "command refused", "verb", cmd.verb, "tenant", cmd.tenant, "key", cmd.key, "code", string(f.Code), "reason", f.Message)
	body, err := proto.Marshal(&siroccov1.RejectedCommand{
		Tenant: cmd.tenant, Key: cmd.key, Verb: cmd.verb, Code: string(f.Code), Message: f.Message, Field: f.Field,
		Scope: f.Scope, RetryAfter: f.Detail().GetRetryAfter(),
	})
	if err != nil {
		_ = msg.NakWithDelay(retryDelay)
		return
	}
	letter := nats.NewMsg(subject.DeadLetter(subject.StreamCommands, subject.ConsumerScheduler, cmd.tenant, cmd.key))
	letter.Data = body
	letter.Header.Set(subject.HeaderContentType, subject.ContentProtobuf)
	letter.Header.Set(subject.HeaderEvent, "rejected")
	letter.Header.Set(subject.HeaderFact, rejectedFact(cmd, f))
	if meta, err := msg.Metadata(); err == nil {
		letter.Header.Set(nats.MsgIdHdr, subject.StreamCommands+"/"+strconv.FormatUint(meta.Sequence.Stream, 10))
	}
	bus.Inject(ctx, letter.Header)
	if _, err := s.env.JS.PublishMsg(ctx, letter); err != nil {
		s.log.WarnContext(ctx, "dead letter not stored; the command comes again", "err", err)
		_ = msg.NakWithDelay(retryDelay)
		return
	}
	_ = msg.Term()
}

// rejectedFact is the short form of a refusal, for a header.
func rejectedFact(cmd command, f *fault.Fault) string {
	text, err := json.Marshal(struct {
		Verb    string `json:"verb"`
		Key     string `json:"key"`
		Code    string `json:"code"`
		Message string `json:"message"`
	}{cmd.verb, cmd.key, string(f.Code), f.Message})
	if err != nil {
		return "{}" // cannot be: plain values only
	}
	return string(text)
}

// find returns the record that a command names, by id or by name. Error: *goneError
// for a sandbox that has moved to another region.
func (s *Scheduler) find(ctx context.Context, tenant, id string) (*siroccov1.Sandbox, error) {
	if !sandboxid.Valid(id) {
		var err error
		if id, err = s.store.ByName(ctx, tenant, id); err != nil {
			return nil, err
		}
	}
	sb, err := s.store.Get(ctx, tenant, id)
	if err != nil {
		return nil, err
	}
	return sb, s.gone(sb)
}

func (s *Scheduler) terminate(ctx context.Context, cmd command) error {
	req := &siroccov1.TerminateSandboxRequest{}
	if err := bus.DecodeStrict(cmd.header, cmd.body, req); err != nil {
		return err
	}
	if err := admission.CheckReason("reason", req.GetReason()); err != nil {
		return err
	}
	sb, err := s.find(ctx, cmd.tenant, req.GetId())
	if err != nil {
		return err
	}
	reason := req.GetReason()
	if reason == "" {
		reason = "terminated by its user"
	}
	return s.change(ctx, sb, lifecycle.Stop{Cause: siroccov1.Cause_CAUSE_USER, Reason: reason})
}

func (s *Scheduler) extend(ctx context.Context, cmd command) error {
	req := &siroccov1.ExtendSandboxRequest{}
	if err := bus.DecodeStrict(cmd.header, cmd.body, req); err != nil {
		return err
	}
	if !req.GetBy().IsValid() || req.GetBy().AsDuration() <= 0 {
		return fault.Invalid("by", "want a time above zero")
	}
	sb, err := s.find(ctx, cmd.tenant, req.GetId())
	if err != nil {
		return err
	}
	// Counted from when the command was stored, so that a second delivery
	// changes nothing.
	deadline := cmd.at.Add(req.GetBy().AsDuration())
	if latest := lifecycle.Entered(sb, siroccov1.State_STATE_ACCEPTED).Add(s.cfg.Limits.MaxLifetime); deadline.After(latest) {
		return fault.Invalid("by", "the sandbox may live until %s at most", latest.UTC().Format(time.RFC3339))
	}
	return s.change(ctx, sb, lifecycle.Extend{Deadline: deadline})
}

func (s *Scheduler) setTags(ctx context.Context, cmd command) error {
	req := &siroccov1.SetTagsRequest{}
	if err := bus.DecodeStrict(cmd.header, cmd.body, req); err != nil {
		return err
	}
	if err := admission.CheckTags("tags", req.GetTags()); err != nil {
		return err
	}
	sb, err := s.find(ctx, cmd.tenant, req.GetId())
	if err != nil {
		return err
	}
	return s.change(ctx, sb, lifecycle.SetTags{Tags: req.GetTags()})
}

func (s *Scheduler) openTunnel(ctx context.Context, cmd command) error {
	req := &siroccov1.OpenTunnelRequest{}
	if err := bus.DecodeStrict(cmd.header, cmd.body, req); err != nil {
		return err
	}
	if err := admission.CheckPort("port", req.GetPort()); err != nil {
		return err
	}
	for {
		sb, err := s.find(ctx, cmd.tenant, req.GetSandboxId())
		if err != nil {
			return err
		}
		if lifecycle.Ended(sb.GetState()) {
			return lifecycle.ErrEnded
		}
		ports := []*siroccov1.Port{req.GetPort()}
		tunnels, err := s.store.Tunnels(ctx, cmd.tenant, sb.GetId(), s.env.Region, s.env.Front, ports, sb.GetTunnels())
		if err != nil {
			return err
		}
		err = s.change(ctx, sb, lifecycle.OpenTunnel{Port: req.GetPort(), Tunnel: tunnels[0]})
		switch {
		case errors.Is(err, lifecycle.ErrPortShared):
			// Another command for this sandbox got there first; the record that
			// is read now shows its port.
			continue
		case errors.Is(err, lifecycle.ErrTooManyPorts):
			return fault.Invalid("port", "the sandbox publishes %d ports already; no more are allowed", lifecycle.MaxPorts)
		}
		return err
	}
}

func (s *Scheduler) closeTunnel(ctx context.Context, cmd command) error {
	req := &siroccov1.CloseTunnelRequest{}
	if err := bus.DecodeStrict(cmd.header, cmd.body, req); err != nil {
		return err
	}
	sb, err := s.find(ctx, cmd.tenant, req.GetSandboxId())
	if err != nil {
		return err
	}
	open := slices.ContainsFunc(sb.GetSpec().GetPorts(), func(p *siroccov1.Port) bool { return p.GetPort() == req.GetPort() })
	if !open && !cmd.again && !lifecycle.Ended(sb.GetState()) {
		return fault.New(fault.NotFound, "sandbox %s does not publish port %d", sb.GetId(), req.GetPort())
	}
	return s.change(ctx, sb, lifecycle.CloseTunnel{Port: req.GetPort()})
}

// change takes a step on a record and tells its node.
func (s *Scheduler) change(ctx context.Context, sb *siroccov1.Sandbox, step lifecycle.Step) error {
	sb, err := s.store.Update(ctx, sb.GetTenant(), sb.GetId(), sb, lifecycle.Here{Region: s.env.Region, Step: step})
	if errors.Is(err, lifecycle.ErrElsewhere) {
		return s.gone(sb) // it went between find and the write
	}
	if err != nil {
		return err
	}
	return s.nodes.Tell(ctx, sb)
}
