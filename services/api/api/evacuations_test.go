package api_test

import (
	"testing"
	"time"

	"github.com/sirocco-run/sirocco/pkg/apikey"
	"github.com/sirocco-run/sirocco/pkg/evacuation"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/subject"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/sirocco-run/sirocco/services/api/api"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

// A drain is an order in the bucket, the same over every way in: a second one changes
// nothing, what is asked wrongly is refused with the field, and it can be cancelled once
// there is one.
func TestDrainIsAnOrder(t *testing.T) {
	r := start(t, api.Config{})
	nodes, err := r.js.KeyValue(t.Context(), subject.BucketNodes)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := proto.Marshal(&siroccov1.Node{Name: "n1", Region: "eu"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := nodes.Put(t.Context(), subject.NodeKey("eu", "n1"), raw); err != nil {
		t.Fatal(err)
	}
	store, err := evacuation.Open(t.Context(), r.js)
	if err != nil {
		t.Fatal(err)
	}
	var last string
	for i, tr := range r.transports("ops", r.key("ops", apikey.RoleOperator)) {
		call := func(procedure string, req, resp proto.Message) error {
			return tr.call(t.Context(), procedure, req, resp)
		}
		for i == 0 { // until the api has seen the node
			if err := call("NodeService/Cordon", &siroccov1.CordonNodeRequest{Name: "n1"}, &siroccov1.Node{}); err == nil {
				break
			} else if fault.CodeOf(err) != fault.NotFound {
				t.Fatal(err)
			}
		}
		if i == 0 {
			wantCode(t, tr.name, call("NodeService/GetDrain", &siroccov1.GetDrainRequest{Name: "n1"}, &siroccov1.Evacuation{}), fault.NotFound, "")
			wantCode(t, tr.name, call("NodeService/Drain", &siroccov1.DrainNodeRequest{Name: "n1", Cancel: true}, &siroccov1.Node{}), fault.NotFound, "")
		}
		wantCode(t, tr.name, call("NodeService/Drain", &siroccov1.DrainNodeRequest{Name: "n1", Over: durationpb.New(48 * time.Hour)}, &siroccov1.Node{}), fault.InvalidArgument, "over")
		wantCode(t, tr.name, call("NodeService/Drain", &siroccov1.DrainNodeRequest{Name: "n1", Stages: []float64{0.5, 0.4, 1}}, &siroccov1.Node{}), fault.InvalidArgument, "stages")
		wantCode(t, tr.name, call("NodeService/Drain", &siroccov1.DrainNodeRequest{Name: "no-such"}, &siroccov1.Node{}), fault.NotFound, "")
		wantCode(t, tr.name, call("RegionService/Evacuate", &siroccov1.EvacuateRegionRequest{Region: "eu"}, &siroccov1.Evacuation{}), fault.FailedPrecondition, "")
		wantCode(t, tr.name, call("RegionService/Evacuate", &siroccov1.EvacuateRegionRequest{Region: "mars"}, &siroccov1.Evacuation{}), fault.NotFound, "")

		if err := call("NodeService/Drain", &siroccov1.DrainNodeRequest{Name: "n1", Over: durationpb.New(time.Minute), EvictAfter: durationpb.New(time.Hour)}, &siroccov1.Node{}); err != nil {
			t.Fatalf("%s: %v", tr.name, err)
		}
		first := &siroccov1.Evacuation{}
		if err := call("NodeService/GetDrain", &siroccov1.GetDrainRequest{Name: "n1"}, first); err != nil {
			t.Fatalf("%s: %v", tr.name, err)
		}
		if first.GetId() == last || first.GetOver().AsDuration() != time.Minute || first.GetBy() != "ops" ||
			first.GetEvictAt().AsTime().Sub(first.GetBegun().AsTime()) != time.Hour || first.GetState() != siroccov1.EvacuationState_EVACUATION_STATE_ORDERED {
			t.Errorf("%s: %v", tr.name, first)
		}
		if err := call("NodeService/Drain", &siroccov1.DrainNodeRequest{Name: "n1"}, &siroccov1.Node{}); err != nil {
			t.Fatalf("%s: %v", tr.name, err)
		}
		if again, _, err := store.Get(t.Context(), "eu", "n1"); err != nil || !proto.Equal(again, first) {
			t.Errorf("%s: a second order made %v of %v, %v", tr.name, again, first, err)
		}
		if err := call("NodeService/Drain", &siroccov1.DrainNodeRequest{Name: "n1", Cancel: true}, &siroccov1.Node{}); err != nil {
			t.Fatalf("%s: %v", tr.name, err)
		}
		if e, _, err := store.Get(t.Context(), "eu", "n1"); err != nil || e.GetCancelled() == nil {
			t.Errorf("%s: %v, %v after it was cancelled", tr.name, e, err)
		}
		last = first.GetId()
	}
	for _, tr := range r.transports("acme", r.key("acme", apikey.RoleTenant)) {
		if tr.name == "bus" || tr.name == "bus-json" {
			continue // there the bus refuses
		}
		wantCode(t, tr.name, tr.call(t.Context(), "NodeService/GetDrain", &siroccov1.GetDrainRequest{Name: "n1"}, &siroccov1.Evacuation{}), fault.PermissionDenied, "")
		wantCode(t, tr.name, tr.call(t.Context(), "RegionService/Evacuate", &siroccov1.EvacuateRegionRequest{Region: "eu"}, &siroccov1.Evacuation{}), fault.PermissionDenied, "")
		wantCode(t, tr.name, tr.call(t.Context(), "RegionService/GetEvacuation", &siroccov1.GetEvacuationRequest{Region: "eu"}, &siroccov1.Evacuation{}), fault.PermissionDenied, "")
	}
}

func wantCode(t *testing.T, way string, err error, code fault.Code, field string) {
	t.Helper()
	if f := fault.From(err); f == nil || f.Code != code || f.Field != field || f.Message == "" {
		t.Errorf("%s: %v, want %s %s", way, err, code, field)
	}
}
