package simulation

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/move"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/sirocco-run/sirocco/services/scheduler/placement"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

const (
	askTimeout = 2 * time.Second
	patience   = 5 * time.Second
	// moveLimit is how long a move may take until it is called off.
	moveLimit = 15 * time.Second
	// heartLife is how long a node's entry lives.
	heartLife = 10 * time.Second
)

var (
	errLater = errors.New("later")
	// errNever is of a command that can never work.
	errNever = errors.New("never")
)

// carryOut does what a command asks for, and settles it.
func (r *region) carryOut(t *task, b *bus, c *command) {
	var err error
	switch c.verb {
	case "create":
		err = r.create(t, c)
	case "migrate":
		err = r.migrate(t, c)
	case "terminate":
		err = r.alter(t, c, lifecycle.Stop{Cause: siroccov1.Cause_CAUSE_USER})
	case "extend":
		err = r.alter(t, c, lifecycle.Extend{Deadline: t0.Add(c.at + c.by)})
	case "tag":
		err = r.alter(t, c, lifecycle.SetTags{Tags: map[string]string{"tag": c.tag}})
	}
	switch {
	case err == nil:
	case errors.Is(err, errNever), errors.Is(err, errNone), errors.Is(err, lifecycle.ErrEnded), errors.Is(err, lifecycle.ErrNotRunning):
		r.w.note(t.p.name, "%s %s is refused: %s", c.verb, c.key, err.Error())
	default:
		return // it comes again
	}
	b.settle(t, c)
}

// nodes is what the heartbeats of a region say.
func (r *region) nodes(t *task, except []string) ([]placement.Node, error) {
	return onBus(t, r.bus, func() ([]placement.Node, error) {
		var out []placement.Node
		for _, m := range r.machines {
			if beat, ok := r.bus.hearts[m.name]; ok && r.w.now-beat < heartLife && !slices.Contains(except, m.node) {
				out = append(out, placement.Node{
					Name: m.node, Region: r.name, Ready: true, Capacity: placement.Amount{Sandboxes: int64(m.capacity)},
					Used: placement.Amount{Sandboxes: int64(len(m.copies))},
				})
			}
		}
		return out, nil
	})
}

func (r *region) rank(nodes []placement.Node, id string) []placement.Candidate {
	plan := placement.Rules{}.Rank(nodes, placement.Request{ID: id, Need: placement.Amount{Sandboxes: 1}, Regions: []string{r.name}})
	return plan.Candidates
}

// create brings a create command to a node's yes or to a stated failure.
func (r *region) create(t *task, c *command) error {
	w := r.w
	id, err := onBus(t, r.bus, func() (string, error) {
		if r.bus.keys[c.key] == "" || w.broken.CreateAnew {
			w.minted++
			r.bus.keys[c.key] = fmt.Sprintf("sb-%04d", w.minted)
			w.keyed(c.key, r.bus.keys[c.key])
		}
		return r.bus.keys[c.key], nil
	})
	if err != nil {
		return err
	}
	spec := &siroccov1.CreateSandboxRequest{MaxLifetime: durationpb.New(c.life), IdempotencyKey: c.key}
	sb, err := change(t, r.bus, id, nil, func(sb *siroccov1.Sandbox) (*siroccov1.Sandbox, bool, error) {
		if sb != nil {
			return sb, false, nil
		}
		return lifecycle.Accept(id, tenant, c.key, spec, t.p.clock()), true, nil
	})
	if err != nil {
		return err
	}
	return r.advance(t, sb)
}

// advance takes a sandbox from where its record says that it is to a node's yes.
func (r *region) advance(t *task, sb *siroccov1.Sandbox) error {
	asked := sb.GetState() == siroccov1.State_STATE_PLACED || sb.GetState() == siroccov1.State_STATE_STARTING
	if asked && r.askNode(t, sb) {
		return nil
	}
	if !asked && sb.GetState() != siroccov1.State_STATE_ACCEPTED {
		return nil
	}
	var refused []string
	for until := r.w.now + patience; r.w.now < until; {
		nodes, err := r.nodes(t, refused)
		if err != nil {
			return err
		}
		candidates := r.rank(nodes, sb.GetId())
		if len(candidates) == 0 {
			refused = nil
			t.sleep(500 * time.Millisecond)
			continue
		}
		name := candidates[0].Node
		refused = append(refused, name)
		placed, err := update(t, r.bus, sb.GetId(), sb, lifecycle.Place{
			Region: r.name, Node: name, Address: name, Epoch: sb.GetPlacement().GetEpoch() + 1,
		})
		if err != nil {
			return err
		}
		if placed.GetPlacement().GetNode() != name || placed.GetState() != siroccov1.State_STATE_PLACED {
			return nil // somebody else moved it on
		}
		if sb = placed; r.askNode(t, sb) {
			return nil
		}
	}
	end, epoch := &siroccov1.End{Cause: siroccov1.Cause_CAUSE_NO_CAPACITY}, sb.GetPlacement().GetEpoch()
	step := lifecycle.Step(lifecycle.GiveUp{Epoch: epoch, End: end})
	if r.w.broken.GiveUpRunning {
		step = lifecycle.Finish{Epoch: epoch, End: end}
	}
	_, err := update(t, r.bus, sb.GetId(), sb, step)
	return err
}

