package record_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/sirocco-run/sirocco/pkg/bustest"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/record"
	"github.com/sirocco-run/sirocco/pkg/topology"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/proto"
)

// Writers who come second are told apart from those whom the bus does not answer where
// each record is on three servers too, which report it in another way than one does.
func TestClusterTellsWhoWasSecond(t *testing.T) {
	servers := bustest.Cluster(t, 3)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var stores []*record.Store
	for i, s := range servers {
		_, js := bustest.Connect(t, s)
		if i == 0 {
			if err := topology.Ensure(ctx, js, topology.Options{Replicas: len(servers)}); err != nil {
				t.Fatal(err)
			}
		}
		store, err := record.Open(ctx, js)
		if err != nil {
			t.Fatal(err)
		}
		stores = append(stores, store)
	}
	named := &siroccov1.CreateSandboxRequest{Name: "web"}
	sb, _, err := accept(t, stores[0], "k", named)
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for i := range 12 {
		all.Go(func() {
			port := &siroccov1.Port{Port: uint32(1000 + i), Protocol: siroccov1.Protocol_PROTOCOL_HTTPS}
			step := lifecycle.OpenTunnel{Port: port, Tunnel: front.Tunnel(sb.GetId(), port, 0)}
			if _, err := stores[i%len(stores)].Update(ctx, "acme", sb.GetId(), sb, step); err != nil {
				t.Errorf("one of many updates: %v", err)
			}
		})
	}
	all.Wait()
	if _, err := stores[1].Swap(ctx, proto.CloneOf(sb), false); !errors.Is(err, record.ErrConflict) {
		t.Errorf("a swap of an old revision: %v", err)
	}
	if _, err := stores[2].Create(ctx, proto.CloneOf(sb)); !errors.Is(err, record.ErrConflict) {
		t.Errorf("the creation of what is there: %v", err)
	}

	// The name's holder ends, and many want the name: one gets it.
	if _, err := stores[0].Update(ctx, "acme", sb.GetId(), nil, lifecycle.Stop{Cause: siroccov1.Cause_CAUSE_USER}); err != nil {
		t.Fatal(err)
	}
	errs := make([]error, 6)
	for i := range errs {
		all.Go(func() { _, _, errs[i] = accept(t, stores[i%len(stores)], fmt.Sprint("heir-", i), named) })
	}
	all.Wait()
	heirs := 0
	for _, err := range errs {
		if err == nil {
			heirs++
		} else if fault.CodeOf(err) != fault.AlreadyExists {
			t.Errorf("one of many who want a name: %v", err)
		}
	}
	if heirs != 1 {
		t.Errorf("the name went to %d", heirs)
	}
}
