package agent

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"
	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/subject"
	nodev1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/node/v1"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

// serve answers the bus until ctx ends. Sandboxes that are placed live in mctx.
func (a *Agent) serve(ctx, mctx context.Context) error {
	service, err := micro.AddService(a.env.NC, micro.Config{
		Name: "sirocco-node", Version: "1.0.0", Description: "node-agent " + a.name,
		QueueGroupDisabled: true, Metadata: map[string]string{"node": a.name, "region": a.env.Region},
	})
	if err != nil {
		return fmt.Errorf("answer the bus: %w", err)
	}
	defer func() { _ = service.Stop() }()
	for verb, handle := range map[string]func(context.Context, micro.Request) (proto.Message, error){
		subject.NodePlace:     func(ctx context.Context, r micro.Request) (proto.Message, error) { return a.place(ctx, mctx, r) },
		subject.NodeSync:      a.syncRecord,
		subject.NodeStop:      a.stop,
		subject.NodeInventory: a.inventory,
		subject.NodeReceive:   a.receive,
	} {
		err := service.AddEndpoint(verb, micro.HandlerFunc(func(r micro.Request) {
			rctx := bus.Extract(ctx, nats.Header(r.Headers()))
			resp, err := handle(rctx, r)
			if err := bus.Answer(r, resp, err); err != nil {
				a.log.Warn("answer not sent", "verb", verb, "err", err)
			}
		}), micro.WithEndpointSubject(subject.Node(a.name, verb)))
		if err != nil {
			return fmt.Errorf("answer %s: %w", subject.Node(a.name, verb), err)
		}
	}
	<-ctx.Done()
	return nil
}

// place says whether this node runs a sandbox. A yes is a reservation: the
// machine goes on by itself.
func (a *Agent) place(ctx, mctx context.Context, r micro.Request) (proto.Message, error) {
	req := &nodev1.PlaceRequest{}
	if err := bus.Decode(nats.Header(r.Headers()), r.Data(), req); err != nil {
		return nil, err
	}
	sb := req.GetSandbox()
	if sb == nil {
		return nil, fault.Invalid("sandbox", "there is none")
	}
	sb.Revision = req.GetRevision()
	if sb.GetPlacement().GetNode() != a.name {
		return nil, fault.New(fault.InvalidArgument, "the sandbox is placed on %q; this is %q", sb.GetPlacement().GetNode(), a.name)
	}
	if refusal := a.full(ctx); refusal != nil {
		return &nodev1.PlaceResponse{Refusal: refusal}, nil
	}
	refuse := func(reason, format string, args ...any) (proto.Message, error) {
		return &nodev1.PlaceResponse{Refusal: a.refuse(ctx, reason, format, args...)}, nil
	}
	// Two asks for one sandbox may come at once, of two schedulers.
	a.placing.Lock()
	defer a.placing.Unlock()
	if m := a.find(sb.GetId()); m != nil {
		if m.tenant == sb.GetTenant() && m.epoch == sb.GetPlacement().GetEpoch() {
			return &nodev1.PlaceResponse{}, nil
		}
		m.poke()
		return refuse("busy", "epoch %d of the sandbox is still here", m.epoch)
	}
	// A scheduler that was held up may ask too late.
	if d := sb.GetSpec().GetStartDeadline(); d != nil && !time.Now().Before(d.AsTime()) {
		return refuse("deadline", "its start_deadline has passed")
	}
	if refusal := a.ledger.reserve(sb.GetId(), needOf(sb.GetSpec())); refusal != nil {
		a.metrics.refusal(ctx, refusal.GetReason())
		return &nodev1.PlaceResponse{Refusal: refusal}, nil
	}
	m := newMachine(a, sb, &entry{}, sb.GetPlacement().GetEpoch())
	a.launch(trace.ContextWithSpanContext(mctx, trace.SpanContextFromContext(ctx)), m, false)
	return &nodev1.PlaceResponse{}, nil
}

// refuse makes a no.
func (a *Agent) refuse(ctx context.Context, reason, format string, args ...any) *nodev1.Refusal {
	a.metrics.refusal(ctx, reason)
	return &nodev1.Refusal{Reason: reason, Message: fmt.Sprintf(format, args...), RetryAfter: durationpb.New(retryFull)}
}

// full refuses if the node takes nothing new at all; nil if it does.
func (a *Agent) full(ctx context.Context) *nodev1.Refusal {
	switch {
	case !a.ready.Load():
		return a.refuse(ctx, "not_ready", "the node is starting or stopping")
	case a.cordoned.Load() || a.draining.Load():
		return a.refuse(ctx, "cordoned", "the node takes no new sandboxes")
	case a.disk.Load() != int32(diskFine):
		return a.refuse(ctx, "disk", "the node's disk is nearly full")
	}
	return nil
}

// syncRecord makes a machine read its record again.
func (a *Agent) syncRecord(_ context.Context, r micro.Request) (proto.Message, error) {
	req := &nodev1.SyncRequest{}
	if err := bus.Decode(nats.Header(r.Headers()), r.Data(), req); err != nil {
		return nil, err
	}
	if !a.whole.Load() {
		return nil, &fault.Fault{Code: fault.Unavailable, Message: "the node is starting", RetryAfter: time.Second}
	}
	m := a.find(req.GetId())
	if m == nil || m.tenant != req.GetTenant() {
		return &nodev1.SyncResponse{}, nil
	}
	m.pokeChanged()
	return &nodev1.SyncResponse{Known: true}, nil
}

// stop ends a sandbox that runs here, for its tenant.
func (a *Agent) stop(_ context.Context, r micro.Request) (proto.Message, error) {
	req := &nodev1.StopRequest{}
	if err := bus.Decode(nats.Header(r.Headers()), r.Data(), req); err != nil {
		return nil, err
	}
	m := a.find(req.GetId())
	if m == nil || m.tenant != req.GetTenant() || m.epoch != req.GetEpoch() || !m.wasReady() || m.onTheMove() {
		return &nodev1.StopResponse{}, nil
	}
	select {
	case m.told <- &siroccov1.End{Cause: siroccov1.Cause_CAUSE_USER, Message: req.GetReason()}:
	default: // it has been told already
	}
	return &nodev1.StopResponse{Known: true}, nil
}

// inventory says what really runs here. Before every sandbox has been found
// again there is no answer: a list that is not whole would be read as losses.
func (a *Agent) inventory(context.Context, micro.Request) (proto.Message, error) {
	if !a.whole.Load() {
		return nil, &fault.Fault{Code: fault.Unavailable, Message: "the node is starting", RetryAfter: time.Second}
	}
	resp := &nodev1.InventoryResponse{}
	for _, m := range a.all() {
		resp.Items = append(resp.Items, &nodev1.InventoryItem{
			Tenant: m.tenant, Id: m.id, Epoch: m.epoch, State: m.current().GetState(),
		})
	}
	return resp, nil
}