// askNode asks the node of a placement, and says whether it took the sandbox.
func (r *region) askNode(t *task, sb *siroccov1.Sandbox) bool {
	a := r.w.home(sb).agent
	yes, err := ask(t, &a.process, carry{timeout: askTimeout}, func(answer func(bool, error)) { answer(a.place(sb)) })
	return err == nil && yes
}

// alter takes a step on a record, here or where the sandbox is, and tells its node.
func (r *region) alter(t *task, c *command, step lifecycle.Step) error {
	sb, err := get(t, r.bus, c.id)
	if err != nil {
		return err
	}
	if done, err := r.passOn(t, c, sb); done {
		return err
	}
	if !r.w.broken.ChangeShadows {
		step = lifecycle.Here{Region: r.name, Step: step}
	}
	sb, err = update(t, r.bus, c.id, sb, step)
	if errors.Is(err, lifecycle.ErrElsewhere) {
		return errLater
	}
	if err != nil {
		return err
	}
	return r.tell(t, sb)
}

// passOn sees to a command about a sandbox that has left the region.
func (r *region) passOn(t *task, c *command, sb *siroccov1.Sandbox) (done bool, err error) {
	route := move.RouteOf(sb, r.name)
	if r.w.broken.ChangeShadows {
		route = move.Here
	}
	switch route {
	case move.Later:
		r.w.seen["command: later"]++
		return true, errLater
	case move.There:
		there := r.w.regions[sb.GetPlacement().GetRegion()]
		r.w.seen["command: elsewhere"]++
		r.w.note(t.p.name, "%s %s goes on to %s", c.verb, c.key, there.name)
		return true, publish(t, there.bus, *c)
	}
	return false, nil
}

// tell is node.Client.Tell.
func (r *region) tell(t *task, sb *siroccov1.Sandbox) error {
	if !lifecycle.Live(sb.GetState()) {
		return nil
	}
	a := r.w.home(sb).agent
	known, err := ask(t, &a.process, carry{timeout: askTimeout}, func(answer func(bool, error)) { answer(a.sync(sb.GetId())) })
	if err != nil || known || sb.GetState() != siroccov1.State_STATE_STOPPING {
		return nil //nolint:nilerr // the node finds out by itself
	}
	_, err = update(t, r.bus, sb.GetId(), nil, lifecycle.Finish{
		Epoch: sb.GetPlacement().GetEpoch(), End: &siroccov1.End{Cause: sb.GetDesired().GetStopCause()},
	})
	return err
}

// migrate finds a node that waits for the sandbox, writes that it is to move there, and
// tells its node.
func (r *region) migrate(t *task, c *command) error {
	sb, err := get(t, r.bus, c.id)
	if err != nil {
		return err
	}
	if done, err := r.passOn(t, c, sb); done {
		return err
	}
	if sb.GetMove().GetKey() == c.key {
		return r.tell(t, sb)
	}
	if sb.GetState() != siroccov1.State_STATE_RUNNING {
		return errNever
	}
	there := r.w.regions[c.region]
	until := t.p.clock().Add(moveLimit)
	node, err := there.room(t, sb, until, r)
	if err != nil {
		return err
	}
	m := &siroccov1.Move{
		Key: c.key, Region: there.name, Node: node, NodeAddress: node, Epoch: lifecycle.NextEpoch(sb), Deadline: timestamppb.New(until),
	}
	step := lifecycle.Step(lifecycle.Here{Region: r.name, Step: lifecycle.Migrate{Move: m}})
	sb, err = change(t, r.bus, c.id, sb, func(sb *siroccov1.Sandbox) (*siroccov1.Sandbox, bool, error) {
		if r.w.broken.EpochAgain && sb.GetState() == siroccov1.State_STATE_RUNNING {
			sb = proto.CloneOf(sb)
			if sb.Move != nil {
				sb.Move.Epoch = 0
			}
			m.Epoch = sb.GetPlacement().GetEpoch() + 1
		}
		next, err := lifecycle.Apply(sb, step, t.p.clock())
		if errors.Is(err, lifecycle.ErrNoChange) {
			return sb, false, nil
		}
		return next, err == nil, err
	})
	switch {
	case errors.Is(err, lifecycle.ErrMoving), errors.Is(err, lifecycle.ErrElsewhere):
		return errNever
	case err != nil:
		return err
	}
	return r.tell(t, sb)
}

// room finds a node of the region that waits for the sandbox. Another region is asked
// for it on its own bus, where any scheduler answers.
func (r *region) room(t *task, sb *siroccov1.Sandbox, until time.Time, from *region) (string, error) {
	find := func(t *task) (string, error) {
		var except []string
		if r == from {
			except = append(except, sb.GetPlacement().GetNode())
		}
		nodes, err := r.nodes(t, except)
		if err != nil {
			return "", err
		}
		for _, c := range r.rank(nodes, sb.GetId()) {
			a := r.w.machine(r.name, c.Node).agent
			yes, err := ask(t, &a.process, carry{timeout: askTimeout}, func(answer func(bool, error)) { answer(a.reserve(sb.GetId(), until)) })
			if err == nil && yes {
				return c.Node, nil
			}
		}
		return "", errNever
	}
	if r == from {
		return find(t)
	}
	others := r.reachable(r.bus)
	if len(others) == 0 || r.w.cut(t.p, &r.bus.process) {
		return "", errNever
	}
	s := others[r.w.rng.IntN(len(others))]
	return ask(t, s, carry{timeout: 2 * askTimeout}, handled(s, find))
}
