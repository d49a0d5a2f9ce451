package bus_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/bustest"
)

// Whoever writes second is told so, on one server and on a cluster, whichever way
// the write is made.
func TestConflicts(t *testing.T) {
	for _, replicas := range []int{1, 3} {
		t.Run(fmt.Sprintf("%d replicas", replicas), func(t *testing.T) {
			servers := []*server.Server{}
			if replicas == 1 {
				servers = append(servers, bustest.Server(t, nil))
			} else {
				servers = bustest.Cluster(t, replicas)
			}
			_, js := bustest.Connect(t, servers[0])
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			kv, err := js.CreateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: "b", Storage: jetstream.FileStorage, Replicas: replicas})
			if err != nil {
				t.Fatal(err)
			}
			first, err := kv.Create(ctx, "k", []byte("1"))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := kv.Update(ctx, "k", []byte("2"), first); err != nil {
				t.Fatal(err)
			}
			_, created := kv.Create(ctx, "k", []byte("3"))
			_, updated := kv.Update(ctx, "k", []byte("3"), first)
			_, published := js.Publish(ctx, "$KV.b.k", []byte("3"), jetstream.WithExpectLastSequencePerSubject(first))
			for way, err := range map[string]error{
				"create": created, "update": updated, "publish": published,
				"delete": kv.Delete(ctx, "k", jetstream.LastRevision(first)),
			} {
				if !bus.IsConflict(err) {
					t.Errorf("%s: %v is no conflict", way, err)
				}
			}
			if err := kv.Delete(ctx, "k"); err != nil {
				t.Fatal(err)
			}
			createAtOnce(ctx, t, kv)
			if _, err := kv.Get(ctx, "nothing"); err == nil || bus.IsConflict(err) {
				t.Errorf("what is not there: %v", err)
			}
		})
	}
	for _, err := range []error{nil, context.DeadlineExceeded, jetstream.ErrKeyNotFound, errors.New("x"), &jetstream.APIError{ErrorCode: jetstream.JSErrCodeStreamNotFound}} {
		if bus.IsConflict(err) {
			t.Errorf("%v is a conflict", err)
		}
	}
}

// createAtOnce has many create what was deleted: one of them does.
func createAtOnce(ctx context.Context, t *testing.T, kv jetstream.KeyValue) {
	t.Helper()
	errs := make([]error, 20)
	var all sync.WaitGroup
	for i := range errs {
		all.Go(func() { _, errs[i] = kv.Create(ctx, "k", []byte("again")) })
	}
	all.Wait()
	made := 0
	for _, err := range errs {
		if err == nil {
			made++
		} else if !bus.IsConflict(err) {
			t.Errorf("create at once: %v is no conflict", err)
		}
	}
	if made != 1 {
		t.Errorf("created %d times", made)
	}
}
