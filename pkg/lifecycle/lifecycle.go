// Package lifecycle holds the states of a sandbox: which may follow which, as
// data, and Apply, the pure function that takes a record one step further.
// Nothing else changes a state.
//
// A record is changed by several services through compare-and-swap, and every
// message may come twice or late. So each step is idempotent: a step that has
// been taken, or that a newer epoch or the end has overtaken, is ErrNoChange,
// not a fault.
package lifecycle

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// ErrNoChange says that a step changes nothing: it has been taken already, or
// the record has moved past it.
var ErrNoChange = errors.New("lifecycle: no change")

// ErrEnded says that the step asks something of a sandbox that has ended.
var ErrEnded = errors.New("lifecycle: the sandbox has ended")

// ErrTooManyPorts says that a sandbox publishes as many ports as it may.
var ErrTooManyPorts = fmt.Errorf("lifecycle: a sandbox may publish at most %d ports", MaxPorts)

// ErrPortShared says that the public port of a tunnel leads to another port of
// the sandbox already: two commands came to the same one. Choose again.
var ErrPortShared = errors.New("lifecycle: the public port leads to another port of the sandbox")

// Bounds of what a step adds to a record, so that no record outgrows what the
// bus carries in one message.
const (
	// MaxPorts is how many ports a sandbox may publish.
	MaxPorts = 32
	// maxText is how long a message or a reason may be, in bytes.
	maxText = 4 << 10
)

