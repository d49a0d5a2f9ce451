package invariants

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	nodev1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/node/v1"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

// Regions are the regions between which sandboxes move, by name: each is checked by
// itself, and all of them against each other.
type Regions map[string]*Region

// Found is what one look at a region has found.
type Found struct {
	// Records are all of its bucket, those of ended sandboxes too.
	Records []*siroccov1.Sandbox
	// Inventories are what its nodes say they run.
	Inventories map[string][]*nodev1.InventoryItem
}

// Broken is Region.Broken for all of them. Lines about one begin with its name.
func (all Regions) Broken(ctx context.Context) []string {
	found := make(map[string]Found, len(all))
	var broken []string
	var mu sync.Mutex
	var looking sync.WaitGroup
	for name, r := range all {
		looking.Go(func() {
			there, lines := r.look(ctx)
			mu.Lock()
			defer mu.Unlock()
			for _, line := range lines {
				broken = append(broken, name+": "+line)
			}
			if there != nil {
				found[name] = *there
			}
		})
	}
	looking.Wait()
	if len(found) == len(all) {
		broken = append(broken, Across(found)...)
	}
	slices.Sort(broken)
	return broken
}

// Settled is Region.Settled for all of them.
func (all Regions) Settled(ctx context.Context, limit time.Duration) []string {
	return settled(ctx, limit, all.Broken)
}

// Across compares regions with each other: no sandbox has a record of its own, or runs,
// in two of them, and what one of them left behind in another leads to it.
func Across(found map[string]Found) []string {
	homes, epochs := map[string]string{}, map[string]uint64{}
	var broken []string
	names := slices.Sorted(maps.Keys(found))
	for _, region := range names {
		for _, sb := range found[region].Records {
			if lifecycle.Ended(sb.GetState()) || lifecycle.Shadow(sb, region) {
				continue
			}
			if other := homes[sb.GetId()]; other != "" {
				broken = append(broken, fmt.Sprintf("%s is in %s and in %s", sb.GetId(), other, region))
			}
			homes[sb.GetId()], epochs[sb.GetId()] = region, sb.GetPlacement().GetEpoch()
		}
	}
	runs := map[string]string{}
	for _, region := range names {
		for _, sb := range found[region].Records {
			id, home := sb.GetId(), homes[sb.GetId()]
			switch {
			case home == region || sb.GetPlacement().GetRegion() == region && !lifecycle.Ended(sb.GetState()):
			case lifecycle.Ended(sb.GetState()):
				if home != "" {
					broken = append(broken, fmt.Sprintf("%s has ended in %s and is %s's", id, region, home))
				}
			case home == "":
				broken = append(broken, fmt.Sprintf("%s has left %s for %s, and is in no region", id, region, sb.GetPlacement().GetRegion()))
			case home != sb.GetPlacement().GetRegion() || epochs[id] != sb.GetPlacement().GetEpoch():
				broken = append(broken, fmt.Sprintf("%s is in %s at epoch %d, and %s takes it to be in %s at epoch %d",
					id, home, epochs[id], region, sb.GetPlacement().GetRegion(), sb.GetPlacement().GetEpoch()))
			}
		}
		for _, items := range found[region].Inventories {
			for _, item := range items {
				if other := runs[item.GetId()]; other != "" && other != region {
					broken = append(broken, fmt.Sprintf("%s runs in %s and in %s", item.GetId(), other, region))
				}
				runs[item.GetId()] = region
			}
		}
	}
	return broken
}
