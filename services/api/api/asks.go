package api

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"
	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/subject"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/proto"
)

// answer carries out one ask over the bus.
type answer func(ctx context.Context, c caller, h nats.Header, body []byte) (proto.Message, error)

// asked makes an answer of a call of the api.
func asked[Q, R any, PQ interface {
	*Q
	proto.Message
}, PR interface {
	*R
	proto.Message
}](call func(context.Context, caller, *Q) (*R, error)) answer {
	return func(ctx context.Context, c caller, h nats.Header, body []byte) (proto.Message, error) {
		req := new(Q)
		if err := bus.Decode(h, body, PQ(req)); err != nil {
			return nil, fault.Unreadable(body, PQ(req), err)
		}
		if err := fault.CheckUnknown(PQ(req).ProtoReflect()); err != nil {
			return nil, err
		}
		resp, err := call(ctx, c, req)
		if err != nil {
			return nil, err
		}
		return PR(resp), nil
	}
}

// asks are the calls that the bus offers, by noun and verb. Who may ask what is
// decided by the bus's permissions: a tenant's user may publish below its own
// name only, and to nodes, pools, quotas and image removal only with an
// operator's key.
func (a *API) asks() map[string]answer {
	return map[string]answer{
		subject.NounSandbox + "." + subject.VerbCreate:      asked(a.countedCreate),
		subject.NounSandbox + "." + subject.VerbGet:         asked(a.calls.get),
		subject.NounSandbox + "." + subject.VerbList:        asked(a.listAnywhere),
		subject.NounSandbox + "." + subject.VerbTerminate:   asked(a.calls.terminate),
		subject.NounSandbox + "." + subject.VerbExtend:      asked(a.calls.extend),
		subject.NounSandbox + "." + subject.VerbSetTags:     asked(a.calls.setTags),
		subject.NounSandbox + "." + subject.VerbMigrate:     asked(a.calls.migrate),
		subject.NounSandbox + "." + subject.VerbCreateToken: asked(a.calls.createToken),
		subject.NounSandbox + "." + subject.VerbOpenTunnel:  asked(a.calls.openTunnel),
		subject.NounSandbox + "." + subject.VerbCloseTunnel: asked(a.calls.closeTunnel),
		subject.NounTunnel + ".open":                        asked(a.calls.openTunnel),
		subject.NounTunnel + ".close":                       asked(a.calls.closeTunnel),
		subject.NounTunnel + ".list":                        asked(a.calls.listTunnels),
		subject.NounNode + ".list":                          asked(a.listNodes),
		subject.NounNode + ".cordon":                        asked(a.cordon),
		subject.NounNode + ".drain":                         asked(a.drain),
		subject.NounNode + ".get-drain":                     asked(a.getDrain),
		subject.NounPool + ".list":                          asked(a.listPools),
		subject.NounPool + ".set":                           asked(a.setPool),
		subject.NounPool + ".remove":                        asked(a.removePool),
		subject.NounQuota + ".list":                         asked(a.listQuotas),
		subject.NounQuota + ".set":                          asked(a.setQuota),
		subject.NounQuota + ".remove":                       asked(a.removeQuota),
		subject.NounRegion + ".list":                        asked(a.listRegions),
		subject.NounRegion + ".set":                         asked(a.setRegionWeight),
		subject.NounRegion + ".evacuate":                    asked(a.evacuate),
		subject.NounRegion + ".get-evacuation":              asked(a.getEvacuation),
		subject.NounImage + ".list":                         asked(a.listImages),
		subject.NounImage + ".remove":                       asked(a.removeImage),
	}
}

// asker answers asks over one connection.
//
// Concurrency: each ask has its own goroutine, so that one that waits for a
// sandbox does not keep others; stop waits for all of them.
type asker struct {
	api     *API
	ctx     context.Context //nolint:containedctx // that of Run; the library's handlers have none
	service micro.Service
	slots   chan struct{}
	running sync.WaitGroup
	// mayAnswer says whether a reply subject belongs to the tenant that asks.
	mayAnswer func(tenant, reply string) bool
}

