package api_test

import (
	"testing"
	"time"

	"github.com/sirocco-run/sirocco/pkg/apikey"
	"github.com/sirocco-run/sirocco/pkg/subject"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/sirocco-run/sirocco/services/api/api"
	"google.golang.org/protobuf/proto"
)

// A region without others is listed with what it says of itself, and has all traffic,
// whatever its controller, which may remember others, has made of that.
func TestOnlyRegion(t *testing.T) {
	r := start(t, api.Config{})
	tr := r.transports("ops", r.key("ops", apikey.RoleOperator))[0]
	list := func() []*siroccov1.Region {
		t.Helper()
		resp := &siroccov1.ListRegionsResponse{}
		if err := tr.call(t.Context(), "RegionService/List", &siroccov1.ListRegionsRequest{}, resp); err != nil {
			t.Fatal(err)
		}
		return resp.GetRegions()
	}
	alone := &siroccov1.Region{Name: "eu", Here: true, Alive: true, Weight: 1, Score: 1, Level: 1, Cause: "steady"}
	if got := list(); len(got) != 1 || !proto.Equal(got[0], alone) {
		t.Errorf("before its controller has spoken: %v", got)
	}
	alone.Score, alone.Reasons, alone.Report = 0.7, []string{"creates fail"}, &siroccov1.RegionReport{Nodes: 3}
	said, err := proto.Marshal(&siroccov1.RegionWeights{Regions: []*siroccov1.Region{
		{Name: "eu", Score: 0.7, Level: 0.5, Weight: 0.2, Cause: "draining", Reasons: alone.Reasons, Report: alone.Report},
		{Name: "us", Score: 1, Level: 1, Weight: 0.8, Cause: "steady"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	bucket, err := r.js.KeyValue(t.Context(), subject.BucketRegions)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bucket.Put(t.Context(), subject.RegionKey(subject.RegionWeights, "eu"), said); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(wait); ; {
		got := list()
		if len(got) == 1 && proto.Equal(got[0], alone) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("afterwards: %v", got)
		}
	}
}
