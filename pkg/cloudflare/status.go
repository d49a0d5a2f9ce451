package cloudflare

import (
	"context"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/cloudflare/plan"
	"github.com/sirocco-run/sirocco/pkg/lease"
	"github.com/sirocco-run/sirocco/pkg/subject"
)

// Status is what is known of Cloudflare in a region, for people.
type Status struct {
	// Writer is the publisher that writes now; empty if none does: none runs, or
	// they are off.
	Writer string
	// Weights are what Cloudflare holds, 0 to 1, by region. A region that is missing
	// has none of its own.
	Weights map[string]float64
	// Wanted are the weights that were last to be sent, by region.
	Wanted map[string]float64
	// Drained are the regions whose pools are switched off.
	Drained []string
	// Records are the DNS records that are kept.
	Records []plan.Record
	// Sent is when Cloudflare last confirmed a write.
	Sent time.Time
	// Checked is when each part was last confirmed; one that is missing is not
	// known, because a request failed or another region wrote.
	Checked map[plan.Part]time.Time
	// NotBefore is until when Cloudflare is left alone, after errors or on its own
	// request.
	NotBefore time.Time
	// Problems are the errors of the parts whose last request failed.
	Problems map[plan.Part]plan.Problem
	// Untold is what can't be sent as it was wanted.
	Untold []string
}

// ReadStatus reads the status of a region from its bus; any process may.
func ReadStatus(ctx context.Context, js jetstream.JetStream) (Status, error) {
	db, err := openStore(ctx, js)
	if err != nil {
		return Status{}, err
	}
	st, err := db.load(ctx)
	if err != nil {
		return Status{}, err
	}
	s := Status{
		Records: st.Have.Records, Sent: st.Sent, Checked: st.Checked,
		NotBefore: st.NotBefore, Problems: st.Problems, Untold: st.Untold,
		Weights: byRegion(st.Pools, st.Have.Weights), Wanted: byRegion(st.Pools, st.Want.Weights),
	}
	for region, pool := range st.Pools {
		if on, known := st.Have.Enabled[pool]; known && !on {
			s.Drained = append(s.Drained, region)
		}
	}
	slices.Sort(s.Drained)
	s.Writer, err = lease.Holder(ctx, js, subject.KeyCloudflare)
	return s, err
}

func byRegion(pools map[string]string, weights map[string]int) map[string]float64 {
	regions := map[string]float64{}
	for region, pool := range pools {
		if w, ok := weights[pool]; ok && w >= 0 {
			regions[region] = float64(w) / 100
		}
	}
	return regions
}
