package admission

import (
	"slices"
	"time"

	"github.com/sirocco-run/sirocco/pkg/fault"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

// Bounds of checkpoint_interval.
const (
	minCheckpoint     = 10 * time.Second
	maxCheckpoint     = time.Hour
	defaultCheckpoint = time.Minute
)

// Restored says whether a sandbox is to be brought up elsewhere if its region is lost.
func Restored(s *siroccov1.CreateSandboxRequest) bool {
	return s.GetOnRegionLoss() == siroccov1.OnRegionLoss_ON_REGION_LOSS_RESTORE
}

func regionLoss(s *siroccov1.CreateSandboxRequest, _ Limits) error {
	if v := s.OnRegionLoss; v < siroccov1.OnRegionLoss_ON_REGION_LOSS_UNSPECIFIED || v > siroccov1.OnRegionLoss_ON_REGION_LOSS_RESTORE {
		return fault.Invalid("on_region_loss", "%d is not something that may become of it", v)
	}
	if !Restored(s) {
		if s.CheckpointInterval != nil {
			return fault.Invalid("checkpoint_interval", "checkpoints go with on_region_loss restore only")
		}
		return nil
	}
	var err error
	s.CheckpointInterval, err = duration("checkpoint_interval", s.CheckpointInterval, defaultCheckpoint, minCheckpoint, maxCheckpoint)
	return err
}

// CheckGuards refuses a request for a sandbox that is to be brought up elsewhere if its
// region is lost, where there is no such place. all are the regions that there are.
func CheckGuards(s *siroccov1.CreateSandboxRequest, all []string) error {
	if !Restored(s) {
		return nil
	}
	allowed := 0
	for _, r := range all {
		if len(s.Regions) == 0 || slices.Contains(s.Regions, r) {
			allowed++
		}
	}
	if allowed < 2 {
		return fault.Invalid("on_region_loss", "there is no other region that the request allows, in which it could be restored")
	}
	return nil
}
