package invariants

import (
	"testing"

	nodev1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/node/v1"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

// A sandbox that has moved from eu to us, and everything that can be wrong about it.
func TestAcross(t *testing.T) {
	type world struct {
		left, there *siroccov1.Sandbox // its records in eu and in us
		eu, us      []*nodev1.InventoryItem
	}
	ended := func(sb *siroccov1.Sandbox) {
		sb.State, sb.End = siroccov1.State_STATE_STOPPED, &siroccov1.End{Cause: siroccov1.Cause_CAUSE_USER}
	}
	for name, c := range map[string]struct {
		spoil func(*world)
		want  []string
	}{
		"all is well":        {func(*world) {}, nil},
		"both have ended":    {func(w *world) { ended(w.left); ended(w.there); w.us = nil }, nil},
		"forgotten in eu":    {func(w *world) { w.left = nil }, nil},
		"two records":        {func(w *world) { w.left.Placement.Region = "eu" }, []string{"is in eu and in us"}},
		"two executions":     {func(w *world) { w.eu = w.us[:1] }, []string{"runs in eu and in us"}},
		"did not arrive":     {func(w *world) { w.there = nil }, []string{"is in no region"}},
		"ended where it is":  {func(w *world) { ended(w.there) }, []string{"is in no region"}},
		"ended where it was": {func(w *world) { ended(w.left) }, []string{"has ended in eu and is us's"}},
		"an old epoch":       {func(w *world) { w.left.Placement.Epoch-- }, []string{"eu takes it to be in us at epoch 1"}},
		"the wrong region":   {func(w *world) { w.left.Placement.Region = "ap" }, []string{"eu takes it to be in ap"}},
	} {
		w := &world{left: running(one), there: running(one), us: []*nodev1.InventoryItem{{Id: one, Epoch: 2}, {Id: two, Epoch: 1}}}
		for _, sb := range []*siroccov1.Sandbox{w.left, w.there} {
			sb.Placement = &siroccov1.Placement{Region: "us", Node: "us-1", Epoch: 2}
		}
		other := running(two)
		other.Placement.Region = "us"
		c.spoil(w)
		found := map[string]Found{
			"eu": {Inventories: map[string][]*nodev1.InventoryItem{"eu-1": w.eu}},
			"us": {Records: []*siroccov1.Sandbox{other}, Inventories: map[string][]*nodev1.InventoryItem{"us-1": w.us}},
		}
		for region, sb := range map[string]*siroccov1.Sandbox{"eu": w.left, "us": w.there} {
			if sb != nil {
				f := found[region]
				f.Records = append(f.Records, sb)
				found[region] = f
			}
		}
		expect(t, name, Across(found), c.want...)
	}
}
