package evacuation

import (
	"time"

	"github.com/sirocco-run/sirocco/pkg/fault"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// What an order is filled in with, and its bounds.
const (
	DefaultOver       = 30 * time.Second
	DefaultErrorRate  = 0.02
	DefaultPause      = 2 * time.Second
	DefaultEvictAfter = 10 * time.Minute

	maxOver       = 24 * time.Hour
	maxEvictAfter = 7 * 24 * time.Hour
	maxPauseLimit = time.Minute
	maxAtOnce     = 512
	maxStages     = 20
)

// defaultStages are the shares that have begun to move when each stage ends.
func defaultStages() []float64 { return []float64{0.2, 0.6, 1} }

// asked is what requests for a region and for a node have in common.
type asked interface {
	GetOver() *durationpb.Duration
	GetStages() []float64
	GetMaxErrorRate() float64
	GetMaxPause() *durationpb.Duration
	GetAtOnce() int32
}

// OfRegion makes the order that a request asks for. Error: InvalidArgument.
func OfRegion(req *siroccov1.EvacuateRegionRequest, by string, now time.Time) (*siroccov1.Evacuation, error) {
	return order(&siroccov1.Evacuation{Region: req.GetRegion(), By: by}, req, req.MaxErrorRate != nil, now)
}

// OfNode makes the order that a request asks for. Error: InvalidArgument.
func OfNode(req *siroccov1.DrainNodeRequest, region, by string, now time.Time) (*siroccov1.Evacuation, error) {
	e, err := order(&siroccov1.Evacuation{Region: region, Node: req.GetName(), By: by}, req, req.MaxErrorRate != nil, now)
	if err != nil {
		return nil, err
	}
	after := DefaultEvictAfter
	if d := req.GetEvictAfter(); d != nil {
		if after = d.AsDuration(); !d.IsValid() || after < 0 || after > maxEvictAfter {
			return nil, fault.Invalid("evict_after", "%v is out of range: 0 to %v", after, maxEvictAfter)
		}
	}
	e.EvictAt = timestamppb.New(now.Add(after))
	return e, nil
}

func order(e *siroccov1.Evacuation, req asked, hasRate bool, now time.Time) (*siroccov1.Evacuation, error) {
	over, pause, rate, stages := DefaultOver, DefaultPause, DefaultErrorRate, req.GetStages()
	if d := req.GetOver(); d != nil {
		if over = d.AsDuration(); !d.IsValid() || over < 0 || over > maxOver {
			return nil, fault.Invalid("over", "%v is out of range: 0 to %v", over, maxOver)
		}
	}
	if d := req.GetMaxPause(); d != nil {
		if pause = d.AsDuration(); !d.IsValid() || pause <= 0 || pause > maxPauseLimit {
			return nil, fault.Invalid("max_pause", "%v is out of range: up to %v", pause, maxPauseLimit)
		}
	}
	if hasRate {
		if rate = req.GetMaxErrorRate(); !(rate >= 0 && rate <= 1) { // not a number is neither
			return nil, fault.Invalid("max_error_rate", "%v is out of range: 0 to 1", rate)
		}
	}
	if n := req.GetAtOnce(); n < 0 || n > maxAtOnce {
		return nil, fault.Invalid("at_once", "%d is out of range: 0 to %d", n, maxAtOnce)
	}
	if len(stages) == 0 {
		stages = defaultStages()
	}
	if err := checkStages(stages); err != nil {
		return nil, err
	}
	e.Id, e.Begun, e.Over, e.Stages = newID(), timestamppb.New(now), durationpb.New(over), stages
	e.MaxErrorRate, e.MaxPause, e.AtOnce = rate, durationpb.New(pause), req.GetAtOnce()
	e.State = siroccov1.EvacuationState_EVACUATION_STATE_ORDERED
	return e, nil
}

func checkStages(stages []float64) error {
	if len(stages) > maxStages {
		return fault.Invalid("stages", "there are %d: %d at most", len(stages), maxStages)
	}
	before := 0.0
	for _, share := range stages {
		if !(share > before && share <= 1) {
			return fault.Invalid("stages", "%v does not rise from above 0 to 1", stages)
		}
		before = share
	}
	if before != 1 {
		return fault.Invalid("stages", "the last is %v: it must be 1", before)
	}
	return nil
}

// Over says whether an evacuation has ended, well or not.
func Over(e *siroccov1.Evacuation) bool {
	switch e.GetState() {
	case siroccov1.EvacuationState_EVACUATION_STATE_DONE, siroccov1.EvacuationState_EVACUATION_STATE_INCOMPLETE,
		siroccov1.EvacuationState_EVACUATION_STATE_CANCELLED:
		return true
	}
	return false
}

// Settled says whether nothing is left to do about an evacuation: it is over, and not
// cancelled after that.
func Settled(e *siroccov1.Evacuation) bool {
	return Over(e) && (e.GetCancelled() == nil || e.GetState() == siroccov1.EvacuationState_EVACUATION_STATE_CANCELLED)
}

// Left is how many sandboxes could not be moved.
func Left(e *siroccov1.Evacuation) int64 {
	var n int64
	for _, l := range e.GetLeft() {
		n += l.GetCount()
	}
	return n
}

// Cancel takes an order back. Errors: ErrNoChange if that has been done already.
func Cancel(e *siroccov1.Evacuation, now time.Time) error {
	if e.GetCancelled() != nil {
		return ErrNoChange
	}
	e.Cancelled = timestamppb.New(now)
	return nil
}

// Resume ends a pause. Errors: ErrNoChange if there is none.
func Resume(e *siroccov1.Evacuation, now time.Time) error {
	if e.GetState() != siroccov1.EvacuationState_EVACUATION_STATE_PAUSED || e.GetCancelled() != nil {
		return ErrNoChange
	}
	e.Resumed = timestamppb.New(now)
	return nil
}
