package record_test

import (
	"encoding/json"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/record"
	"github.com/sirocco-run/sirocco/pkg/sandboxid"
	"github.com/sirocco-run/sirocco/pkg/subject"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"pgregory.net/rapid"
)

// A minted key leads to its sandbox without anything that remembers it: however
// many take the first step at once, one record is written.
func TestMintedKeyNeedsNoClaim(t *testing.T) {
	store, js := open(t)
	id, key := record.Mint()
	var wg sync.WaitGroup
	epochs := make([]uint64, 8)
	for i := range epochs {
		wg.Go(func() {
			sb, existed, err := store.Claim(t.Context(), record.Acceptance{
				Tenant: "acme", Key: key, ID: id, Spec: spec(t, &siroccov1.CreateSandboxRequest{}), Region: "eu", Front: front,
			})
			if err != nil || existed || sb.GetId() != id || sb.GetRevision() != 0 {
				t.Errorf("%v, existed %v, %v", sb, existed, err)
				return
			}
			placed, err := store.Update(t.Context(), "acme", id, sb, lifecycle.Place{Region: "eu", Node: "a", Address: "x:1", Epoch: 1})
			if err != nil {
				t.Error(err)
			}
			epochs[i] = placed.GetPlacement().GetEpoch()
		})
	}
	wg.Wait()
	for _, epoch := range epochs {
		if epoch != 1 {
			t.Errorf("an epoch %d", epoch)
		}
	}
	sb, err := store.Get(t.Context(), "acme", id)
	if err != nil || len(sb.GetHistory()) != 2 || sb.GetIdempotencyKey() != key {
		t.Errorf("%v, %v", sb, err)
	}
	// Its first event stands for both states.
	events, err := js.OrderedConsumer(t.Context(), subject.StreamEvents, jetstream.OrderedConsumerConfig{FilterSubjects: []string{subject.TenantEvents("acme")}})
	if err != nil {
		t.Fatal(err)
	}
	event, err := events.Next(jetstream.FetchMaxWait(10 * time.Second))
	if err != nil {
		t.Fatal(err)
	}
	var fact struct{ Entered []string }
	if err := json.Unmarshal([]byte(event.Headers().Get(subject.HeaderFact)), &fact); err != nil || !slices.Equal(fact.Entered, []string{"accepted", "placed"}) {
		t.Errorf("the fact of the first event: %s, %v", event.Headers().Get(subject.HeaderFact), err)
	}
	claims, err := js.KeyValue(t.Context(), "sirocco-idempotency")
	if err != nil {
		t.Fatal(err)
	}
	if status, err := claims.Status(t.Context()); err != nil || status.Values() != 0 {
		t.Errorf("%d claims were written, %v", status.Values(), err)
	}
}

// A claim that was cut off before the record is taken up by the next call with its
// key, and the next gives what came of it.
func TestClaimIsTakenUp(t *testing.T) {
	store, _ := open(t)
	claim := func() (*siroccov1.Sandbox, bool) {
		t.Helper()
		sb, existed, err := store.Claim(t.Context(), record.Acceptance{
			Tenant: "acme", Key: "mine", Spec: spec(t, &siroccov1.CreateSandboxRequest{}), Region: "eu", Front: front,
		})
		if err != nil {
			t.Fatal(err)
		}
		return sb, existed
	}
	first, existed := claim()
	if existed {
		t.Fatal("the first finds something")
	}
	second, existed := claim()
	if !existed || second.GetRevision() != 0 || second.GetId() != first.GetId() {
		t.Fatalf("%v after %s, existed %v", second, first.GetId(), existed)
	}
	if _, err := store.Create(t.Context(), second); err != nil {
		t.Fatal(err)
	}
	if third, existed := claim(); !existed || third.GetId() != first.GetId() || third.GetRevision() == 0 {
		t.Errorf("%v, existed %v", third, existed)
	}
	if _, err := store.Get(t.Context(), "acme", sandboxid.New()); fault.CodeOf(err) != fault.NotFound {
		t.Error(err)
	}
}

func TestMintedKeysAreTold(t *testing.T) {
	if _, key := record.Mint(); !record.IsMinted(key) {
		t.Errorf("%q is not told", key)
	}
	rapid.Check(t, func(t *rapid.T) {
		key := rapid.StringMatching(`(auto-)?(sb-)?[A-Za-z0-9_-]{0,26}`).Draw(t, "key")
		if record.IsMinted(key) && (len(key) != 5+sandboxid.Len || !sandboxid.Valid(key[5:])) {
			t.Errorf("%q counts as minted", key)
		}
	})
}

func TestHoldsNothing(t *testing.T) {
	port := func(p siroccov1.Protocol) []*siroccov1.Port { return []*siroccov1.Port{{Port: 80, Protocol: p}} }
	for want, specs := range map[bool][]*siroccov1.CreateSandboxRequest{
		true:  {{}, {Ports: port(siroccov1.Protocol_PROTOCOL_HTTPS)}},
		false: {{Name: "web"}, {Ports: port(siroccov1.Protocol_PROTOCOL_TCP)}},
	} {
		for _, s := range specs {
			if record.HoldsNothing(s) != want {
				t.Errorf("%v holds nothing: want %v", s, want)
			}
		}
	}
}
