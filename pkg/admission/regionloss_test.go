package admission

import (
	"testing"
	"time"

	"github.com/sirocco-run/sirocco/pkg/fault"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/types/known/durationpb"
)

func TestOnRegionLoss(t *testing.T) {
	const keep, restore = siroccov1.OnRegionLoss_ON_REGION_LOSS_KEEP, siroccov1.OnRegionLoss_ON_REGION_LOSS_RESTORE
	for name, c := range map[string]struct {
		loss     siroccov1.OnRegionLoss
		interval time.Duration
		want     time.Duration
		bad      bool
	}{
		"nothing":                {},
		"keep":                   {loss: keep},
		"keep with an interval":  {loss: keep, interval: time.Minute, bad: true},
		"interval alone":         {interval: time.Minute, bad: true},
		"restore":                {loss: restore, want: time.Minute},
		"restore every 10 s":     {loss: restore, interval: 10 * time.Second, want: 10 * time.Second},
		"restore too often":      {loss: restore, interval: 9 * time.Second, bad: true},
		"restore hardly ever":    {loss: restore, interval: 61 * time.Minute, bad: true},
		"something that is none": {loss: 7, bad: true},
	} {
		req := &siroccov1.CreateSandboxRequest{OnRegionLoss: c.loss}
		if c.interval != 0 {
			req.CheckpointInterval = durationpb.New(c.interval)
		}
		spec, err := Normalize(req, DefaultLimits())
		if c.bad != (fault.CodeOf(err) == fault.InvalidArgument) {
			t.Errorf("%s: %v", name, err)
		}
		if got := spec.GetCheckpointInterval().AsDuration(); !c.bad && got != c.want {
			t.Errorf("%s: the interval is %v", name, got)
		}
	}
}

func TestCheckGuards(t *testing.T) {
	restore := func(regions ...string) *siroccov1.CreateSandboxRequest {
		return &siroccov1.CreateSandboxRequest{OnRegionLoss: siroccov1.OnRegionLoss_ON_REGION_LOSS_RESTORE, Regions: regions}
	}
	both := []string{"us", "eu"}
	for name, c := range map[string]struct {
		spec *siroccov1.CreateSandboxRequest
		all  []string
		bad  bool
	}{
		"anywhere":            {restore(), both, false},
		"both are allowed":    {restore("eu", "us"), both, false},
		"one is allowed":      {restore("eu"), both, true},
		"there is one":        {restore(), []string{"eu"}, true},
		"the other is none":   {restore("eu", "mars"), both, true},
		"it is to be kept":    {&siroccov1.CreateSandboxRequest{Regions: []string{"eu"}}, both, false},
		"kept, and only here": {&siroccov1.CreateSandboxRequest{}, []string{"eu"}, false},
	} {
		if err := CheckGuards(c.spec, c.all); c.bad != (err != nil) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
