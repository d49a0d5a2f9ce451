package regions

import (
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/invariants"
	"github.com/sirocco-run/sirocco/pkg/rundir"
	"github.com/sirocco-run/sirocco/tests/platform"
)

// jetStream speaks to a region's bus as a service.
func jetStream(t *testing.T, w *platform.Regions, region int) (*nats.Conn, jetstream.JetStream) {
	t.Helper()
	nc, err := platform.DialBus(w.Data(), w.Ready[region].Bus)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return nc, js
}

// checker looks at all regions of a platform with real sandboxes: at their records, what
// their nodes run, and what of it is on this machine.
func checker(t *testing.T, w *platform.Regions) invariants.Regions {
	t.Helper()
	all := invariants.Regions{}
	for i, ready := range w.Ready {
		c, err := w.Client(i, "")
		if err != nil {
			t.Fatal(err)
		}
		var nodes []invariants.Node
		for _, name := range nodesOf(t, c) {
			nodes = append(nodes, invariants.Node{Name: name, RunDir: rundir.Of(name)})
		}
		c.Close()
		nc, _ := jetStream(t, w, i)
		if all[ready.Region], err = invariants.New(t.Context(), nc, nodes); err != nil {
			t.Fatal(err)
		}
	}
	return all
}