// serveAsks starts to answer asks on nc. stop ends it and waits.
func (a *API) serveAsks(ctx context.Context, nc *nats.Conn, mayAnswer func(tenant, reply string) bool) (stop func(), err error) {
	s := &asker{api: a, ctx: ctx, slots: make(chan struct{}, a.cfg.MaxAsks), mayAnswer: mayAnswer}
	s.service, err = micro.AddService(nc, micro.Config{
		Name: "sirocco-api", Version: "1.0.0", QueueGroup: "api",
		Description: "Answers sirocco.api.<tenant>.<noun>.<verb>",
		Metadata:    map[string]string{"region": a.env.Region, "instance": a.env.Instance},
	})
	if err != nil {
		return nil, fmt.Errorf("serve asks: %w", err)
	}
	for name, do := range a.asks() {
		noun, verb, _ := strings.Cut(name, ".")
		handler := micro.HandlerFunc(func(req micro.Request) { s.accept(req, name, do) })
		err := s.service.AddEndpoint(noun+"-"+verb, handler, micro.WithEndpointSubject(subject.API("*", noun, verb)))
		if err != nil {
			_ = s.service.Stop()
			return nil, fmt.Errorf("serve %s: %w", name, err)
		}
	}
	replay := micro.HandlerFunc(func(req micro.Request) { s.accept(req, replayName, nil) })
	if err := s.service.AddEndpoint("sandbox-events", replay, micro.WithEndpointSubject(subject.API("*", subject.NounSandbox, verbEvents))); err != nil {
		_ = s.service.Stop()
		return nil, fmt.Errorf("serve %s: %w", replayName, err)
	}
	// What is subscribed must have reached the server before anybody is told.
	flush, cancel := context.WithTimeout(ctx, bus.Patience)
	defer cancel()
	if err := nc.FlushWithContext(flush); err != nil {
		_ = s.service.Stop()
		return nil, fmt.Errorf("serve asks: %w", err)
	}
	return func() {
		_ = s.service.Stop()
		s.running.Wait()
	}, nil
}

// accept checks the envelope of an ask and gives it a goroutine.
func (s *asker) accept(req micro.Request, name string, do answer) {
	tenant, _, _, err := subject.ParseAPI(req.Subject())
	if err != nil {
		s.api.log.Debug("ask on a strange subject dropped", "subject", req.Subject())
		return
	}
	// The answer goes where the asker says, with this service's rights: a
	// tenant could have it delivered into another's commands or records.
	if !s.mayAnswer(tenant, req.Reply()) {
		s.api.log.Warn("ask dropped: its reply subject is no inbox of the tenant", "tenant", tenant, "subject", req.Subject(), "reply", req.Reply())
		return
	}
	select {
	case s.slots <- struct{}{}:
	default:
		s.reply(req, nil, &fault.Fault{Code: fault.Unavailable, Message: "too many requests are under way", RetryAfter: time.Second})
		return
	}
	s.running.Go(func() {
		defer func() { <-s.slots }()
		s.handle(req, tenant, name, do)
	})
}

func (s *asker) handle(req micro.Request, tenant, name string, do answer) {
	headers := nats.Header(req.Headers())
	ctx, cancel := context.WithTimeout(bus.Extract(s.ctx, headers), s.api.cfg.WaitLimit+2*bus.Patience)
	defer cancel()
	ctx, span := s.api.tracer.Start(ctx, "api."+name, trace.WithSpanKind(trace.SpanKindServer),
		trace.WithAttributes(attribute.String("sirocco.tenant", tenant), attribute.String("messaging.system", "nats")))
	defer span.End()
	observe := s.api.metrics.begin(ctx, "bus", name)
	c := caller{tenant: tenant, operator: true, key: bus.Header(headers, headerKey), forwarded: bus.Header(headers, subject.HeaderForwarded) != ""}
	resp, err := protect(func() (proto.Message, error) {
		if do == nil {
			return nil, s.replay(ctx, c, req)
		}
		return do(ctx, c, headers, req.Data())
	})
	if err == nil {
		observe.end("")
		if resp != nil {
			s.reply(req, resp, nil)
		}
		return
	}
	f := s.api.contract.Settle(ctx, name, err)
	span.SetStatus(codes.Error, string(f.Code))
	observe.end(f.Code)
	s.reply(req, nil, f)
}

// reply answers, and says so when the answer does not fit into one message.
func (s *asker) reply(req micro.Request, m proto.Message, f *fault.Fault) {
	var err error
	if f != nil {
		err = f
	}
	sent := bus.Answer(req, m, err)
	if errors.Is(sent, nats.ErrMaxPayload) || sent != nil && strings.Contains(sent.Error(), nats.ErrMaxPayload.Error()) {
		sent = bus.Answer(req, nil, fault.Invalid("page_size", "the answer does not fit into one message of the bus: ask for less at once"))
	}
	if sent != nil {
		s.api.log.Warn("ask not answered", "subject", req.Subject(), "err", sent)
	}
}

// protect turns a panic into an error.
func protect(do func() (proto.Message, error)) (m proto.Message, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	return do()
}

// ownInbox says whether a reply subject is an inbox: the platform's, the
// tenant's, or that of a client which knows of no prefixes.
func ownInbox(tenant, reply string) bool {
	prefix, rest, ok := strings.Cut(reply, ".")
	if !ok || rest == "" || strings.ContainsAny(rest, "*> \t\r\n") {
		return false
	}
	return prefix == "_INBOX" || prefix == bus.ServiceInbox || prefix == bus.TenantInbox(tenant)
}
