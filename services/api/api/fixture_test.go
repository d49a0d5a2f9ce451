package api_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/apikey"
	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/bustest"
	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/pki"
	"github.com/sirocco-run/sirocco/pkg/program"
	"github.com/sirocco-run/sirocco/pkg/record"
	"github.com/sirocco-run/sirocco/pkg/subject"
	"github.com/sirocco-run/sirocco/pkg/tunnel"
	nodev1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/node/v1"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/sirocco-run/sirocco/services/api/api"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"
)

const wait = 20 * time.Second

// client is for requests that end by themselves; those that stream have a
// context.
var client = &http.Client{Timeout: 2 * wait}

var front = tunnel.Front{Domain: "sandbox.localhost", Port: 7443, TCPFirst: 20000, TCPLast: 20003}

// region is a bus, an api and a scheduler that says yes to everything.
type region struct {
	t     testing.TB
	name  string
	nc    *nats.Conn
	js    jetstream.JetStream
	store *record.Store
	keys  *apikey.Store
	url   string
	logs  *syncBuffer
	sched *fakeScheduler
}

func start(t testing.TB, cfg api.Config) *region {
	t.Helper()
	nc, js := bustest.Start(t)
	return startOn(t, nc, js, cfg)
}

func startOn(t testing.TB, nc *nats.Conn, js jetstream.JetStream, cfg api.Config) *region {
	t.Helper()
	return startWith(t, nc, js, cfg, nil, nil)
}

func startWith(t testing.TB, nc *nats.Conn, js jetstream.JetStream, cfg api.Config, tracer trace.TracerProvider, meter metric.MeterProvider) *region {
	t.Helper()
	return startIn(t, program.Env{Region: "eu", NC: nc, JS: js, Tracer: tracer, Meter: meter}, cfg)
}

// startIn starts one of several regions; env has its name, its bus and its peers.
func startIn(t testing.TB, env program.Env, cfg api.Config) *region {
	t.Helper()
	js := env.JS
	folder, err := pki.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	logs := &syncBuffer{}
	if cfg.Listen == "" {
		cfg.Listen = "127.0.0.1:0"
	}
	env.Instance, env.Keys, env.Front, env.Log = "api-1", folder, front, slog.New(slog.NewJSONHandler(logs, nil))
	service, err := api.New(env, cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	var failed error
	go func() {
		defer close(done)
		failed = service.Run(ctx)
	}()
	t.Cleanup(func() {
		stop()
		<-done
		if failed != nil {
			t.Errorf("run: %v", failed)
		}
	})
	select {
	case <-service.Ready():
	case <-done:
		t.FailNow()
	}
	store, err := record.Open(ctx, js)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := apikey.Open(ctx, js)
	if err != nil {
		t.Fatal(err)
	}
	r := &region{t: t, name: env.Region, nc: env.NC, js: js, store: store, keys: keys, url: "http://" + service.Addr().String(), logs: logs}
	startNode(t, r)
	r.sched = startScheduler(t, r)
	return r
}

// key makes an API key.
func (r *region) key(tenant string, role apikey.Role) string {
	r.t.Helper()
	secret, _, err := r.keys.Create(context.Background(), tenant, role, "")
	if err != nil {
		r.t.Fatal(err)
	}
	return secret
}

// startNode answers for the node n1: what is to stop has stopped.
func startNode(t testing.TB, r *region) {
	t.Helper()
	var running sync.WaitGroup
	sub, err := r.js.Conn().Subscribe(subject.Node("n1", subject.NodeSync), func(msg *nats.Msg) {
		running.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), wait)
			defer cancel()
			req := &nodev1.SyncRequest{}
			if err := bus.Decode(msg.Header, msg.Data, req); err != nil {
				t.Errorf("node: %v", err)
				return
			}
			answer, err := bus.NewMsg(ctx, msg.Reply, &nodev1.SyncResponse{Known: true})
			if err == nil {
				err = msg.RespondMsg(answer)
			}
			sb, gerr := r.store.Get(ctx, req.GetTenant(), req.GetId())
			if gerr == nil && sb.GetDesired().GetStop() {
				_, gerr = r.store.Update(ctx, req.GetTenant(), req.GetId(), sb, lifecycle.Finish{
					Epoch: sb.GetPlacement().GetEpoch(), End: &siroccov1.End{Cause: sb.GetDesired().GetStopCause()},
				})
			}
			if err := errors.Join(err, gerr); err != nil {
				t.Errorf("node: %v", err)
			}
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = sub.Unsubscribe()
		running.Wait()
	})
}

// fakeScheduler carries out commands as the real ones do, without nodes.
type fakeScheduler struct {
	r    *region
	mu   sync.Mutex
	hold map[string]bool // verbs that are left in the queue
	seen map[string]int  // commands by subject
	// traces are the trace contexts of commands, by subject.
	traces map[string]string
	// changed is closed, and replaced, with each command.
	changed chan struct{}
}

