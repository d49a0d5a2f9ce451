package evacuation

import (
	"fmt"
	"math"
	"strings"
	"time"

	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

const (
	// atOncePerNode is how many moves may be under way for each node that is emptied.
	atOncePerNode = 4
	// forgiven is how many failures, and how many slow moves, a stage may always have:
	// one of a few would be a large share.
	forgiven = 1
	// slowShare is the share of moves that may be slow: the limit is that of the p99.
	slowShare = 0.01
	// firstPause is how long the first pause is; each is twice the one before, up to
	// maxDoublings.
	firstPause   = 15 * time.Second
	maxDoublings = 4
)

// Seen is what has become of the sandboxes that an evacuation is about. Each of them is
// in exactly one of Fresh, Again, UnderWay, GivenUp, Barred, Ending and Moved, or has ended.
type Seen struct {
	// Fresh are those that nobody has tried to move yet; of these Ready could begin
	// now: they run, and there is a place to go to.
	Fresh, Ready int
	// Again are those whose move has failed and is tried again; of these Due now.
	Again, Due int
	// UnderWay are those whose move has been asked for and has not ended.
	UnderWay int
	// GivenUp have been tried often enough; Barred can't be moved at all. Left gives
	// the reasons of both.
	GivenUp, Barred int
	Left            []*siroccov1.EvacuationLeft
	// Ending are those that are about to end by themselves, or because they were told to.
	Ending int
	// Moved are the sandboxes that were moved; Failed and Slow the moves that failed,
	// and that took longer than allowed, since the order was given.
	Moved, Failed, Slow int64
	// P50 and P99 are of how long moves stopped their sandbox.
	P50, P99 time.Duration
	// Nodes is how many nodes are emptied.
	Nodes int
	// Hindrance says why nothing is ready although something is fresh; LastFailure what
	// the newest failure was. Both are for people.
	Hindrance, LastFailure string
	// GivenBack: the region has what a cancelled order has taken from it.
	GivenBack bool
}

func (s Seen) here() int { return s.Fresh + s.Again + s.UnderWay + s.GivenUp + s.Barred + s.Ending }

// movable are all that are, or were, to be moved; begun those for which that has begun.
func (s Seen) movable() int { return s.begun() + s.Fresh }
func (s Seen) begun() int   { return int(s.Moved) + s.UnderWay + s.Again + s.GivenUp }

// Decision is what to do now.
type Decision struct {
	// New and Again are how many moves of fresh sandboxes, and of those that were tried
	// before, may begin now.
	New, Again int
	// Share is how much of its level before the order a region may have.
	Share float64
	// GiveBack: the region is to get back what it had before.
	GiveBack bool
	// Evict: what is on the node is to get its eviction notice.
	Evict bool
}

// Step says what to do about an evacuation that has come as far as e says, and how far
// it has come then. It changes nothing that it is given.
func Step(e *siroccov1.Evacuation, s Seen, now time.Time) (*siroccov1.Evacuation, Decision) {
	if Settled(e) {
		return e, Decision{Share: share(e)}
	}
	p := &progress{Evacuation: proto.CloneOf(e), seen: s, now: now}
	p.count()
	d := p.decide()
	if d.GiveBack {
		d.Share = 1
	} else {
		d.Share = share(p.Evacuation)
	}
	return p.Evacuation, d
}

// share is what of its level a region has left by the stage.
func share(e *siroccov1.Evacuation) float64 {
	if e.GetState() == siroccov1.EvacuationState_EVACUATION_STATE_CANCELLED {
		return 1
	}
	return 1 - e.GetStages()[min(int(e.GetStage()), len(e.GetStages())-1)]
}

type progress struct {
	*siroccov1.Evacuation
	seen Seen
	now  time.Time
}

func (p *progress) count() {
	s := p.seen
	p.Moved, p.Here, p.UnderWay = s.Moved, int64(s.here()), int64(s.UnderWay)
	p.Failed, p.Slow, p.Left = s.Failed, s.Slow, s.Left
	if s.Moved > 0 {
		p.PauseP50, p.PauseP99 = durationpb.New(s.P50), durationpb.New(s.P99)
	}
}

func (p *progress) decide() Decision {
	if p.GetCancelled() != nil {
		return p.cancel()
	}
	if p.GetState() == siroccov1.EvacuationState_EVACUATION_STATE_ORDERED {
		p.enter(siroccov1.EvacuationState_EVACUATION_STATE_MOVING, "")
		p.begin(0)
	}
	if p.GetEvictAt() != nil && !p.GetEvictAt().AsTime().After(p.now) {
		return p.evict()
	}
	if p.GetNode() != "" && p.seen.here() == 0 {
		return p.end()
	}
	if p.GetState() == siroccov1.EvacuationState_EVACUATION_STATE_PAUSED && !p.resume() {
		return Decision{}
	}
	if why := p.bad(); why != "" {
		p.Paused, p.Pauses = timestamppb.New(p.now), p.Pauses+1
		p.enter(siroccov1.EvacuationState_EVACUATION_STATE_PAUSED, why)
		return Decision{}
	}
	if s := p.seen; p.GetNode() != "" && s.Fresh+s.Again+s.UnderWay+s.Ending == 0 {
		return p.end() // a region has stages for the sake of what is new, too
	}
	if p.passed() {
		if int(p.GetStage()) == len(p.GetStages())-1 {
			return p.end()
		}
		p.begin(p.GetStage() + 1)
	}
	p.enter(siroccov1.EvacuationState_EVACUATION_STATE_MOVING, "")
	if s := p.seen; s.Fresh > 0 && s.Ready == 0 {
		p.Why = s.Hindrance
	}
	return p.room()
}

func (p *progress) enter(state siroccov1.EvacuationState, why string) {
	p.State, p.Why = state, why
}

// begin begins a stage.
func (p *progress) begin(stage int32) {
	p.Stage, p.StageBegun = stage, timestamppb.New(p.now)
	p.rebase()
}

// rebase forgets what a stage was judged by so far.
func (p *progress) rebase() {
	p.BaseMoved, p.BaseFailed, p.BaseSlow = p.seen.Moved, p.seen.Failed, p.seen.Slow
}

// cancel begins nothing, gives back, and ends when all moves have.
func (p *progress) cancel() Decision {
	if p.seen.UnderWay > 0 || !p.seen.GivenBack {
		p.Ended = nil
		p.enter(siroccov1.EvacuationState_EVACUATION_STATE_CANCELLING, "cancelled: no move begins any more")
	} else {
		p.Ended = timestamppb.New(p.now)
		p.enter(siroccov1.EvacuationState_EVACUATION_STATE_CANCELLED, fmt.Sprintf("cancelled after %d were moved", p.seen.Moved))
	}
	return Decision{GiveBack: true}
}

// evict leaves what is still there to the node. Moves under way may end.
func (p *progress) evict() Decision {
	if p.seen.here() == 0 {
		return p.end()
	}
	p.Paused = nil
	p.enter(siroccov1.EvacuationState_EVACUATION_STATE_EVICTING, fmt.Sprintf("%d are still there and have their eviction notice", p.seen.here()))
	return Decision{Evict: true}
}

// end is reached when there is nothing more to move.
func (p *progress) end() Decision {
	left := p.seen.GivenUp + p.seen.Barred
	if p.GetNode() != "" && left > 0 {
		p.enter(siroccov1.EvacuationState_EVACUATION_STATE_WAITING,
			fmt.Sprintf("%s; eviction notice at %s", p.reasons(), p.GetEvictAt().AsTime().UTC().Format(time.RFC3339)))
		return Decision{}
	}
	evicted := p.GetState() == siroccov1.EvacuationState_EVACUATION_STATE_EVICTING
	p.Ended = timestamppb.New(p.now)
	took := p.now.Sub(p.GetBegun().AsTime()).Round(100 * time.Millisecond)
	switch {
	case left > 0:
		p.enter(siroccov1.EvacuationState_EVACUATION_STATE_INCOMPLETE, p.reasons())
	case evicted:
		p.enter(siroccov1.EvacuationState_EVACUATION_STATE_DONE, fmt.Sprintf("%d were moved, the others evicted", p.seen.Moved))
	default:
		p.enter(siroccov1.EvacuationState_EVACUATION_STATE_DONE, fmt.Sprintf("%d were moved in %v", p.seen.Moved, took))
	}
	return Decision{}
}

func (p *progress) reasons() string {
	var each []string
	for _, l := range p.GetLeft() {
		each = append(each, fmt.Sprintf("%d × %s", l.GetCount(), l.GetReason()))
	}
	return fmt.Sprintf("%d could not be moved: %s", p.seen.GivenUp+p.seen.Barred, strings.Join(each, "; "))
}

// resume ends a pause whose time is over, or that somebody has ended. The stage goes on
// as if there had been none.
func (p *progress) resume() bool {
	since := p.GetPaused().AsTime()
	ordered := p.GetResumed() != nil && !p.GetResumed().AsTime().Before(since)
	if !ordered && p.now.Sub(since) < pauseTime(p.GetPauses()) {
		return false
	}
	p.StageBegun = timestamppb.New(p.GetStageBegun().AsTime().Add(p.now.Sub(since)))
	p.Paused = nil
	p.rebase()
	return true
}

// pauseTime is how long the n-th pause is.
func pauseTime(n int32) time.Duration { return firstPause << min(max(n-1, 0), maxDoublings) }

// bad says why the stage may not go on; "" if it may.
func (p *progress) bad() string {
	moved, failed, slow := p.seen.Moved-p.GetBaseMoved(), p.seen.Failed-p.GetBaseFailed(), p.seen.Slow-p.GetBaseSlow()
	switch {
	case failed > forgiven && float64(failed) > p.GetMaxErrorRate()*float64(moved+failed):
		why := fmt.Sprintf("%d of %d moves failed, more than %.3g %%", failed, moved+failed, 100*p.GetMaxErrorRate())
		if p.seen.LastFailure != "" {
			why += "; the last: " + p.seen.LastFailure
		}
		return why
	case slow > forgiven && float64(slow) > slowShare*float64(moved):
		return fmt.Sprintf("%d of %d moves stopped their sandbox for more than %v", slow, moved, p.GetMaxPause().AsDuration())
	}
	return ""
}

// goal is how many may have begun when a share has.
func (p *progress) goal(share float64) int {
	return int(math.Ceil(share*float64(p.seen.movable()) - 1e-9))
}

// slot is how long a stage takes at least.
func (p *progress) slot() time.Duration {
	return p.GetOver().AsDuration() / time.Duration(len(p.GetStages()))
}

// passed says whether the gate of the stage is open, apart from what bad says: all that
// it was to move has been moved or given up, and its time is over. Nothing comes after
// the last stage, so it ends when it can.
func (p *progress) passed() bool {
	s, last := p.seen, int(p.GetStage()) == len(p.GetStages())-1
	return s.UnderWay == 0 && s.Again == 0 && s.begun() >= p.goal(p.GetStages()[p.GetStage()]) &&
		(last || p.now.Sub(p.GetStageBegun().AsTime()) >= p.slot())
}

// room says how many moves may begin now: evenly over the time of the stage.
func (p *progress) room() Decision {
	s, from, to := p.seen, 0.0, p.GetStages()[p.GetStage()]
	if p.GetStage() > 0 {
		from = p.GetStages()[p.GetStage()-1]
	}
	done := 1.0
	if slot := p.slot(); slot > 0 {
		done = min(max(p.now.Sub(p.GetStageBegun().AsTime()).Seconds()/slot.Seconds(), 0), 1)
	}
	atOnce := int(p.GetAtOnce())
	if atOnce == 0 {
		atOnce = min(atOncePerNode*max(s.Nodes, 1), maxAtOnce)
	}
	free := max(atOnce-s.UnderWay, 0)
	again := min(s.Due, free)
	allowed := p.goal(from+(to-from)*done) - s.begun()
	return Decision{Again: again, New: max(min(allowed, s.Ready, free-again), 0)}
}
