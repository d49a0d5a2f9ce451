package simulation

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/sirocco-run/sirocco/pkg/record"
	"github.com/sirocco-run/sirocco/pkg/weight"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

const tenant = "acme"

// region is one region: its bus, its nodes and its services.
type region struct {
	w          *world
	name       string
	bus        *bus
	machines   []*machine
	schedulers []*process
	reaper     *process
	relay      *process
	api        *process
	// routes are in the relay's memory, weights in the api's.
	routes  map[string]*siroccov1.Sandbox
	weights weight.State
}

// reachable returns the schedulers that hear the bus.
func (r *region) reachable(b *bus) []*process {
	var out []*process
	for _, s := range r.schedulers {
		if s.up && !r.w.cut(s, &b.process) {
			out = append(out, s)
		}
	}
	return out
}

// mood says how much goes wrong in a history, as chances.
type mood struct {
	// late: a message takes seconds. twice: it comes twice. stale: a read shows an old
	// record.
	late, twice, stale float64
	// crash is the chance that a program crashes before its next step.
	crash float64
	// skew bounds how wrong clocks are, power is the chance of a fault to be a loss of
	// power.
	skew  time.Duration
	power float64
	// grave: a machine that lost power may never come back.
	grave bool
	// commit is the chance of a fault just when a move is made.
	commit float64
	// faults is how many faults there are at times of their own.
	faults int
}

// world is everything of one history.
type world struct {
	engine
	broken  Broken
	mood    mood
	calm    bool
	regions map[string]*region
	order   []*region
	all     []*process
	// cuts are the pairs that do not hear each other: of processes, and of regions.
	cuts map[[2]string]int

	minted int
	users  []*user
	truth
}

// newWorld builds the world of a seed: everything about it comes from the seed.
func newWorld(seed uint64, broken Broken) *world {
	w := &world{broken: broken, regions: map[string]*region{}, cuts: map[[2]string]int{}, truth: newTruth()}
	w.seen = map[string]int{}
	w.rng = rand.New(rand.NewPCG(seed, 0x5170cc0)) //nolint:gosec // chance that can be repeated
	pick := func(values ...float64) float64 { return values[w.rng.IntN(len(values))] }
	w.mood = mood{
		late: pick(0, 0.01, 0.05, 0.15), twice: pick(0, 0.05, 0.2), stale: pick(0, 0.1, 0.4),
		crash: pick(0, 0, 0.002, 0.01), skew: time.Duration(pick(0, 1, 3) * float64(time.Second)),
		power: pick(0, 0, 0.2), commit: pick(0, 0.1, 0.4), faults: w.rng.IntN(9),
	}
	w.mood.grave = w.mood.power > 0 && w.chance(0.5)
	names := []string{"eu", "us", "ap"}[:2+w.rng.IntN(2)]
	for _, name := range names {
		w.addRegion(name)
	}
	for _, r := range w.order {
		r.bus.start()
		for _, p := range append(slices.Clone(r.schedulers), r.reaper, r.relay, r.api) {
			p.start()
		}
		for _, m := range r.machines {
			m.agent.start()
			w.beat(m)
		}
	}
	return w
}

func (w *world) process(r *region, name string, boot func()) *process {
	p := &process{w: w, name: name, region: r, boot: boot}
	if w.mood.skew > 0 {
		p.skew = w.between(-w.mood.skew, w.mood.skew)
	}
	w.all = append(w.all, p)
	return p
}

func (w *world) addRegion(name string) {
	r := &region{w: w, name: name}
	r.bus = &bus{
		process: process{w: w, name: name + "-bus", region: r},
		records: map[string][]revision{}, keys: map[string]string{}, hearts: map[string]time.Duration{},
	}
	for i := range 2 + w.rng.IntN(2) {
		node := fmt.Sprintf("n%d", i+1)
		m := &machine{
			w: w, name: name + "-" + node, node: node, region: r, capacity: 3 + w.rng.IntN(4),
			copies: map[string]*execution{}, journal: map[string]*entry{},
		}
		m.agent = &agent{m: m}
		m.agent.process = *w.process(r, m.name, func() { m.agent.adopt() })
		w.all[len(w.all)-1] = &m.agent.process
		r.machines = append(r.machines, m)
	}
	for i := range 2 {
		r.schedulers = append(r.schedulers, w.process(r, fmt.Sprintf("%s-sched%d", name, i+1), func() {}))
	}
	r.reaper = w.process(r, name+"-reaper", nil)
	r.reaper.boot = func() { r.reaper.spawn(r.reap) }
	r.relay = w.process(r, name+"-relay", func() { r.routes = map[string]*siroccov1.Sandbox{} })
	r.api = w.process(r, name+"-api", func() { r.weights = weight.State{} })
	w.regions[name] = r
	w.order = append(w.order, r)
}

// machine finds a node; home that of a placement.
func (w *world) machine(region, node string) *machine {
	for _, m := range w.regions[region].machines {
		if m.node == node {
			return m
		}
	}
	return nil
}

func (w *world) home(sb *siroccov1.Sandbox) *machine {
	return w.machine(sb.GetPlacement().GetRegion(), sb.GetPlacement().GetNode())
}

// beat is the heartbeat of a node, as long as there is a world.
func (w *world) beat(m *machine) {
	a := &m.agent.process
	if a.up && m.region.bus.up && !w.cut(a, &m.region.bus.process) {
		m.region.bus.hearts[m.name] = w.now
	}
	w.after(3*time.Second, func() { w.beat(m) })
}

// cut says whether two processes do not hear each other.
func (w *world) cut(a, b *process) bool {
	if len(w.cuts) == 0 || a == b {
		return false
	}
	if a.region != b.region && w.cuts[pair(a.region.name, b.region.name)] > 0 {
		return true
	}
	return w.cuts[pair(a.name, b.name)] > 0
}

func pair(a, b string) [2]string {
	if a > b {
		a, b = b, a
	}
	return [2]string{a, b}
}

// latency is how long a message takes.
func (w *world) latency() time.Duration {
	if !w.calm && w.chance(w.mood.late) {
		return w.between(100*time.Millisecond, 5*time.Second)
	}
	return w.between(time.Millisecond, 10*time.Millisecond)
}

// crashNow says whether a process crashes before its next step.
func (w *world) crashNow(p *process) bool {
	if w.calm || p.boot == nil || !w.chance(w.mood.crash) {
		return false
	}
	w.after(w.between(time.Second, 15*time.Second), func() { w.restart(p) })
	return true
}

// restart starts a process again, unless its machine is off.
func (w *world) restart(p *process) {
	for _, m := range p.region.machines {
		if &m.agent.process == p && m.dead {
			return
		}
	}
	p.start()
}

func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

func word(s siroccov1.State) string { return record.StateName(s) }

// state is a record in the words of a history.
type state struct{ sb *siroccov1.Sandbox }

func (s state) String() string {
	m, p := s.sb.GetMove(), s.sb.GetPlacement()
	var b strings.Builder
	b.WriteString(word(s.sb.GetState()))
	if p != nil {
		fmt.Fprintf(&b, ", epoch %d on %s-%s", p.GetEpoch(), p.GetRegion(), p.GetNode())
	}
	if m != nil && m.GetEnded() == nil {
		fmt.Fprintf(&b, ", move %d to %s-%s", m.GetEpoch(), m.GetRegion(), m.GetNode())
	}
	if end := s.sb.GetEnd(); end != nil {
		b.WriteString(", " + record.CauseName(end.GetCause()))
	}
	return b.String()
}
