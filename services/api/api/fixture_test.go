package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/apikey"
	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/bustest"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/pki"
	"github.com/sirocco-run/sirocco/pkg/program"
	"github.com/sirocco-run/sirocco/pkg/record"
	"github.com/sirocco-run/sirocco/pkg/subject"
	"github.com/sirocco-run/sirocco/pkg/tunnel"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/sirocco-run/sirocco/services/api/api"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

const wait = 20 * time.Second

var front = tunnel.Front{Domain: "sandbox.localhost", Port: 7443, TCPFirst: 20000, TCPLast: 20003}

// region is a bus, an api and a scheduler that says yes to everything.
type region struct {
	t     testing.TB
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
	folder, err := pki.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	logs := &syncBuffer{}
	if cfg.Listen == "" {
		cfg.Listen = "127.0.0.1:0"
	}
	service, err := api.New(program.Env{
		Region: "eu", Instance: "api-1", NC: nc, JS: js, Keys: folder,
		Front:  front,
		Log:    slog.New(slog.NewJSONHandler(logs, nil)),
		Tracer: tracer, Meter: meter,
	}, cfg)
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
	r := &region{t: t, nc: nc, js: js, store: store, keys: keys, url: "http://" + service.Addr().String(), logs: logs}
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

// fakeScheduler carries out commands as the real ones do, without nodes.
type fakeScheduler struct {
	r    *region
	mu   sync.Mutex
	hold map[string]bool // verbs that are left in the queue
	seen map[string]int  // commands by subject
	// traces are the trace contexts of commands, by subject.
	traces map[string]string
}

func startScheduler(t testing.TB, r *region) *fakeScheduler {
	t.Helper()
	s := &fakeScheduler{r: r, hold: map[string]bool{}, seen: map[string]int{}, traces: map[string]string{}}
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
		sb, _, err := s.r.store.Accept(ctx, record.Acceptance{Tenant: tenant, Key: key, Spec: spec, Region: "eu"})
		if err != nil {
			return err
		}
		steps := []lifecycle.Step{lifecycle.Place{Region: "eu", Node: "n1"}}
		if spec.GetImage() == "missing" {
			steps = append(steps, lifecycle.Finish{Epoch: 1, End: &siroccov1.End{Cause: siroccov1.Cause_CAUSE_IMAGE_ERROR, Message: "no such image"}})
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
		tunnels, err := s.r.store.Tunnels(ctx, tenant, req.GetSandboxId(), "eu", front, []*siroccov1.Port{req.GetPort()}, nil)
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

// transport is one way to call the api. call fills resp, or returns a fault.
type transport struct {
	name string
	call func(ctx context.Context, procedure string, req, resp proto.Message) error
}

// rest are the methods and paths of the calls that tests make over REST; the
// path's {id} is taken from the request.
var rest = map[string]struct {
	method, path, idField string
	body                  bool
}{
	"SandboxService/Create":      {"POST", "/v1/sandboxes", "", true},
	"SandboxService/Get":         {"GET", "/v1/sandboxes/{}", "id", false},
	"SandboxService/Terminate":   {"DELETE", "/v1/sandboxes/{}", "id", false},
	"SandboxService/Extend":      {"POST", "/v1/sandboxes/{}/extend", "id", true},
	"SandboxService/SetTags":     {"PUT", "/v1/sandboxes/{}/tags", "id", true},
	"SandboxService/CreateToken": {"POST", "/v1/sandboxes/{}/token", "id", true},
	"SandboxService/List":        {"GET", "/v1/sandboxes", "", false},
	"TunnelService/Open":         {"POST", "/v1/sandboxes/{}/tunnels", "sandbox_id", true},
	"TunnelService/Close":        {"DELETE", "/v1/sandboxes/{}/tunnels/8000", "sandbox_id", false},
	"TunnelService/List":         {"GET", "/v1/sandboxes/{}/tunnels", "sandbox_id", false},
	"NodeService/List":           {"GET", "/v1/nodes", "", false},
	"NodeService/Cordon":         {"POST", "/v1/nodes/{}/cordon", "name", true},
	"NodeService/Drain":          {"POST", "/v1/nodes/{}/drain", "name", true},
	"ImageService/List":          {"GET", "/v1/images", "", false},
	"ImageService/Remove":        {"DELETE", "/v1/images/{}", "name", false},
}

// asks are the subjects of the calls over the bus.
var asks = map[string][2]string{
	"SandboxService/Create": {"sandbox", "create"}, "SandboxService/Get": {"sandbox", "get"}, "SandboxService/List": {"sandbox", "list"},
	"SandboxService/Terminate": {"sandbox", "terminate"}, "SandboxService/Extend": {"sandbox", "extend"},
	"SandboxService/SetTags": {"sandbox", "set-tags"}, "SandboxService/CreateToken": {"sandbox", "create-token"},
	"TunnelService/Open": {"tunnel", "open"}, "TunnelService/Close": {"tunnel", "close"}, "TunnelService/List": {"tunnel", "list"},
	"NodeService/List": {"node", "list"}, "NodeService/Cordon": {"node", "cordon"}, "NodeService/Drain": {"node", "drain"},
	"ImageService/List": {"image", "list"}, "ImageService/Remove": {"image", "remove"},
}

// transports are all the ways in, for a tenant with a key.
func (r *region) transports(tenant, key string) []transport {
	h2c := &http.Transport{Protocols: &http.Protocols{}}
	h2c.Protocols.SetUnencryptedHTTP2(true)
	r.t.Cleanup(h2c.CloseIdleConnections)
	plain := &http.Transport{}
	r.t.Cleanup(plain.CloseIdleConnections)
	rpc := func(client *http.Client, asJSON bool, opts ...connect.ClientOption) func(context.Context, string, proto.Message, proto.Message) error {
		return func(ctx context.Context, procedure string, req, resp proto.Message) error {
			return callRPC(ctx, client, r.url, procedure, key, asJSON, req, resp, opts...)
		}
	}
	return []transport{
		{"grpc", rpc(&http.Client{Transport: h2c}, false, connect.WithGRPC())},
		{"connect", rpc(&http.Client{Transport: plain}, false)},
		{"connect-json", rpc(&http.Client{Transport: plain}, true)},
		{"rest", func(ctx context.Context, procedure string, req, resp proto.Message) error {
			return r.callREST(ctx, &http.Client{Transport: plain}, procedure, key, req, resp)
		}},
		{"rest-h2c", func(ctx context.Context, procedure string, req, resp proto.Message) error {
			return r.callREST(ctx, &http.Client{Transport: h2c}, procedure, key, req, resp)
		}},
		{"bus", func(ctx context.Context, procedure string, req, resp proto.Message) error {
			a := asks[procedure]
			return bus.Ask(ctx, r.nc, subject.API(tenant, a[0], a[1]), req, resp)
		}},
		{"bus-json", func(ctx context.Context, procedure string, req, resp proto.Message) error {
			a := asks[procedure]
			body, err := protojson.Marshal(req)
			if err != nil {
				return err
			}
			return r.askJSON(ctx, subject.API(tenant, a[0], a[1]), body, resp)
		}},
	}
}

// raw is a message that has been encoded already.
type raw struct{ body []byte }

type rawCodec struct{ name string }

func (c rawCodec) Name() string                  { return c.name }
func (c rawCodec) Marshal(m any) ([]byte, error) { return m.(*raw).body, nil }
func (c rawCodec) Unmarshal(b []byte, m any) error {
	if pm, ok := m.(proto.Message); ok { // the status of gRPC
		return proto.Unmarshal(b, pm)
	}
	m.(*raw).body = bytes.Clone(b)
	return nil
}

// callRPC calls a procedure with a message of any type.
func callRPC(ctx context.Context, client *http.Client, url, procedure, key string, asJSON bool, req, resp proto.Message, opts ...connect.ClientOption) error {
	encode, decode, name := proto.Marshal, proto.Unmarshal, "proto"
	if asJSON {
		encode, decode, name = protojson.Marshal, protojson.Unmarshal, "json"
	}
	body, err := encode(req)
	if err != nil {
		return err
	}
	r := connect.NewRequest(&raw{body})
	r.Header().Set("Authorization", "Bearer "+key)
	c := connect.NewClient[raw, raw](client, url+"/sirocco.v1."+procedure, append(opts, connect.WithCodec(rawCodec{name}))...)
	out, err := c.CallUnary(ctx, r)
	if err != nil {
		return fault.FromConnect(err)
	}
	return decode(out.Msg.body, resp)
}

func (r *region) askJSON(ctx context.Context, subj string, body []byte, resp proto.Message) error {
	msg := nats.NewMsg(subj)
	msg.Data = body
	answer, err := r.nc.RequestMsgWithContext(ctx, msg)
	if err != nil {
		return err
	}
	if answer.Header.Get(subject.HeaderErrorCode) != "" {
		d := &siroccov1.ErrorDetail{}
		if err := protojson.Unmarshal(answer.Data, d); err != nil {
			return fmt.Errorf("error answer %q: %w", answer.Data, err)
		}
		if d.GetCode() != answer.Header.Get(subject.HeaderErrorCode) {
			return fmt.Errorf("code %q in the header, %q in the body", answer.Header.Get(subject.HeaderErrorCode), d.GetCode())
		}
		return fault.FromDetail(d)
	}
	return protojson.Unmarshal(answer.Data, resp)
}

func (r *region) callREST(ctx context.Context, client *http.Client, procedure, key string, req, resp proto.Message) error {
	route := rest[procedure]
	path := route.path
	c := proto.Clone(req)
	if route.idField != "" {
		f := c.ProtoReflect().Descriptor().Fields().ByName(protoreflect.Name(route.idField))
		path = strings.Replace(path, "{}", c.ProtoReflect().Get(f).String(), 1)
		c.ProtoReflect().Clear(f)
	}
	var body io.Reader
	if route.body {
		text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(c)
		if err != nil {
			return err
		}
		body = bytes.NewReader(text)
	}
	hr, err := http.NewRequestWithContext(ctx, route.method, r.url+path, body)
	if err != nil {
		return err
	}
	if route.body {
		hr.Header.Set("Content-Type", "application/json")
	}
	hr.Header.Set("Authorization", "Bearer "+key)
	answer, err := client.Do(hr)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		return err
	}
	if answer.StatusCode != http.StatusOK {
		return restFault(answer.StatusCode, text)
	}
	return protojson.Unmarshal(text, resp)
}

// restFault reads a REST error and checks its shape.
func restFault(status int, body []byte) error {
	var shape struct {
		Code    int               `json:"code"`
		Message string            `json:"message"`
		Details []json.RawMessage `json:"details"`
	}
	if err := json.Unmarshal(body, &shape); err != nil || len(shape.Details) != 1 || shape.Code == 0 {
		return fmt.Errorf("HTTP %d with a strange body %q: %w", status, body, err)
	}
	var detail struct {
		Type       string `json:"@type"`
		Code       string `json:"code"`
		Message    string `json:"message"`
		Field      string `json:"field"`
		Scope      string `json:"scope"`
		RetryAfter string `json:"retry_after"`
		ErrorID    string `json:"error_id"`
	}
	if err := json.Unmarshal(shape.Details[0], &detail); err != nil || detail.Type != "type.googleapis.com/sirocco.v1.ErrorDetail" {
		return fmt.Errorf("HTTP %d with strange details %q: %w", status, body, err)
	}
	f := &fault.Fault{Code: fault.Code(detail.Code), Message: detail.Message, Field: detail.Field, Scope: detail.Scope, ErrorID: detail.ErrorID}
	if detail.RetryAfter != "" {
		f.RetryAfter, _ = time.ParseDuration(detail.RetryAfter)
	}
	return f
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

// do sends a REST request; resp is filled, or a fault returned.
func do(req *http.Request, resp proto.Message) error {
	answer, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		return err
	}
	if answer.StatusCode != http.StatusOK {
		return restFault(answer.StatusCode, text)
	}
	return protojson.Unmarshal(text, resp)
}
