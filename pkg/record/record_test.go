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
	"github.com/sirocco-run/sirocco/pkg/subject"
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
