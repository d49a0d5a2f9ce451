package scheduler

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nats.go/micro"
	"github.com/sirocco-run/sirocco/pkg/admission"
	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/move"
	"github.com/sirocco-run/sirocco/pkg/record"
	"github.com/sirocco-run/sirocco/pkg/subject"
	nodev1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/node/v1"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/sirocco-run/sirocco/services/scheduler/placement"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

const (
	// moveTime is how long a move may take from the command to the moment after which
	// only the copy may run. Where it takes longer it is called off.
	moveTime = time.Minute
	// reserveTimeout bounds the question to the schedulers of another region.
	reserveTimeout = 5 * time.Second
)

// migrate finds a node for a sandbox that is to move, and has its own node carry it
// there. What comes of it is in the record; what could not be begun is refused.
func (s *Scheduler) migrate(ctx context.Context, cmd command) error {
	req := &siroccov1.MigrateSandboxRequest{}
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
	if sb.GetMove().GetKey() == cmd.key || req.GetEpoch() != 0 && req.GetEpoch() != sb.GetPlacement().GetEpoch() {
		return nil // it has been carried out before
	}
	step := lifecycle.Migrate{Move: &siroccov1.Move{
		Key: cmd.key, Region: req.GetRegion(), Node: req.GetNode(), Reason: req.GetReason(),
		Epoch: lifecycle.NextEpoch(sb), Deadline: timestamppb.New(time.Now().Add(moveTime)),
	}}
	if step.Move.Region == "" {
		step.Move.Region = s.env.Region
	}
	// What can't be moved needs no place.
	asked, err := lifecycle.Apply(sb, step, time.Now())
	if err != nil {
		return moveRefused(err)
	}
	if step.Move.Node != "" && step.Move.Node == sb.GetPlacement().GetNode() {
		return fault.Invalid("node", "the sandbox is on %s already", step.Move.Node)
	}
	if allowed := sb.GetSpec().GetRegions(); len(allowed) > 0 && !slices.Contains(allowed, step.Move.Region) {
		return fault.New(fault.FailedPrecondition, "the sandbox may run in %v only, as it was created so", allowed)
	}
	place, err := s.reserveFor(ctx, asked)
	if err != nil {
		return finalError{err}
	}
	step.Move.Node, step.Move.NodeAddress = place.GetNode(), place.GetNodeAddress()
	return moveRefused(s.change(ctx, sb, step))
}

// moveRefused makes a fault of why a sandbox can't be moved now.
func moveRefused(err error) error {
	switch {
	case errors.Is(err, lifecycle.ErrNoChange):
		return nil
	case errors.Is(err, lifecycle.ErrNotRunning), errors.Is(err, lifecycle.ErrMoving):
		return &fault.Fault{Code: fault.FailedPrecondition, Message: err.Error(), Cause: err}
	}
	return err
}

// reserveFor has a place kept for a sandbox, here or in the region to which it goes.
func (s *Scheduler) reserveFor(ctx context.Context, sb *siroccov1.Sandbox) (*nodev1.ReserveResponse, error) {
	m := s.fleet.machine(sb.GetPlacement().GetNode())
	req := &nodev1.ReserveRequest{Sandbox: sb, Runtime: m.Runtime, RuntimeVersion: m.Version, Processor: m.Processor}
	to := sb.GetMove().GetRegion()
	if to == s.env.Region {
		return s.reserve(ctx, req)
	}
	p, err := s.env.Peers.Get(to)
	if err != nil {
		return nil, fault.Invalid("region", "%v", err)
	}
	ctx, cancel := context.WithTimeout(ctx, reserveTimeout)
	defer cancel()
	resp := &nodev1.ReserveResponse{}
	if !p.Alive() {
		return nil, fault.New(fault.Unavailable, "region %s can't be reached", to)
	}
	return resp, bus.Ask(ctx, p.NC, subject.Traffic(to, subject.TrafficReserve), req, resp)
}