func startScheduler(t testing.TB, r *region) *fakeScheduler {
	t.Helper()
	s := &fakeScheduler{r: r, hold: map[string]bool{}, seen: map[string]int{}, traces: map[string]string{}, changed: make(chan struct{})}
	consumer, err := r.js.Consumer(context.Background(), subject.StreamCommands, subject.ConsumerScheduler)
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	consume, err := consumer.Consume(func(msg jetstream.Msg) {
		running.Go(func() { s.handle(msg) })
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		consume.Stop()
		<-consume.Closed()
		running.Wait()
	})
	return s
}

func (s *fakeScheduler) holdBack(verb string, hold bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hold[verb] = hold
}

func (s *fakeScheduler) handle(msg jetstream.Msg) {
	tenant, verb, key, err := subject.ParseCommand(msg.Subject())
	if err != nil {
		_ = msg.Term()
		return
	}
	s.mu.Lock()
	held := s.hold[verb]
	s.seen[msg.Subject()]++
	s.traces[msg.Subject()] = msg.Headers().Get("traceparent")
	close(s.changed)
	s.changed = make(chan struct{})
	s.mu.Unlock()
	if held {
		_ = msg.NakWithDelay(20 * time.Millisecond)
		return
	}
	if err := s.carryOut(tenant, verb, key, msg); err != nil {
		s.r.t.Errorf("scheduler: %s %s: %v", verb, key, err)
	}
	_ = msg.Ack()
}

func (s *fakeScheduler) carryOut(tenant, verb, key string, msg jetstream.Msg) error {
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	update := func(id string, steps ...lifecycle.Step) error {
		for _, step := range steps {
			if _, err := s.r.store.Update(ctx, tenant, id, nil, step); err != nil {
				return err
			}
		}
		return nil
	}
	switch verb {
	case subject.VerbCreate:
		spec := &siroccov1.CreateSandboxRequest{}
		if err := bus.Decode(msg.Headers(), msg.Data(), spec); err != nil {
			return err
		}
		sb, _, err := s.r.store.Accept(ctx, record.Acceptance{
			Tenant: tenant, Key: key, ID: msg.Headers().Get(subject.HeaderSandbox), Spec: spec, Region: s.r.name, Front: front,
		})
		if err != nil {
			return err
		}
		steps := []lifecycle.Step{lifecycle.Place{Region: s.r.name, Node: "n1"}}
		if end := failures[spec.GetImage()]; end != nil {
			steps = append(steps, lifecycle.Finish{Epoch: 1, End: end})
		} else {
			steps = append(steps, lifecycle.Start{Epoch: 1}, lifecycle.Run{Observed: &siroccov1.Observed{Epoch: 1}})
		}
		return update(sb.GetId(), steps...)
	case subject.VerbTerminate:
		req := &siroccov1.TerminateSandboxRequest{}
		if err := bus.Decode(msg.Headers(), msg.Data(), req); err != nil {
			return err
		}
		return update(req.GetId(), lifecycle.Stop{Cause: siroccov1.Cause_CAUSE_USER, Reason: req.GetReason()},
			lifecycle.Finish{Epoch: 1, End: &siroccov1.End{Cause: siroccov1.Cause_CAUSE_USER}})
	case subject.VerbExtend:
		req := &siroccov1.ExtendSandboxRequest{}
		if err := bus.Decode(msg.Headers(), msg.Data(), req); err != nil {
			return err
		}
		return update(req.GetId(), lifecycle.Extend{Deadline: time.Now().Add(req.GetBy().AsDuration())})
	case subject.VerbSetTags:
		req := &siroccov1.SetTagsRequest{}
		if err := bus.Decode(msg.Headers(), msg.Data(), req); err != nil {
			return err
		}
		return update(req.GetId(), lifecycle.SetTags{Tags: req.GetTags()})
	case subject.VerbOpenTunnel:
		req := &siroccov1.OpenTunnelRequest{}
		if err := bus.Decode(msg.Headers(), msg.Data(), req); err != nil {
			return err
		}
		tunnels, err := s.r.store.Tunnels(ctx, tenant, req.GetSandboxId(), s.r.name, front, []*siroccov1.Port{req.GetPort()}, nil)
		if err != nil {
			return err
		}
		return update(req.GetSandboxId(), lifecycle.OpenTunnel{Port: req.GetPort(), Tunnel: tunnels[0]})
	case subject.VerbCloseTunnel:
		req := &siroccov1.CloseTunnelRequest{}
		if err := bus.Decode(msg.Headers(), msg.Data(), req); err != nil {
			return err
		}
		return update(req.GetSandboxId(), lifecycle.CloseTunnel{Port: req.GetPort()})
	}
	return fmt.Errorf("unknown verb %s", verb)
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// failures are the ends of sandboxes with these images.
var failures = map[string]*siroccov1.End{
	"missing":  {Cause: siroccov1.Cause_CAUSE_IMAGE_ERROR, Message: "no such image"},
	"too-big":  {Cause: siroccov1.Cause_CAUSE_NO_CAPACITY, Message: "no node fits: memory on 3", Limit: "node"},
	"unprobed": {Cause: siroccov1.Cause_CAUSE_PROBE_FAILED, Message: "readiness probe: port 80: refused"},
}
