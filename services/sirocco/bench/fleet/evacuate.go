package fleet

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"time"

	"connectrpc.com/connect"
	"github.com/nats-io/nats.go"
	"github.com/sirocco-run/sirocco/pkg/evacuation"
	"github.com/sirocco-run/sirocco/pkg/invariants"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/sirocco-run/sirocco/services/sirocco/bench"
	"google.golang.org/protobuf/types/known/durationpb"
)

const (
	// slack is how much longer than ordered an evacuation may take, over the time that
	// it was given three times.
	slack = 5 * time.Minute
	// restLimit is how long everything may take to come to rest behind the last call.
	restLimit = time.Minute
	// shownBroken is how many lines of what does not hold are shown.
	shownBroken = 20
)

// RunEvacuation evacuates the first of several regions while clients use all of them.
// The error is that of a configuration, of the start, or of ctx; what the platform does
// wrong is in the report.
func RunEvacuation(ctx context.Context, cfg Evacuation) (*bench.Report, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	report := &bench.Report{Name: cfg.Name, Machine: bench.ThisMachine(), Began: time.Now()}
	dir, err := os.MkdirTemp("", "sirocco-evacuate-")
	if err != nil {
		return nil, err
	}
	if cfg.Keep {
		report.Note("logs and streams are in %s", dir)
	} else {
		defer func() { _ = os.RemoveAll(dir) }()
	}
	cfg.Progress.Say("starting %d regions with %d nodes", cfg.Regions, cfg.Nodes)
	defer cfg.Progress.Done()
	all, err := startRegions(ctx, cfg, dir)
	if err != nil {
		return nil, err
	}
	defer all.stop()
	var buses []*nats.Conn
	for _, r := range all.all {
		buses = append(buses, r.nc)
	}
	m := &evacuating{cfg: cfg, regions: all, report: report, load: newLoad(0, buses...)}
	m.clients = &clients{cfg: cfg, load: m.load}
	m.sampler = newSampler(all, m.load)
	if err := m.run(ctx); err != nil {
		return nil, err
	}
	report.Seconds = time.Since(report.Began).Seconds()
	return report, nil
}

// evacuating is one run.
type evacuating struct {
	cfg     Evacuation
	regions *regions
	load    *load
	clients *clients
	sampler *sampler
	report  *bench.Report
	broken  []string
}

func (m *evacuating) run(ctx context.Context) error {
	if err := m.fill(ctx); err != nil {
		return err
	}
	sctx, unwatch := context.WithCancel(ctx)
	defer unwatch()
	watched := make(chan error, 1)
	go func() { watched <- m.sampler.run(sctx) }()
	leave := m.clients.start(ctx)
	err := m.watch(ctx)
	leave()
	unwatch()
	if werr := <-watched; err == nil {
		err = werr
	}
	if err != nil {
		return err
	}
	m.cfg.Progress.Say("waiting for rest, and checking")
	m.check(ctx)
	m.conclude()
	return ctx.Err()
}

// fill makes the sandboxes that live all the while, in all regions.
func (m *evacuating) fill(ctx context.Context) error {
	began := time.Now()
	stop := m.saying(ctx, "filling")
	m.load.fill(ctx, m.cfg.Live, m.cfg.Workers, &times{})
	stop()
	m.report.Figure("filling: sandboxes made", float64(m.cfg.Live)/time.Since(began).Seconds(), "1/s", 0)
	m.clients.keepRegulars(m.regions.clients)
	// So many at once may have moved the weights.
	m.cfg.Progress.Say("waiting until all regions are healthy")
	return m.regions.calm(ctx)
}

// watch lets clients come before, during and behind the evacuation.
func (m *evacuating) watch(ctx context.Context) error {
	defer m.saying(ctx, "clients come and go")()
	idle := m.regions.cpu()
	if err := wait(ctx, m.cfg.Before); err != nil {
		return err
	}
	cpu, began := m.regions.cpu(), time.Now()
	order, err := m.evacuate(ctx)
	if err != nil {
		return err
	}
	took := time.Since(began)
	used := m.regions.cpu()
	r := m.report
	r.Figure("evacuation: until it was over", took.Seconds(), "s", 0)
	r.Figure("evacuation: moved", float64(order.GetMoved()), "sandboxes", 0)
	r.Figure("evacuation: failed moves", float64(order.GetFailed()), "moves", 0)
	r.Figure("evacuation: slow moves", float64(order.GetSlow()), "moves", 0)
	r.Figure("evacuation: times that it paused", float64(order.GetPauses()), "", 0)
	r.Figure("evacuation: sandboxes stopped for, p50", bench.Millis(order.GetPauseP50().AsDuration()), "ms", 0)
	r.Figure("evacuation: sandboxes stopped for, p99", bench.Millis(order.GetPauseP99().AsDuration()), "ms", 0)
	for i, who := range []string{"control planes", "nodes"} {
		// What clients cost is known from before the order.
		base := time.Duration(float64(cpu[i]-idle[i]) * took.Seconds() / max(m.cfg.Before.Seconds(), 1e-9))
		if m.cfg.Before > 0 {
			r.Figure("CPU of the "+who+" for clients alone", 100*float64(cpu[i]-idle[i])/float64(m.cfg.Before), "% of a core", 0)
			r.Figure("CPU of the "+who+" above that", bench.Millis(used[i]-cpu[i]-base)/float64(max(order.GetMoved(), 1)), "ms/move", 0)
		}
	}
	if order.GetState() != siroccov1.EvacuationState_EVACUATION_STATE_DONE {
		m.breaks("the evacuation is %v after %v: %s", order.GetState(), took.Round(time.Second), order.GetWhy())
	}
	return wait(ctx, m.cfg.After)
}

