package record_test

import (
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/sirocco-run/sirocco/pkg/bustest"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/peer"
	"github.com/sirocco-run/sirocco/pkg/record"
	"github.com/sirocco-run/sirocco/pkg/topology"
)

// TestRecordsOfOtherRegions: those of a region are opened once, and one that is away, or
// that nobody named, is told at once.
func TestRecordsOfOtherRegions(t *testing.T) {
	server := bustest.Server(t, nil)
	_, js := bustest.Connect(t, server)
	if err := topology.Ensure(t.Context(), js, topology.Options{Replicas: 1}); err != nil {
		t.Fatal(err)
	}
	urls := map[string]string{"us": server.ClientURL(), "ap": "nats://127.0.0.1:1"}
	set := peer.NewSet("eu", urls, func(url string) (*nats.Conn, error) {
		return nats.Connect(url, nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1))
	})
	t.Cleanup(set.Close)
	peers := record.NewPeers(set)

	first, err := peers.Of(t.Context(), "us")
	if err != nil {
		t.Fatal(err)
	}
	if again, err := peers.Of(t.Context(), "us"); err != nil || again != first {
		t.Errorf("the second time: %p and %v, at first %p", again, err, first)
	}
	if _, err := peers.Of(t.Context(), "ap"); fault.CodeOf(err) != fault.Unavailable {
		t.Errorf("a region that is away: %v", err)
	}
	if _, err := peers.Of(t.Context(), "mars"); err == nil {
		t.Error("a region that is no peer has records")
	}
}
