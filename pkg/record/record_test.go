package record_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/admission"
	"github.com/sirocco-run/sirocco/pkg/bustest"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/record"
	"github.com/sirocco-run/sirocco/pkg/sandboxid"
	"github.com/sirocco-run/sirocco/pkg/subject"
	"github.com/sirocco-run/sirocco/pkg/topology"
	"github.com/sirocco-run/sirocco/pkg/tunnel"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/proto"
)

var front = tunnel.Front{Domain: "sandbox.test", Port: 7443, TCPFirst: 20000, TCPLast: 20002}

func open(t *testing.T) (*record.Store, jetstream.JetStream) {
	t.Helper()
	_, js := bustest.Start(t)
	store, err := record.Open(t.Context(), js)
	if err != nil {
		t.Fatal(err)
	}
	return store, js
}

func spec(t *testing.T, req *siroccov1.CreateSandboxRequest) *siroccov1.CreateSandboxRequest {
	t.Helper()
	s, err := admission.Normalize(req, admission.DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func accept(t *testing.T, store *record.Store, key string, req *siroccov1.CreateSandboxRequest) (*siroccov1.Sandbox, bool, error) {
	t.Helper()
	return store.Accept(t.Context(), record.Acceptance{Tenant: "acme", Key: key, Spec: spec(t, req), Region: "eu", Front: front})
}

func TestOneKeyMakesOneSandbox(t *testing.T) {
	store, _ := open(t)
	ids := make([]string, 50)
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			sb, _, err := accept(t, store, "key", &siroccov1.CreateSandboxRequest{Command: []string{"true"}})
			if err != nil {
				t.Error(err)
				return
			}
			ids[i] = sb.GetId()
		})
	}
	wg.Wait()
	for _, id := range ids {
		if id != ids[0] {
			t.Fatalf("two sandboxes of one key: %s and %s", ids[0], id)
		}
	}
	if _, existed, err := accept(t, store, "key", &siroccov1.CreateSandboxRequest{Command: []string{"true"}}); err != nil || !existed {
		t.Errorf("the same key again: existed %v, %v", existed, err)
	}
	_, _, err := accept(t, store, "key", &siroccov1.CreateSandboxRequest{Command: []string{"false"}})
	if f := fault.From(err); f == nil || f.Code != fault.InvalidArgument || f.Field != "idempotency_key" {
		t.Errorf("the same key for another request: %v", err)
	}
}

