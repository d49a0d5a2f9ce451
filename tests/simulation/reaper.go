package simulation

import (
	"errors"
	"time"

	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	nodev1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/node/v1"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/sirocco-run/sirocco/services/reaper/sweep"
)

const (
	sweepEvery     = 2 * time.Second
	inventoryEvery = 15 * time.Second
	// nodeLost is shorter than in earnest, so that histories are; faults of the network
	// are shorter still.
	nodeLost = 60 * time.Second
)

func rules() sweep.Rules {
	r := sweep.DefaultRules()
	r.NodeLost = nodeLost
	return r
}

// reap is the life of a reaper.
func (r *region) reap(t *task) {
	since, lost := t.p.clock(), false
	nextInventory := r.w.now + inventoryEvery
	for {
		t.sleep(sweepEvery)
		type view struct {
			records []*siroccov1.Sandbox
			hearts  map[string]time.Duration
		}
		seen, err := onBus(t, r.bus, func() (view, error) {
			v := view{hearts: map[string]time.Duration{}}
			for _, id := range r.bus.ids {
				if sb := r.bus.latest(id); sb != nil {
					v.records = append(v.records, sb)
				}
			}
			for name, beat := range r.bus.hearts {
				v.hearts[name] = beat
			}
			return v, nil
		})
		if err != nil {
			lost = true
			continue
		}
		if lost {
			since, lost = t.p.clock(), false // what was not listened to is no silence
		}
		now := t.p.clock()
		last := func(node string) time.Time {
			beat, ok := seen.hearts[r.name+"-"+node]
			heard := t0.Add(beat + t.p.skew)
			switch {
			case ok && r.w.now-beat < heartLife:
				return now
			case ok && heard.After(since):
				return heard
			}
			return since
		}
		byID := map[string]*siroccov1.Sandbox{}
		var placed []*siroccov1.Sandbox
		for _, sb := range seen.records {
			shadow := lifecycle.Shadow(sb, r.name)
			if !shadow || r.w.broken.ShadowsLocal {
				byID[sb.GetId()] = sb
				placed = append(placed, sb)
			}
			if shadow && !r.w.broken.ShadowsLocal {
				r.follow(t, sb)
			} else if a, ok := sweep.Record(sb, last, now, rules()); ok {
				r.do(t, a)
			}
		}
		if r.w.now < nextInventory {
			continue
		}
		nextInventory = r.w.now + inventoryEvery
		asked := t.p.clock()
		for _, m := range r.machines {
			if last(m.node) != now {
				continue
			}
			items, err := ask(t, &m.agent.process, carry{timeout: askTimeout}, func(answer func([]*nodev1.InventoryItem, error)) {
				answer(m.agent.inventory())
			})
			if err != nil {
				continue
			}
			for _, a := range sweep.Inventory(m.node, items, placed, func(id string) *siroccov1.Sandbox { return byID[id] }, asked, rules()) {
				r.do(t, a)
			}
		}
	}
}

// follow brings a shadow up to its sandbox's record in the other region.
func (r *region) follow(t *task, shadow *siroccov1.Sandbox) {
	there := r.w.regions[shadow.GetPlacement().GetRegion()]
	theirs, err := get(t, there.bus, shadow.GetId())
	switch {
	case errors.Is(err, errNone) && !r.w.broken.Unannounced:
		// It was announced there before it left: it has ended and has been forgotten.
		_, _ = onBus(t, r.bus, func() (struct{}, error) {
			r.bus.delete(shadow.GetId())
			return struct{}{}, nil
		})
	case err == nil:
		_, _ = update(t, r.bus, shadow.GetId(), shadow, lifecycle.Follow{Region: r.name, Record: theirs})
	}
}

// do carries out what package sweep has decided, as the reaper does.
func (r *region) do(t *task, a sweep.Action) {
	sb := a.Sandbox
	r.w.note(t.p.name, "%s %s: %s", a.Kind.String(), sb.GetId(), a.Message)
	switch a.Kind {
	case sweep.Republish:
		_ = publish(t, r.bus, command{verb: "create", key: sb.GetIdempotencyKey(), life: sb.GetSpec().GetMaxLifetime().AsDuration()})
	case sweep.Stop:
		stopped, err := update(t, r.bus, sb.GetId(), nil, lifecycle.Stop{Cause: a.Cause, Reason: a.Message})
		if err == nil {
			_ = r.tell(t, stopped)
		}
	case sweep.Tell:
		if sb.GetRevision() != 0 {
			_ = r.tell(t, sb)
			return
		}
		agent := r.w.machine(r.name, sb.GetPlacement().GetNode()).agent
		_, _ = ask(t, &agent.process, carry{timeout: askTimeout}, func(answer func(bool, error)) { answer(agent.sync(sb.GetId())) })
	case sweep.Finish:
		_, _ = update(t, r.bus, sb.GetId(), nil, lifecycle.Finish{
			Epoch: sb.GetPlacement().GetEpoch(), End: &siroccov1.End{Cause: a.Cause, Message: a.Message},
		})
	case sweep.Forget:
		_, _ = onBus(t, r.bus, func() (struct{}, error) {
			r.bus.delete(sb.GetId())
			return struct{}{}, nil
		})
	}
}
