package simulation

import (
	"errors"
	"fmt"
	"time"

	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/move"
	"github.com/sirocco-run/sirocco/pkg/weight"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

// user is somebody who wants one sandbox, uses it, moves it about, and believes what is
// answered.
type user struct {
	process
	id     string
	key    string
	values int
	acts   int
}

func (w *world) addUser(n int) {
	r := w.order[w.rng.IntN(len(w.order))]
	u := &user{process: process{w: w, name: fmt.Sprintf("user%d", n), region: r, up: true}, key: fmt.Sprintf("key-%d", n)}
	w.users = append(w.users, u)
	u.spawn(u.live)
}

// anyRegion draws a region through whose api or relay the user asks.
func (u *user) anyRegion() *region { return u.w.order[u.w.rng.IntN(len(u.w.order))] }

func (u *user) live(t *task) {
	w := u.w
	t.sleep(w.between(0, 30*time.Second))
	life := w.between(40*time.Second, 10*time.Minute)
	if w.chance(0.5) {
		life = w.between(10*time.Second, time.Minute)
	}
	first := u.anyRegion()
	for u.id == "" {
		// The key leads to the same region each time: the api of the first remembers.
		id, err := ask(t, first.api, carry{timeout: 10 * time.Second}, handled(first.api, func(t *task) (string, error) {
			return first.accept(t, u.key, life)
		}))
		if err == nil {
			u.id = id
			w.note(u.name, "has %s", id)
		} else if w.calm {
			return
		} else {
			t.sleep(w.between(100*time.Millisecond, 3*time.Second))
		}
	}
	ends := w.chance(0.4)
	for !w.calm {
		t.sleep(w.between(200*time.Millisecond, 4*time.Second))
		switch p := w.rng.Float64(); {
		case p < 0.45:
			u.request(t)
		case p < 0.8:
			to := u.anyRegion()
			u.command(t, command{verb: "migrate", region: to.name})
		case p < 0.87:
			u.command(t, command{verb: "tag", tag: fmt.Sprint(u.acts)})
		case p < 0.92:
			u.command(t, command{verb: "extend", by: w.between(20*time.Second, 10*time.Minute)})
		case p < 0.95 && ends:
			w.mayEnd[u.id] = true
			if u.command(t, command{verb: "terminate"}) {
				w.mustEnd[u.id] = true
			}
		}
	}
	for range 20 {
		t.sleep(3 * time.Second)
		u.request(t)
	}
}

// command asks an api for a change, and says whether it was promised.
func (u *user) command(t *task, c command) bool {
	u.acts++
	c.id, c.key = u.id, fmt.Sprintf("%s-%d", u.id, u.acts)
	r := u.anyRegion()
	_, err := ask(t, r.api, carry{timeout: 5 * time.Second}, handled(r.api, func(t *task) (struct{}, error) {
		return struct{}{}, r.command(t, c)
	}))
	if err == nil && c.verb == "tag" {
		u.w.tags[u.id] = append(u.w.tags[u.id], c.tag)
	}
	return err == nil
}

// request writes a value into the sandbox through a relay. What is answered must never
// be lost.
func (u *user) request(t *task) {
	u.values++
	value := u.values
	r := u.anyRegion()
	_, err := ask(t, r.relay, carry{stream: true, timeout: 3 * time.Second}, handled(r.relay, func(t *task) (struct{}, error) {
		return struct{}{}, r.relayed(t, u.id, value)
	}))
	if err == nil {
		u.w.acked[u.id] = append(u.w.acked[u.id], value)
	}
}

// accept makes a create request durable in the region that the weights give it, and
// returns the sandbox's id.
func (r *region) accept(t *task, key string, life time.Duration) (string, error) {
	w := r.w
	if w.sentTo[key] == nil { // the claim of the key, which the api's region keeps
		d := r.weigh(t.p)
		name, _, err := weight.Pick(d, weight.Request{Nearest: r.name, Random: w.rng.Float64()})
		if err != nil {
			return "", err
		}
		w.sentTo[key] = w.regions[name]
	}
	there := w.sentTo[key]
	if err := publish(t, there.bus, command{verb: "create", key: key, life: life}); err != nil {
		return "", err
	}
	for range 30 {
		t.sleep(200 * time.Millisecond)
		id, err := onBus(t, there.bus, func() (string, error) { return there.bus.keys[key], nil })
		if err == nil && id != "" {
			return id, nil
		}
	}
	return "", errLost
}

// weigh is a step of the region's controller, from what it sees of all regions.
func (r *region) weigh(p *process) []weight.Decision {
	var seen []weight.Region
	for _, other := range r.w.order {
		in := weight.Region{Name: other.name, Known: true, Dead: !other.bus.up || r.w.cut(p, &other.bus.process)}
		for _, m := range other.machines {
			in.Capacity += float64(m.capacity)
			in.Free += float64(m.capacity - len(m.copies))
			if beat := other.bus.hearts[m.name]; r.w.now-beat < heartLife {
				in.Score += 1 / float64(len(other.machines))
			}
		}
		in.StartRate = in.Free
		seen = append(seen, in)
	}
	state, decisions := weight.DefaultConfig().Step(r.weights, seen, p.clock())
	r.weights = state
	return decisions
}

// command publishes a change in the region that holds the sandbox's record.
func (r *region) command(t *task, c command) error {
	err := errNone
	for _, other := range append([]*region{r}, r.w.order...) {
		var sb *siroccov1.Sandbox
		if sb, err = get(t, other.bus, c.id); err != nil {
			continue
		}
		if move.RouteOf(sb, other.name) == move.There {
			other = r.w.regions[sb.GetPlacement().GetRegion()]
		} else if c.verb == "terminate" && sb.GetState() == siroccov1.State_STATE_RUNNING {
			// The quickest way: its node ends it, without a write before.
			a := r.w.home(sb).agent
			known, err := ask(t, &a.process, carry{timeout: askTimeout}, func(answer func(bool, error)) {
				answer(a.stop(c.id, sb.GetPlacement().GetEpoch()))
			})
			for range 10 {
				if err != nil || !known {
					break
				}
				t.sleep(200 * time.Millisecond)
				if sb, err := get(t, other.bus, c.id); err == nil && lifecycle.Ended(sb.GetState()) {
					return nil // only the record is a promise
				}
			}
		}
		return publish(t, other.bus, c)
	}
	return err
}

var errHeld = errors.New("held for too long")

// relayed brings a request to where the record of this region says that the sandbox is.
func (r *region) relayed(t *task, id string, value int) error {
	for range 5 {
		sb, err := get(t, r.bus, id)
		if err == nil {
			r.routes[id] = sb
		}
		sb = r.routes[id] // with the bus away, what was known
		if sb == nil {
			return errNone
		}
		if sb.GetState() == siroccov1.State_STATE_RUNNING {
			m := r.w.home(sb)
			ok, err := ask(t, &m.agent.process, carry{stream: true, timeout: time.Second}, func(answer func(bool, error)) {
				answer(m.serve(id, sb.GetPlacement().GetEpoch(), value), nil)
			})
			if err == nil && ok {
				return nil
			}
			if err != nil {
				return err // it may have arrived: not again
			}
		}
		t.sleep(300 * time.Millisecond)
	}
	return errHeld
}
