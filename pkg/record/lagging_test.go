package record_test

import (
	"context"
	"testing"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/bustest"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/record"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

// lagging is a bus whose buckets are read from a server of the cluster that has
// not heard of any key yet.
type lagging struct{ jetstream.JetStream }

func (l lagging) KeyValue(ctx context.Context, bucket string) (jetstream.KeyValue, error) {
	kv, err := l.JetStream.KeyValue(ctx, bucket)
	return unheard{kv}, err
}

// behind is a bus whose buckets are read from a server that has only heard of the first
// revision of each key.
type behind struct{ jetstream.JetStream }

func (b behind) KeyValue(ctx context.Context, bucket string) (jetstream.KeyValue, error) {
	kv, err := b.JetStream.KeyValue(ctx, bucket)
	return first{kv}, err
}

type first struct{ jetstream.KeyValue }

func (f first) Get(ctx context.Context, key string) (jetstream.KeyValueEntry, error) {
	history, err := f.History(ctx, key)
	if err != nil {
		return nil, err
	}
	return history[0], nil
}

type unheard struct{ jetstream.KeyValue }

func (unheard) Get(context.Context, string) (jetstream.KeyValueEntry, error) {
	return nil, jetstream.ErrKeyNotFound
}

// A server that lags behind makes no record look as if it were gone: agents end
// sandboxes that have none.
func TestLaggingServer(t *testing.T) {
	_, js := bustest.Start(t)
	store, err := record.Open(t.Context(), lagging{js})
	if err != nil {
		t.Fatal(err)
	}
	sb, _, err := accept(t, store, "key", &siroccov1.CreateSandboxRequest{Command: []string{"true"}})
	if err != nil {
		t.Fatal(err)
	}
	got, err := store.Get(t.Context(), "acme", sb.GetId())
	if err != nil || got.GetId() != sb.GetId() || got.GetRevision() != sb.GetRevision() {
		t.Fatalf("got %v, %v", got, err)
	}
	if _, err := store.Update(t.Context(), "acme", sb.GetId(), nil, lifecycle.SetTags{Tags: map[string]string{"a": "b"}}); err != nil {
		t.Error(err)
	}
	if err := store.Delete(t.Context(), "acme", sb.GetId()); err != nil {
		t.Fatal(err)
	}
	if got, err := store.Get(t.Context(), "acme", sb.GetId()); fault.CodeOf(err) != fault.NotFound {
		t.Errorf("deleted: %v, %v", got, err)
	}
}

// Who was told of a change gets it, whichever server answers: an agent that does not see
// that a sandbox is to be moved would leave its clients waiting.
func TestToldBeforeTheServerHeard(t *testing.T) {
	_, js := bustest.Start(t)
	store, err := record.Open(t.Context(), behind{js})
	if err != nil {
		t.Fatal(err)
	}
	known, _, err := accept(t, store, "key", &siroccov1.CreateSandboxRequest{Command: []string{"true"}})
	if err != nil {
		t.Fatal(err)
	}
	written, err := store.Update(t.Context(), "acme", known.GetId(), known, lifecycle.SetTags{Tags: map[string]string{"a": "b"}})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := store.Get(t.Context(), "acme", known.GetId()); err != nil || got.GetRevision() != known.GetRevision() {
		t.Fatalf("the server is not behind: %v, %v", got, err)
	}
	for _, than := range []uint64{known.GetRevision(), written.GetRevision()} {
		got, err := store.GetNewer(t.Context(), "acme", known.GetId(), than)
		if err != nil || got.GetRevision() != written.GetRevision() {
			t.Errorf("newer than %d: %v, %v; want revision %d", than, got, err, written.GetRevision())
		}
	}
}
