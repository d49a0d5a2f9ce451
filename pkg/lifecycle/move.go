package lifecycle

import (
	"errors"
	"time"

	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// A move takes four steps, each of one writer: the scheduler asks for it (Migrate);
// the node that the sandbox leaves makes it (Depart), the one write after which only
// the copy may run, or calls it off (CallOff); the node where it goes says that it
// runs there (Arrive). Depart has one writer, so a copy that was not told of it can
// always ask the record.
//
// Between regions the record goes too. What stays behind is its shadow: the record of
// a sandbox that is elsewhere, by which what still comes there finds it (Follow).

// ErrElsewhere says that the sandbox has gone to another region: its record there is
// the one to change.
var ErrElsewhere = errors.New("lifecycle: the sandbox is in another region")

// ErrNotRunning says that only a sandbox that runs can be moved.
var ErrNotRunning = errors.New("lifecycle: the sandbox does not run")

// ErrMoving says that the sandbox is on another move already.
var ErrMoving = errors.New("lifecycle: the sandbox is on another move")

// Shadow says whether a record, seen from a region, is only what a sandbox has left
// there that went to another one.
func Shadow(sb *siroccov1.Sandbox, region string) bool {
	p := sb.GetPlacement()
	return p != nil && p.GetRegion() != region && !Ended(sb.GetState())
}

// Here takes a step unless the record is a shadow in Region. Error: ErrElsewhere.
type Here struct {
	Region string
	Step
}

func (s Here) apply(sb *siroccov1.Sandbox, at time.Time) error {
	if Shadow(sb, s.Region) {
		return ErrElsewhere
	}
	return s.Step.apply(sb, at)
}

// OfShadow takes a step only if the record is a shadow in Region.
type OfShadow struct {
	Region string
	Step
}

func (s OfShadow) apply(sb *siroccov1.Sandbox, at time.Time) error {
	if !Shadow(sb, s.Region) {
		return ErrNoChange
	}
	return s.Step.apply(sb, at)
}

// NextEpoch returns the epoch of the next move of a sandbox: one that no placement and
// no move has had. That of a move that was called off is used up, because its copy may
// still wait somewhere, with an older memory: under the epoch of the next move it would
// be taken for that one's.
func NextEpoch(sb *siroccov1.Sandbox) uint64 {
	return max(sb.GetPlacement().GetEpoch(), sb.GetMove().GetEpoch()) + 1
}

// Migrate asks the node of a running sandbox to move it. Move has its key, where to,
// epoch (see NextEpoch), reason and deadline. Errors: ErrEnded, ErrNotRunning,
// ErrMoving.
type Migrate struct{ Move *siroccov1.Move }

func (s Migrate) apply(sb *siroccov1.Sandbox, at time.Time) error {
	switch state := sb.GetState(); {
	case sb.GetMove().GetKey() == s.Move.GetKey():
		return ErrNoChange // the same command again, whatever became of it
	case Ended(state), sb.GetDesired().GetStop():
		return ErrEnded
	case state == siroccov1.State_STATE_MIGRATING:
		return ErrMoving
	case state != siroccov1.State_STATE_RUNNING, s.Move.GetEpoch() != NextEpoch(sb):
		return ErrNotRunning
	}
	move := proto.CloneOf(s.Move)
	move.FromRegion, move.FromNode = sb.GetPlacement().GetRegion(), sb.GetPlacement().GetNode()
	move.Begun, move.Reason = timestamppb.New(at), text(move.GetReason())
	sb.Move = move
	return enter(sb, siroccov1.State_STATE_MIGRATING, at)
}

// leaving says whether the sandbox is on the move of an epoch, and still where it was.
func leaving(sb *siroccov1.Sandbox, epoch uint64) bool {
	return sb.GetState() == siroccov1.State_STATE_MIGRATING && sb.GetMove().GetEpoch() == epoch && sb.GetPlacement().GetEpoch() < epoch
}

// CallOff ends a move that was not made: the sandbox goes on where it is. Epoch is
// that of the move.
type CallOff struct {
	Epoch         uint64
	Code, Failure string
}

func (s CallOff) apply(sb *siroccov1.Sandbox, at time.Time) error {
	if !leaving(sb, s.Epoch) {
		return ErrNoChange
	}
	sb.Move.Ended, sb.Move.FailureCode, sb.Move.Failure = timestamppb.New(at), s.Code, text(s.Failure)
	return enter(sb, siroccov1.State_STATE_RUNNING, at)
}

// Depart makes the move of an epoch: from here on only the copy may run.
type Depart struct{ Epoch uint64 }

func (s Depart) apply(sb *siroccov1.Sandbox, _ time.Time) error {
	if !leaving(sb, s.Epoch) {
		return ErrNoChange
	}
	sb.Placement = &siroccov1.Placement{
		Region: sb.Move.GetRegion(), Node: sb.Move.GetNode(), NodeAddress: sb.Move.GetNodeAddress(), Epoch: s.Epoch,
	}
	return nil
}

// Departed says whether the move of an epoch was made.
func Departed(sb *siroccov1.Sandbox, epoch uint64) bool {
	return sb.GetMove().GetEpoch() >= epoch && sb.GetPlacement().GetEpoch() >= epoch
}

// Arrive says that the copy runs where the sandbox went.
type Arrive struct {
	Observed *siroccov1.Observed
	Pause    time.Duration
	Bytes    int64
}

func (s Arrive) apply(sb *siroccov1.Sandbox, at time.Time) error {
	epoch := s.Observed.GetEpoch()
	if sb.GetState() != siroccov1.State_STATE_MIGRATING || sb.GetPlacement().GetEpoch() != epoch || sb.GetMove().GetEpoch() != epoch {
		return ErrNoChange
	}
	sb.Observed = proto.CloneOf(s.Observed)
	sb.Move.Ended, sb.Move.Pause, sb.Move.Bytes = timestamppb.New(at), durationpb.New(s.Pause), s.Bytes
	return enter(sb, siroccov1.State_STATE_RUNNING, at)
}

// Follow brings the record of Region up to what another region's record of the same
// sandbox says: a shadow to its sandbox, and the record that a sandbox gets in a region
// to what it was when the sandbox left. The sandbox's own record at the same epoch is
// newer than all that others hold, and stays.
type Follow struct {
	Region string
	Record *siroccov1.Sandbox
}

func (s Follow) apply(sb *siroccov1.Sandbox, _ time.Time) error {
	theirs, ours := s.Record.GetPlacement().GetEpoch(), sb.GetPlacement().GetEpoch()
	next := proto.CloneOf(s.Record)
	next.Revision = sb.GetRevision()
	switch {
	case Ended(sb.GetState()), theirs < ours, theirs == ours && !Shadow(sb, s.Region), proto.Equal(next, sb):
		return ErrNoChange
	}
	proto.Reset(sb)
	proto.Merge(sb, next)
	return nil
}
