package bustest_test

import (
	"context"
	"testing"
	"time"

	"github.com/sirocco-run/sirocco/pkg/bustest"
	"github.com/sirocco-run/sirocco/pkg/topology"
)

func TestStartGivesAWholeRegion(t *testing.T) {
	nc, js := bustest.Start(t)
	if !nc.IsConnected() {
		t.Fatal("not connected")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := topology.Wait(ctx, js); err != nil {
		t.Fatal(err)
	}
	// Ensuring again changes nothing and is no error.
	if err := topology.Ensure(ctx, js, topology.Options{}); err != nil {
		t.Fatal(err)
	}
}
