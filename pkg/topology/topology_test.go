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