// reserve finds a node of this region that keeps a place for a sandbox.
func (s *Scheduler) reserve(ctx context.Context, req *nodev1.ReserveRequest) (*nodev1.ReserveResponse, error) {
	sb := req.GetSandbox()
	want := placement.Request{
		ID: sb.GetId(), Need: Need(sb.GetSpec()), Only: sb.GetMove().GetNode(), Except: []string{sb.GetPlacement().GetNode()},
		Like: placement.Machine{Runtime: req.GetRuntime(), Version: req.GetRuntimeVersion(), Processor: req.GetProcessor()},
	}
	template := record.TemplateKey(sb.GetSpec())
	var last string
	for {
		plan := s.fleet.rank(s.rules, template, want, time.Now())
		if len(plan.Candidates) == 0 {
			if last != "" {
				last = "; the last said: " + last
			}
			return nil, &fault.Fault{Code: fault.NoCapacity, Scope: plan.Scope(), Message: plan.Explain() + last, RetryAfter: 2 * time.Second}
		}
		name := plan.Candidates[0].Node
		_, address := s.fleet.address(name)
		asked := proto.CloneOf(sb)
		asked.Move.Node, asked.Move.NodeAddress = name, address
		refusal, err := s.nodes.Receive(ctx, name, asked)
		switch {
		case err == nil && refusal == nil:
			return &nodev1.ReserveResponse{Node: name, NodeAddress: address}, nil
		case ctx.Err() != nil:
			s.fleet.unassume(name, sb.GetId())
			return nil, fault.From(ctx.Err())
		case err != nil:
			last = name + " did not answer"
			s.fleet.suspect(name, time.Now().Add(suspicion))
		default:
			last = fmt.Sprintf("%s: %s", name, refusal.GetMessage())
		}
		s.fleet.unassume(name, sb.GetId())
		want.Except = append(want.Except, name)
	}
}

// serveTraffic answers the schedulers of other regions until ctx ends. Any scheduler
// of this one may.
func (s *Scheduler) serveTraffic(ctx context.Context) error {
	service, err := micro.AddService(s.env.NC, micro.Config{
		Name: "sirocco-scheduler", Version: "1.0.0", QueueGroup: "scheduler",
		Description: "Answers sirocco.traffic.<region>.<verb>", Metadata: map[string]string{"region": s.env.Region, "instance": s.env.Instance},
	})
	if err != nil {
		return fmt.Errorf("answer other regions: %w", err)
	}
	defer func() { _ = service.Stop() }()
	err = service.AddEndpoint(subject.TrafficReserve, micro.HandlerFunc(func(r micro.Request) {
		go func() { // a node may take its time, and others ask meanwhile
			ctx, cancel := context.WithTimeout(bus.Extract(ctx, nats.Header(r.Headers())), reserveTimeout)
			defer cancel()
			req := &nodev1.ReserveRequest{}
			err := bus.Decode(nats.Header(r.Headers()), r.Data(), req)
			resp := &nodev1.ReserveResponse{}
			if err == nil {
				resp, err = s.reserve(ctx, req)
			}
			if err := bus.Answer(r, resp, err); err != nil {
				s.log.Warn("answer not sent", "verb", subject.TrafficReserve, "err", err)
			}
		}()
	}), micro.WithEndpointSubject(subject.Traffic(s.env.Region, subject.TrafficReserve)))
	if err != nil {
		return fmt.Errorf("answer other regions: %w", err)
	}
	<-ctx.Done()
	return nil
}

// goneError says that the sandbox of a command has moved to another region.
type goneError struct{ shadow *siroccov1.Sandbox }

func (e *goneError) Error() string {
	return "the sandbox has moved to region " + e.shadow.GetPlacement().GetRegion()
}

// gone is a *goneError if the record is what its sandbox left in this region; else nil.
func (s *Scheduler) gone(sb *siroccov1.Sandbox) error {
	if lifecycle.Shadow(sb, s.env.Region) {
		return &goneError{sb}
	}
	return nil
}

// sendAfter puts a command into the queue of the region to which its sandbox has moved,
// under the same key: what comes twice changes nothing there either. While it is on its
// way, the command waits here.
func (s *Scheduler) sendAfter(ctx context.Context, msg jetstream.Msg, cmd command, gone *goneError) error {
	if move.RouteOf(gone.shadow, s.env.Region) == move.Later {
		return fmt.Errorf("%w, and has not arrived yet", gone)
	}
	region := gone.shadow.GetPlacement().GetRegion()
	p, err := s.env.Peers.Get(region)
	if err != nil {
		return fault.New(fault.FailedPrecondition, "%v, which is not known here", gone)
	}
	after := nats.NewMsg(msg.Subject())
	after.Data, after.Header = msg.Data(), maps.Clone(msg.Headers())
	if after.Header == nil {
		after.Header = nats.Header{}
	}
	after.Header.Set(subject.HeaderStored, cmd.at.UTC().Format(time.RFC3339Nano))
	ctx, cancel := context.WithTimeout(ctx, reserveTimeout)
	defer cancel()
	if _, err := p.JS.PublishMsg(ctx, after); err != nil {
		return fmt.Errorf("send a command after its sandbox to region %s: %w", region, err)
	}
	return nil
}
