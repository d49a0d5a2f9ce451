package topology_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/bustest"
	"github.com/sirocco-run/sirocco/pkg/topology"
)

// TestTooLittleDisk: the error says how much is wanted and what to do, keeps
// the server's own, and following it helps.
func TestTooLittleDisk(t *testing.T) {
	_, js := bustest.Connect(t, bustest.Server(t, func(o *server.Options) { o.JetStreamMaxStore = 6 << 30 }))
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	err := topology.Ensure(ctx, js, topology.Options{})
	var api *jetstream.APIError
	if !errors.As(err, &api) || api.ErrorCode != 10047 {
		t.Fatalf("want the server's error 10047 inside, got %v", err)
	}
	for _, want := range []string{"too little disk", "13.0 GiB", "--event-bytes (now 8.0 GiB)", "ensure stream", "insufficient storage resources"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in: %v", want, err)
		}
	}
	if err := topology.Ensure(ctx, js, topology.Options{EventBytes: 512 << 20}); err != nil {
		t.Errorf("with less for the events: %v", err)
	}
}

// What can be made again is not synced with each write; everything else is. How a
// stream was made stays, and Ensure again, with more replicas too, is no error
// about it.
func TestOnlyWhatIsDerivedIsAsync(t *testing.T) {
	_, js := bustest.Connect(t, bustest.Server(t, nil))
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	for range 2 {
		if err := topology.Ensure(ctx, js, topology.Options{}); err != nil {
			t.Fatal(err)
		}
	}
	streams := js.ListStreams(ctx)
	for info := range streams.Info() {
		derived := info.Config.Name == "SIROCCO_EVT" || info.Config.Name == "KV_sirocco-nodes"
		if async := info.Config.PersistMode == jetstream.AsyncPersistMode; async != derived {
			t.Errorf("%s: async %v", info.Config.Name, async)
		}
	}
	if err := streams.Err(); err != nil {
		t.Fatal(err)
	}
}