// text makes a string fit for a record: valid UTF-8, and not too long. What
// comes from a guest, a registry or a client may be neither.
func text(s string) string {
	if len(s) > maxText {
		s = s[:maxText] + "…"
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}

// next is the transition table.
var next = map[siroccov1.State][]siroccov1.State{
	siroccov1.State_STATE_UNSPECIFIED: {siroccov1.State_STATE_ACCEPTED},
	siroccov1.State_STATE_ACCEPTED:    {siroccov1.State_STATE_PLACED, siroccov1.State_STATE_STOPPED, siroccov1.State_STATE_FAILED},
	siroccov1.State_STATE_PLACED:      {siroccov1.State_STATE_PLACED, siroccov1.State_STATE_STARTING, siroccov1.State_STATE_RUNNING, siroccov1.State_STATE_STOPPING, siroccov1.State_STATE_STOPPED, siroccov1.State_STATE_FAILED},
	siroccov1.State_STATE_STARTING:    {siroccov1.State_STATE_PLACED, siroccov1.State_STATE_RUNNING, siroccov1.State_STATE_STOPPING, siroccov1.State_STATE_STOPPED, siroccov1.State_STATE_FAILED},
	siroccov1.State_STATE_RUNNING:     {siroccov1.State_STATE_HIBERNATING, siroccov1.State_STATE_MIGRATING, siroccov1.State_STATE_STOPPING, siroccov1.State_STATE_STOPPED},
	siroccov1.State_STATE_HIBERNATING: {siroccov1.State_STATE_HIBERNATED, siroccov1.State_STATE_RUNNING, siroccov1.State_STATE_STOPPING, siroccov1.State_STATE_STOPPED},
	siroccov1.State_STATE_HIBERNATED:  {siroccov1.State_STATE_WAKING, siroccov1.State_STATE_STOPPING, siroccov1.State_STATE_STOPPED},
	siroccov1.State_STATE_WAKING:      {siroccov1.State_STATE_RUNNING, siroccov1.State_STATE_HIBERNATED, siroccov1.State_STATE_STOPPING, siroccov1.State_STATE_STOPPED},
	siroccov1.State_STATE_MIGRATING:   {siroccov1.State_STATE_RUNNING, siroccov1.State_STATE_STOPPING, siroccov1.State_STATE_STOPPED},
	siroccov1.State_STATE_STOPPING:    {siroccov1.State_STATE_STOPPED, siroccov1.State_STATE_FAILED},
	siroccov1.State_STATE_STOPPED:     nil,
	siroccov1.State_STATE_FAILED:      nil,
}

// May says whether to may follow from.
func May(from, to siroccov1.State) bool { return slices.Contains(next[from], to) }

// Ended says whether nothing can follow a state.
func Ended(s siroccov1.State) bool {
	return s == siroccov1.State_STATE_STOPPED || s == siroccov1.State_STATE_FAILED
}

// Live says whether a sandbox in this state may have an execution on a node.
func Live(s siroccov1.State) bool {
	return s >= siroccov1.State_STATE_PLACED && !Ended(s)
}

// Step is one step of a sandbox's life. The types in this file are all there
// are.
type Step interface {
	apply(sb *siroccov1.Sandbox, at time.Time) error
}

// Apply returns a copy of the record with the step taken at the given time. It
// returns ErrNoChange or ErrEnded (see there) or, for a transition that the
// table does not hold, an error that names it; the record is never changed.
func Apply(sb *siroccov1.Sandbox, step Step, at time.Time) (*siroccov1.Sandbox, error) {
	out := proto.CloneOf(sb)
	if err := step.apply(out, at); err != nil {
		return nil, err
	}
	return out, nil
}

// Place puts an accepted sandbox on a node, or moves one whose node refused or
// was lost before it ran to another. The epoch grows by one.
type Place struct {
	Region, Node, Address string
	Refusals              uint32
	// Epoch that the placement makes: one more than what the decision was based
	// on. If somebody else has placed the sandbox since, nothing changes. Zero
	// means whichever comes next.
	Epoch uint64
}

func (s Place) apply(sb *siroccov1.Sandbox, at time.Time) error {
	if sb.GetDesired().GetStop() || sb.GetState() >= siroccov1.State_STATE_RUNNING {
		return ErrNoChange
	}
	epoch := sb.GetPlacement().GetEpoch() + 1
	if s.Epoch != 0 && s.Epoch != epoch {
		return ErrNoChange
	}
	if err := enter(sb, siroccov1.State_STATE_PLACED, at); err != nil {
		return err
	}
	sb.Placement = &siroccov1.Placement{
		Region: s.Region, Node: s.Node, NodeAddress: s.Address, Epoch: epoch, Refusals: s.Refusals,
	}
	sb.Observed = nil
	return nil
}

// Start says that the node has begun.
type Start struct{ Epoch uint64 }

func (s Start) apply(sb *siroccov1.Sandbox, at time.Time) error {
	if s.Epoch != sb.GetPlacement().GetEpoch() || sb.GetState() != siroccov1.State_STATE_PLACED {
		return ErrNoChange
	}
	return enter(sb, siroccov1.State_STATE_STARTING, at)
}

// Run says that the sandbox is ready.
type Run struct{ Observed *siroccov1.Observed }

func (s Run) apply(sb *siroccov1.Sandbox, at time.Time) error {
	if s.Observed.GetEpoch() != sb.GetPlacement().GetEpoch() || sb.GetState() >= siroccov1.State_STATE_RUNNING {
		return ErrNoChange
	}
	sb.Observed = proto.CloneOf(s.Observed)
	return enter(sb, siroccov1.State_STATE_RUNNING, at)
}

// Stop wants the sandbox to end. One that no node has been given ends at once.
type Stop struct {
	Cause  siroccov1.Cause
	Reason string
}

func (s Stop) apply(sb *siroccov1.Sandbox, at time.Time) error {
	if Ended(sb.GetState()) || sb.GetDesired().GetStop() {
		return ErrNoChange
	}
	if sb.Desired == nil {
		sb.Desired = &siroccov1.Desired{}
	}
	sb.Desired.Stop, sb.Desired.StopCause, sb.Desired.StopReason = true, s.Cause, text(s.Reason)
	if sb.GetState() == siroccov1.State_STATE_ACCEPTED {
		return Finish{End: &siroccov1.End{Cause: s.Cause, Message: s.Reason}}.apply(sb, at)
	}
	return enter(sb, siroccov1.State_STATE_STOPPING, at)
}

// Finish says that the sandbox has ended: stopped if it ever ran or was wanted
// to stop, failed otherwise. Epoch is the execution that ended; one that is not
// the newest changes nothing.
type Finish struct {
	Epoch uint64
	End   *siroccov1.End
}

func (s Finish) apply(sb *siroccov1.Sandbox, at time.Time) error {
	if Ended(sb.GetState()) || s.Epoch != sb.GetPlacement().GetEpoch() {
		return ErrNoChange
	}
	state := siroccov1.State_STATE_FAILED
	if sb.GetDesired().GetStop() || Reached(sb, siroccov1.State_STATE_RUNNING) {
		state = siroccov1.State_STATE_STOPPED
	}
	if err := enter(sb, state, at); err != nil {
		return err
	}
	sb.End = proto.CloneOf(s.End)
	if sb.End == nil {
		sb.End = &siroccov1.End{Cause: siroccov1.Cause_CAUSE_INTERNAL}
	}
	sb.End.Message, sb.End.Signal, sb.End.Limit = text(sb.End.Message), text(sb.End.Signal), text(sb.End.Limit)
	sb.End.At = timestamppb.New(at)
	return nil
}

// GiveUp ends a sandbox that no node has taken. One that has been begun stays: a node
// whose yes was lost has it.
type GiveUp struct {
	Epoch uint64
	End   *siroccov1.End
}

func (s GiveUp) apply(sb *siroccov1.Sandbox, at time.Time) error {
	if sb.GetState() > siroccov1.State_STATE_PLACED {
		return ErrNoChange
	}
	return Finish(s).apply(sb, at)
}

// Extend moves the deadline.
type Extend struct{ Deadline time.Time }

func (s Extend) apply(sb *siroccov1.Sandbox, _ time.Time) error {
	if Ended(sb.GetState()) || sb.GetDesired().GetStop() {
		return ErrEnded
	}
	if sb.GetDesired().GetDeadline().AsTime().Equal(s.Deadline) {
		return ErrNoChange
	}
	if sb.Desired == nil {
		sb.Desired = &siroccov1.Desired{}
	}
	sb.Desired.Deadline = timestamppb.New(s.Deadline)
	return nil
}

// Notice tells that the sandbox will be evicted, and when. A notice that was
// given stands until it is withdrawn, by one without a time.
type Notice struct{ EvictAt time.Time }

func (s Notice) apply(sb *siroccov1.Sandbox, _ time.Time) error {
	given := sb.GetDesired().GetEvictAt() != nil
	if Ended(sb.GetState()) || sb.GetDesired().GetStop() || given == !s.EvictAt.IsZero() {
		return ErrNoChange
	}
	if sb.Desired == nil {
		sb.Desired = &siroccov1.Desired{}
	}
	sb.Desired.EvictAt = nil
	if !given {
		sb.Desired.EvictAt = timestamppb.New(s.EvictAt)
	}
	return nil
}

// SetTags replaces the tags. It works on an ended sandbox too: tags are the
// user's notes on the record.
type SetTags struct{ Tags map[string]string }

func (s SetTags) apply(sb *siroccov1.Sandbox, _ time.Time) error {
	if maps.Equal(sb.GetSpec().GetTags(), s.Tags) {
		return ErrNoChange
	}
	if sb.Spec == nil {
		sb.Spec = &siroccov1.CreateSandboxRequest{}
	}
	sb.Spec.Tags = s.Tags
	return nil
}

// OpenTunnel publishes a port, or replaces how it is published. Errors:
// ErrTooManyPorts, ErrPortShared.
type OpenTunnel struct {
	Port   *siroccov1.Port
	Tunnel *siroccov1.Tunnel
}

func (s OpenTunnel) apply(sb *siroccov1.Sandbox, at time.Time) error {
	for _, p := range sb.GetSpec().GetPorts() {
		if proto.Equal(p, s.Port) {
			return ErrNoChange
		}
	}
	if err := (CloseTunnel{Port: s.Port.GetPort()}).apply(sb, at); err != nil && !errors.Is(err, ErrNoChange) {
		return err
	}
	if len(sb.Spec.Ports) >= MaxPorts {
		return ErrTooManyPorts
	}
	// Public addresses differ, except that of a raw port given twice.
	for _, t := range sb.Tunnels {
		if t.GetProtocol() == siroccov1.Protocol_PROTOCOL_TCP && t.GetUrl() == s.Tunnel.GetUrl() {
			return ErrPortShared
		}
	}
	sb.Spec.Ports = append(sb.Spec.Ports, s.Port)
	sb.Tunnels = append(sb.Tunnels, s.Tunnel)
	return nil
}

// CloseTunnel withdraws a port.
type CloseTunnel struct{ Port uint32 }

func (s CloseTunnel) apply(sb *siroccov1.Sandbox, _ time.Time) error {
	if Ended(sb.GetState()) {
		return ErrEnded
	}
	before := len(sb.GetSpec().GetPorts())
	sb.Spec.Ports = slices.DeleteFunc(sb.Spec.Ports, func(p *siroccov1.Port) bool { return p.GetPort() == s.Port })
	sb.Tunnels = slices.DeleteFunc(sb.Tunnels, func(t *siroccov1.Tunnel) bool { return t.GetPort() == s.Port })
	if len(sb.Spec.Ports) == before {
		return ErrNoChange
	}
	return nil
}

// Reached says whether the sandbox has ever been in a state.
func Reached(sb *siroccov1.Sandbox, s siroccov1.State) bool { return !Entered(sb, s).IsZero() }

// Entered returns when the sandbox entered a state for the first time; zero if
// it never did.
func Entered(sb *siroccov1.Sandbox, s siroccov1.State) time.Time {
	for _, t := range sb.GetHistory() {
		if t.GetState() == s {
			return t.GetAt().AsTime()
		}
	}
	return time.Time{}
}

// Accept returns the first record of a sandbox.
func Accept(id, tenant, key string, spec *siroccov1.CreateSandboxRequest, at time.Time) *siroccov1.Sandbox {
	return &siroccov1.Sandbox{
		Id: id, Tenant: tenant, Spec: spec, IdempotencyKey: key,
		State:   siroccov1.State_STATE_ACCEPTED,
		Desired: &siroccov1.Desired{Deadline: timestamppb.New(at.Add(spec.GetMaxLifetime().AsDuration()))},
		History: []*siroccov1.Transition{{State: siroccov1.State_STATE_ACCEPTED, At: timestamppb.New(at)}},
	}
}

func enter(sb *siroccov1.Sandbox, to siroccov1.State, at time.Time) error {
	if !May(sb.GetState(), to) {
		if Ended(sb.GetState()) {
			return ErrNoChange
		}
		return fmt.Errorf("lifecycle: %s may not follow %s", to, sb.GetState())
	}
	sb.State = to
	if !Reached(sb, to) {
		sb.History = append(sb.History, &siroccov1.Transition{State: to, At: timestamppb.New(at)})
	}
	return nil
}