func TestNamesAreUniqueAmongTheLiving(t *testing.T) {
	store, _ := open(t)
	first, _, err := accept(t, store, "a", &siroccov1.CreateSandboxRequest{Name: "web"})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := accept(t, store, "b", &siroccov1.CreateSandboxRequest{Name: "web"}); fault.CodeOf(err) != fault.AlreadyExists {
		t.Fatalf("a name twice: %v", err)
	}
	if id, err := store.ByName(t.Context(), "acme", "web"); err != nil || id != first.GetId() {
		t.Fatalf("ByName: %s, %v", id, err)
	}
	if _, err := store.ByName(t.Context(), "other", "web"); fault.CodeOf(err) != fault.NotFound {
		t.Errorf("the name of another tenant: %v", err)
	}
	if _, err := store.Update(t.Context(), "acme", first.GetId(), nil, lifecycle.Stop{Cause: siroccov1.Cause_CAUSE_USER}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := accept(t, store, "b", &siroccov1.CreateSandboxRequest{Name: "web"}); err != nil {
		t.Errorf("the name of a sandbox that has ended: %v", err)
	}
}

func TestPublicPortsAreSharedOut(t *testing.T) {
	store, _ := open(t)
	tcp := &siroccov1.CreateSandboxRequest{Ports: []*siroccov1.Port{{Port: 5432, Protocol: siroccov1.Protocol_PROTOCOL_TCP}}}
	seen := map[string]*siroccov1.Sandbox{}
	for i := range 3 {
		sb, _, err := accept(t, store, fmt.Sprint("k", i), tcp)
		if err != nil {
			t.Fatal(err)
		}
		seen[sb.GetTunnels()[0].GetUrl()] = sb
	}
	if len(seen) != 3 {
		t.Fatalf("ports were given twice: %v", seen)
	}
	_, _, err := accept(t, store, "full", tcp)
	if fault.CodeOf(err) != fault.Quota {
		t.Fatalf("a fourth of three ports: %v", err)
	}
	for _, sb := range seen {
		ended, err := store.Update(t.Context(), "acme", sb.GetId(), nil, lifecycle.Stop{Cause: siroccov1.Cause_CAUSE_USER})
		if err != nil {
			t.Fatal(err)
		}
		_ = ended
		break
	}
	if freed, err := store.SweepClaims(t.Context()); err != nil || len(freed) != 1 {
		t.Fatalf("SweepClaims freed %v, %v", freed, err)
	}
	if _, _, err := accept(t, store, "full", tcp); err != nil {
		t.Errorf("after one was freed: %v", err)
	}
}

func TestSwapLosesToWhoeverWasFirst(t *testing.T) {
	store, _ := open(t)
	sb, _, err := accept(t, store, "k", &siroccov1.CreateSandboxRequest{})
	if err != nil {
		t.Fatal(err)
	}
	a, b := proto.CloneOf(sb), proto.CloneOf(sb)
	if _, err := store.Swap(t.Context(), a, false); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Swap(t.Context(), b, false); !errors.Is(err, record.ErrConflict) {
		t.Errorf("the second swap of one revision: %v", err)
	}
}

func TestUpdateUnderContention(t *testing.T) {
	store, _ := open(t)
	sb, _, err := accept(t, store, "k", &siroccov1.CreateSandboxRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			port := &siroccov1.Port{Port: uint32(1000 + i), Protocol: siroccov1.Protocol_PROTOCOL_HTTPS}
			if _, err := store.Update(t.Context(), "acme", sb.GetId(), sb, lifecycle.OpenTunnel{Port: port, Tunnel: front.Tunnel(sb.GetId(), port, 0)}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	got, err := store.Get(t.Context(), "acme", sb.GetId())
	if err != nil || len(got.GetTunnels()) != 20 {
		t.Errorf("%d of 20 updates arrived, %v", len(got.GetTunnels()), err)
	}
}

func TestEveryRevisionBecomesAnEvent(t *testing.T) {
	store, js := open(t)
	const writes = 200
	consumer, err := js.OrderedConsumer(t.Context(), subject.StreamEvents, jetstream.OrderedConsumerConfig{FilterSubjects: []string{subject.TenantEvents("acme")}})
	if err != nil {
		t.Fatal(err)
	}
	next := func() jetstream.Msg {
		t.Helper()
		msg, err := consumer.Next(jetstream.FetchMaxWait(10 * time.Second))
		if err != nil {
			t.Fatalf("no event: %v", err)
		}
		return msg
	}
	sb, _, err := accept(t, store, "k", &siroccov1.CreateSandboxRequest{})
	if err != nil {
		t.Fatal(err)
	}
	// The server starts to source a new stream a moment after it is made.
	if got := next().Headers().Get(subject.HeaderEvent); got != "accepted" {
		t.Fatalf("the first event is %q", got)
	}
	for i := range writes {
		if sb, err = store.Update(t.Context(), "acme", sb.GetId(), sb, lifecycle.SetTags{Tags: map[string]string{"n": fmt.Sprint(i)}}); err != nil {
			t.Fatal(err)
		}
	}
	for i := range writes {
		msg := next()
		if _, _, id, err := subject.ParseEvent(msg.Subject()); err != nil || id != sb.GetId() {
			t.Fatalf("event %d on %s", i, msg.Subject())
		}
		got := &siroccov1.Sandbox{}
		if err := proto.Unmarshal(msg.Data(), got); err != nil || got.GetSpec().GetTags()["n"] != fmt.Sprint(i) {
			t.Fatalf("event %d holds %v, %v", i, got.GetSpec().GetTags(), err)
		}
	}
}

func TestViewFollowsAndAwaits(t *testing.T) {
	store, _ := open(t)
	before, _, err := accept(t, store, "before", &siroccov1.CreateSandboxRequest{})
	if err != nil {
		t.Fatal(err)
	}
	view := record.NewView(store, record.ViewOptions{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = view.Run(ctx) }()
	defer func() { cancel(); <-done }()
	<-view.Ready()
	if view.Lookup(before.GetId()) == nil {
		t.Fatal("a record from before is not in the view")
	}
	if _, err := view.Get(ctx, "other", before.GetId()); fault.CodeOf(err) != fault.NotFound {
		t.Errorf("the record of another tenant: %v", err)
	}
	ended := make(chan *siroccov1.Sandbox, 1)
	go func() {
		sb, err := view.Await(ctx, before.GetId(), before, func(sb *siroccov1.Sandbox) bool { return lifecycle.Ended(sb.GetState()) })
		if err != nil {
			t.Error(err)
		}
		ended <- sb
	}()
	if _, err := store.Update(ctx, "acme", before.GetId(), nil, lifecycle.Stop{Cause: siroccov1.Cause_CAUSE_USER}); err != nil {
		t.Fatal(err)
	}
	if sb := <-ended; sb.GetEnd().GetCause() != siroccov1.Cause_CAUSE_USER {
		t.Errorf("awaited %v", sb)
	}
	// The view does not keep what has ended, but Await still finds it.
	sb, err := view.Await(ctx, before.GetId(), before, func(sb *siroccov1.Sandbox) bool { return lifecycle.Ended(sb.GetState()) })
	if err != nil || !lifecycle.Ended(sb.GetState()) {
		t.Errorf("await what has ended: %v, %v", sb.GetState(), err)
	}
}

// What is expected is seen even when others overwrite it at once, and even by a
// caller that begins to wait after that.
func TestViewShowsEveryRevision(t *testing.T) {
	store, _ := open(t)
	sb, _, err := accept(t, store, "k", &siroccov1.CreateSandboxRequest{})
	if err != nil {
		t.Fatal(err)
	}
	view := record.NewView(store, record.ViewOptions{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = view.Run(ctx) }()
	defer func() { cancel(); <-done }()
	<-view.Ready()
	const revisions = 50
	tagged := func(n int) func(*siroccov1.Sandbox) bool {
		return func(sb *siroccov1.Sandbox) bool { return sb.GetSpec().GetTags()["n"] == fmt.Sprint(n) }
	}
	var expected []*record.Expectation
	for n := range revisions {
		e := view.Expect(sb.GetId(), sb, tagged(n))
		defer e.Drop()
		expected = append(expected, e)
	}
	for n := range revisions {
		if _, err := store.Update(ctx, "acme", sb.GetId(), nil, lifecycle.SetTags{Tags: map[string]string{"n": fmt.Sprint(n)}}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := view.Await(ctx, sb.GetId(), sb, tagged(revisions-1)); err != nil {
		t.Fatal(err)
	}
	for n, e := range expected {
		if got, err := e.Wait(ctx); err != nil || !tagged(n)(got) {
			t.Errorf("revision %d: %v, %v", n, got.GetSpec().GetTags(), err)
		}
	}
	gone := view.Expect(sb.GetId(), sb, tagged(-1))
	defer gone.Drop()
	over, stop := context.WithCancel(ctx)
	stop()
	if got, err := gone.Wait(over); err == nil || !tagged(revisions-1)(got) {
		t.Errorf("what never comes: %v, %v", got, err)
	}
}

// However many ask at once, a tenant holds no more than its share of the public
// ports, all of which it can have; others find theirs free.
func TestShareOfTCPPorts(t *testing.T) {
	store, _ := open(t)
	front := tunnel.Front{Domain: "sandbox.test", TCPFirst: 20000, TCPLast: 20009, TCPShare: 45}
	if got := front.TCPQuota(); got != 5 {
		t.Fatalf("the share is %d of 10", got)
	}
	ports := []*siroccov1.Port{{Port: 5432, Protocol: siroccov1.Protocol_PROTOCOL_TCP}}
	ask := func(tenant, id string) error {
		_, err := store.Tunnels(t.Context(), tenant, id, "eu", front, ports, nil)
		return err
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var held []string
	for range 8 {
		wg.Go(func() {
			id := sandboxid.New()
			err := ask("acme", id)
			if f := fault.From(err); f != nil && (f.Code != fault.Quota || f.Scope != "tenant" || f.RetryAfter == 0) {
				t.Error(err)
			}
			if err == nil {
				mu.Lock()
				held = append(held, id)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(held) > 5 || len(held) == 0 {
		t.Fatalf("%d ports of one tenant, which may have 5", len(held))
	}
	for len(held) < 5 {
		id := sandboxid.New()
		if err := ask("acme", id); err != nil {
			t.Fatalf("with %d of 5: %v", len(held), err)
		}
		held = append(held, id)
	}
	if f := fault.From(ask("acme", sandboxid.New())); f == nil || f.Code != fault.Quota || f.Scope != "tenant" {
		t.Errorf("a sixth: %v", f)
	}
	// Asking again for what one has is no more.
	if err := ask("acme", held[0]); err != nil {
		t.Errorf("again: %v", err)
	}
	// The refused ones hold nothing: the other tenant finds its five.
	for n := range 5 {
		if err := ask("other", sandboxid.New()); err != nil {
			t.Errorf("port %d of the other tenant: %v", n, err)
		}
	}
}

// A deletion takes room on the bus for as long as it is remembered, which is as long as
// was asked for: a server rounds that up by the bucket's own.
func TestDeletionsAreForgotten(t *testing.T) {
	store, js := open(t)
	sb, _, err := accept(t, store, "k", &siroccov1.CreateSandboxRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Delete(t.Context(), sb.GetTenant(), sb.GetId()); err != nil {
		t.Fatal(err)
	}
	stream, err := js.Stream(t.Context(), subject.StreamOf(subject.BucketSandboxes))
	if err != nil {
		t.Fatal(err)
	}
	last, err := stream.GetLastMsgForSubject(t.Context(), "$KV."+subject.BucketSandboxes+"."+subject.RecordKey(sb.GetTenant(), sb.GetId()))
	if err != nil {
		t.Fatal(err)
	}
	// One that was rounded up is a number of seconds.
	if got := last.Header.Get(jetstream.MsgTTLHeader); last.Header.Get("KV-Operation") != "PURGE" || got != topology.ForgottenTTL.String() {
		t.Errorf("a deletion with %v is remembered for %q, want %v", last.Header, got, topology.ForgottenTTL)
	}
}
