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
