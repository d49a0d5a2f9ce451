package guard_test

import (
	"errors"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/bustest"
	"github.com/sirocco-run/sirocco/pkg/guard"
	"github.com/sirocco-run/sirocco/pkg/subject"
)

// TestStore: on a real bus, a node's fence expires by itself, and of a claim and a return
// one succeeds.
func TestStore(t *testing.T) {
	_, js := bustest.Start(t)
	kv, err := js.KeyValue(t.Context(), subject.BucketFences)
	if err != nil {
		t.Fatal(err)
	}
	status, err := kv.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	cfg := status.Config()
	cfg.TTL = time.Second
	if _, err := js.UpdateKeyValue(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	s := open(t, js)
	if fenced, err := s.Fenced(t.Context(), "us", "n1"); err != nil || fenced {
		t.Fatal("a fence that nobody put up", fenced, err)
	}
	if err := s.Renew(t.Context(), "us", "n1"); err != nil {
		t.Fatal(err)
	}
	if err := s.Engage(t.Context(), "acme", "sb-1", "us", "n1", 1, "t"); err != nil {
		t.Fatal(err)
	}
	if err := s.Keep(t.Context(), "acme", "sb-1", "t", "g1", "f1", time.Now()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Claim(t.Context(), "acme", "sb-1", "g1", "f1", 2); !errors.Is(err, guard.ErrFenced) {
		t.Fatalf("inside the fence: %v", err)
	}
	claimed := uint64(0)
	for claimed == 0 { // until the fence has expired
		if claimed, err = s.Claim(t.Context(), "acme", "sb-1", "g1", "f1", 2); err != nil && !errors.Is(err, guard.ErrFenced) {
			t.Fatal(err)
		}
	}
	if err := s.Renew(t.Context(), "us", "n1"); err != nil {
		t.Fatal(err)
	}
	if err := s.Confirm(t.Context(), "acme", "sb-1", "us", "n1", 1, "t"); !errors.Is(err, guard.ErrTaken) {
		t.Errorf("a return after the claim: %v", err)
	}
	if err := s.Release(t.Context(), "acme", "sb-1", 1, "t"); !errors.Is(err, guard.ErrTaken) {
		t.Errorf("a release after the claim: %v", err)
	}
	if again, err := s.Claim(t.Context(), "acme", "sb-1", "g1", "f1", 2); err != nil || again != 2 {
		t.Errorf("the same claim again: %d, %v", again, err)
	}
	if e, err := s.Get(t.Context(), "acme", "sb-1"); err != nil || e.Claimed != 2 || e.Guard != "g1" {
		t.Errorf("the entry: %+v, %v", e, err)
	}
	// Another one, that ends well.
	if err := s.Engage(t.Context(), "acme", "sb-2", "us", "n1", 1, "t"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.Release(t.Context(), "acme", "sb-2", 1, "t"); err != nil {
			t.Errorf("a release: %v", err)
		}
	}
	if err := s.Keep(t.Context(), "acme", "sb-2", "t", "g1", "f1", time.Now()); !errors.Is(err, guard.ErrOver) {
		t.Errorf("a checkpoint after the release: %v", err)
	}
}

func open(t *testing.T, js jetstream.JetStream) *guard.Store {
	t.Helper()
	s, err := guard.Open(t.Context(), js)
	if err != nil {
		t.Fatal(err)
	}
	return s
}
