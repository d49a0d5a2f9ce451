// Package sweep decides what the reaper does: pure functions from records, what
// nodes say and a time to a list of actions. Doing an action twice, or too
// late, changes nothing: each is checked again by compare-and-swap.
package sweep

import (
	"fmt"
	"slices"
	"time"

	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	nodev1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/node/v1"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

// Rules are the reaper's patience.
type Rules struct {
	// Accepted: a record without a placement for that long has lost its command.
	Accepted time.Duration
	// Placed: a placement that its node has not begun for that long was not
	// answered.
	Placed time.Duration
	// Overdue: a deadline that passed that long ago was not enforced by the node.
	Overdue time.Duration
	// Stopping: a node has had that long to stop a sandbox.
	Stopping time.Duration
	// Missing: a placement that old must be in its node's inventory.
	Missing time.Duration
	// NodeLost: a node that has been silent for that long is lost, with what ran
	// on it. Longer than the 15 minutes for which sandboxes go on without the bus.
	NodeLost time.Duration
	// Retention is how long the record of an ended sandbox is kept, and Retained how
	// many of them at most; 0 means any number.
	Retention time.Duration
	Retained  int
}

// DefaultRules returns the rules of an operator who has set none.
func DefaultRules() Rules {
	return Rules{
		Accepted: 15 * time.Second, Placed: 10 * time.Second, Overdue: 4 * time.Second,
		Stopping: 5 * time.Second, Missing: 10 * time.Second, NodeLost: 16 * time.Minute,
		Retention: time.Hour, Retained: 50_000,
	}
}

// Kind says what is to be done.
type Kind int

const (
	// Republish: put the create command on the queue again.
	Republish Kind = iota + 1
	// Stop: want the sandbox to end, with Cause and Message.
	Stop
	// Tell: make the node read the record again.
	Tell
	// Finish: the sandbox is gone; write that it ended, with Cause and Message.
	Finish
	// Forget: the record's time is over.
	Forget
)

// String returns the kind in words.
func (k Kind) String() string {
	return [...]string{"", "republish", "stop", "tell", "finish", "forget"}[k]
}

// Action is one thing to do about one sandbox.
type Action struct {
	Kind    Kind
	Sandbox *siroccov1.Sandbox
	Cause   siroccov1.Cause
	Message string
}

// LastHeard says since when a node has been silent. What was not listened to is
// no silence: for a node that was never heard of it is when the reaper began to
// listen.
type LastHeard func(node string) time.Time

// Record decides what a record needs, from the record alone and the silence of
// its node.
func Record(sb *siroccov1.Sandbox, last LastHeard, now time.Time, r Rules) (Action, bool) {
	act := func(k Kind, c siroccov1.Cause, format string, args ...any) (Action, bool) {
		return Action{k, sb, c, fmt.Sprintf(format, args...)}, true
	}
	since := func(s siroccov1.State) time.Duration { return now.Sub(lifecycle.Entered(sb, s)) }
	state := sb.GetState()
	if lifecycle.Ended(state) {
		if now.Sub(sb.GetEnd().GetAt().AsTime()) > r.Retention {
			return act(Forget, 0, "")
		}
		return Action{}, false
	}
	deadline := sb.GetDesired().GetDeadline().AsTime()
	if state == siroccov1.State_STATE_ACCEPTED {
		switch {
		case now.After(deadline):
			return act(Stop, siroccov1.Cause_CAUSE_MAX_LIFETIME, "its max_lifetime was over before a node could run it")
		case since(state) > r.Accepted:
			return act(Republish, 0, "")
		}
		return Action{}, false
	}
	// From here on the record names a node.
	if silence := now.Sub(last(sb.GetPlacement().GetNode())); silence > r.NodeLost {
		return act(Finish, siroccov1.Cause_CAUSE_NODE_LOST, "node %s has been silent for %s", sb.GetPlacement().GetNode(), silence.Round(time.Second))
	}
	switch {
	case state == siroccov1.State_STATE_STOPPING:
		if since(state) > r.Stopping {
			return act(Tell, 0, "")
		}
	case now.Sub(deadline) > r.Overdue:
		return act(Stop, siroccov1.Cause_CAUSE_MAX_LIFETIME, "its max_lifetime is over")
	case state == siroccov1.State_STATE_PLACED && since(state) > r.Placed:
		return act(Republish, 0, "")
	}
	return Action{}, false
}

// Excess returns which records of ended sandboxes to forget because there are more
// than may be kept: those that ended first.
func Excess(ended []*siroccov1.Sandbox, r Rules) []Action {
	over := len(ended) - r.Retained
	if r.Retained == 0 || over <= 0 {
		return nil
	}
	// This is done every second, with all that are kept: each time is worked out once.
	type aged struct {
		at time.Time
		sb *siroccov1.Sandbox
	}
	byAge := make([]aged, len(ended))
	for i, sb := range ended {
		byAge[i] = aged{sb.GetEnd().GetAt().AsTime(), sb}
	}
	slices.SortFunc(byAge, func(a, b aged) int { return a.at.Compare(b.at) })
	actions := make([]Action, over)
	for i := range actions {
		actions[i] = Action{Kind: Forget, Sandbox: byAge[i].sb}
	}
	return actions
}

// Inventory compares what a node really runs with the records placed on it.
// It returns what to do about records whose sandbox is not there, and about
// sandboxes that no record wants. asked is when the inventory was asked for.
func Inventory(node string, items []*nodev1.InventoryItem, placed []*siroccov1.Sandbox, lookup func(id string) *siroccov1.Sandbox, asked time.Time, r Rules) []Action {
	var actions []Action
	there := make(map[string]*nodev1.InventoryItem, len(items))
	for _, item := range items {
		there[item.GetId()] = item
		sb := lookup(item.GetId())
		if sb == nil || sb.GetTenant() != item.GetTenant() || lifecycle.Ended(sb.GetState()) ||
			sb.GetPlacement().GetNode() != node || sb.GetPlacement().GetEpoch() != item.GetEpoch() {
			actions = append(actions, Action{Kind: Tell, Sandbox: &siroccov1.Sandbox{
				Id: item.GetId(), Tenant: item.GetTenant(), State: item.GetState(),
				Placement: &siroccov1.Placement{Node: node, Epoch: item.GetEpoch()},
			}, Message: "no record wants it there"})
		}
	}
	for _, sb := range placed {
		if sb.GetPlacement().GetNode() != node || !lifecycle.Live(sb.GetState()) || there[sb.GetId()] != nil {
			continue
		}
		// One that was placed a moment ago may not be there yet; for one that was
		// never begun, asking again is what helps.
		if sb.GetState() == siroccov1.State_STATE_PLACED || asked.Sub(newestTransition(sb)) < r.Missing {
			continue
		}
		if sb.GetState() < siroccov1.State_STATE_RUNNING && !sb.GetDesired().GetStop() {
			// It was never ready: nothing is lost that can't be made again.
			actions = append(actions, Action{Kind: Republish, Sandbox: sb, Message: "node " + node + " does not hold it; it was still starting"})
			continue
		}
		action := Action{Kind: Finish, Sandbox: sb, Cause: siroccov1.Cause_CAUSE_NODE_LOST, Message: "node " + node + " does not hold it any more"}
		if d := sb.GetDesired(); d.GetStop() {
			action.Cause, action.Message = d.GetStopCause(), d.GetStopReason()
		}
		actions = append(actions, action)
	}
	return actions
}

func newestTransition(sb *siroccov1.Sandbox) time.Time {
	var newest time.Time
	for _, t := range sb.GetHistory() {
		if at := t.GetAt().AsTime(); at.After(newest) {
			newest = at
		}
	}
	return newest
}