// evacuate gives the order and returns how it ended, or stands after the longest time.
func (m *evacuating) evacuate(ctx context.Context) (*siroccov1.Evacuation, error) {
	region := m.regions.all[0].region
	resp, err := m.regions.clients[0].Regions().Evacuate(ctx, connect.NewRequest(&siroccov1.EvacuateRegionRequest{
		Region: region, Over: durationpb.New(m.cfg.Over), AtOnce: m.cfg.AtOnce,
	}))
	if err != nil {
		return nil, fmt.Errorf("evacuate region %s: %w", region, err)
	}
	m.sampler.ordered(resp.Msg)
	limit := time.Now().Add(3*m.cfg.Over + slack)
	for {
		if order := m.sampler.progress(); evacuation.Over(order) || time.Now().After(limit) {
			return order, nil
		}
		if err := wait(ctx, lookEvery/2); err != nil {
			return nil, err
		}
	}
}

// check looks at everything once nobody calls any more.
func (m *evacuating) check(ctx context.Context) {
	all := invariants.Regions{}
	for _, r := range m.regions.all {
		var nodes []invariants.Node
		for _, name := range r.nodeNames() {
			nodes = append(nodes, invariants.Node{Name: name})
		}
		checked, err := invariants.New(ctx, r.nc, nodes)
		if err != nil {
			m.breaks("region %s can't be checked: %v", r.region, err)
			continue
		}
		all[r.region] = checked
	}
	if broken := all.Settled(ctx, restLimit); len(broken) > 0 {
		m.breaks("%s", invariants.Summary(broken, shownBroken))
	}
	in := map[string]int{}
	lives := map[string]bool{}
	for name, r := range all {
		records, err := r.Records(ctx)
		if err != nil {
			m.breaks("the records of region %s can't be read: %v", name, err)
		}
		for _, sb := range records {
			if home(sb, name) {
				in[name]++
				lives[sb.GetId()] = true
			}
		}
	}
	emptied := m.regions.all[0].region
	if n := in[emptied]; n > 0 {
		m.breaks("%d sandboxes are in region %s still", n, emptied)
	}
	m.load.mu.Lock()
	defer m.load.mu.Unlock()
	for id := range m.load.since {
		if !lives[id] {
			m.report.Lost = append(m.report.Lost, id)
		}
		delete(lives, id)
	}
	for id := range m.load.unended {
		delete(lives, id)
	}
	if n := len(lives); n > m.load.unmade {
		m.breaks("%d live that nobody made, or that were ended; among them %s", n, slices.Min(slices.Collect(maps.Keys(lives))))
	}
	for _, r := range m.regions.all {
		m.report.Figure("live in "+r.region+" at the end", float64(in[r.region]), "sandboxes", 0)
	}
	m.broken = append(m.broken, m.load.doubles...)
}

// conclude completes the report.
func (m *evacuating) conclude() {
	r, c := m.report, m.clients
	live, made, ended := m.load.count()
	r.About = fmt.Sprintf("1 of %d regions evacuated over %v, %d simulated nodes, %d sandboxes live, %d made and %d ended",
		m.cfg.Regions, m.cfg.Over, m.cfg.Nodes, live, made, ended)
	creates := c.times.create.All()
	r.Time("create until running", creates, 0)
	r.Time("end", c.times.end.All(), 0)
	r.Time("get", c.gets.All(), 0)
	r.Time("run a command", c.execs.All(), 0)
	r.Figure("control plane of a region: most memory", float64(m.sampler.peak)/(1<<20), "MiB", 0)
	r.Figure("failed calls", float64(m.load.failures.Count()), "calls", 0)
	r.Fail(&m.load.failures)
	r.Invariants = &bench.Verdict{Checked: "the records of every region, what its nodes run, and each region against the others", Broken: m.broken}
	r.Plots = m.sampler.plots(creates)
}

func (m *evacuating) breaks(format string, args ...any) {
	m.broken = append(m.broken, fmt.Sprintf(format, args...))
}

// saying shows how far it is until the returned function is called.
func (m *evacuating) saying(ctx context.Context, part string) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for wait(ctx, lookEvery) == nil {
			live, made, ended := m.load.count()
			text := fmt.Sprintf("%s: %d live, %d made, %d ended, %d failed", part, live, made, ended, m.load.failures.Count())
			if o := m.sampler.progress(); o != nil {
				text = fmt.Sprintf("evacuating %s: %d moved, %d there, %d under way, %d moves and %d calls failed, %s %s",
					o.GetRegion(), o.GetMoved(), o.GetHere(), o.GetUnderWay(), o.GetFailed(), m.load.failures.Count(), o.GetState(), o.GetWhy())
			}
			m.cfg.Progress.Say("%s", text)
		}
	}()
	return func() { cancel(); <-done }
}

// wait waits, or returns the error of ctx.
func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
