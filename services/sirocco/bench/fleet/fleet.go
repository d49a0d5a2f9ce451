package fleet

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/sirocco-run/sirocco/pkg/program"
	"github.com/sirocco-run/sirocco/services/sirocco/bench"
	"github.com/sirocco-run/sirocco/services/sirocco/up"
)

// Run measures a control plane as the configuration says. The error is that of a
// configuration, of the start, or of ctx; what the platform does wrong is in the
// report.
func Run(ctx context.Context, cfg Config) (*bench.Report, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	report := &bench.Report{Name: cfg.Name, Machine: bench.ThisMachine(), Began: time.Now()}
	cfg.Progress.Say("starting the control plane and %d nodes", cfg.Nodes)
	dir, err := os.MkdirTemp("", "sirocco-fleet-")
	if err != nil {
		return nil, err
	}
	if cfg.Keep {
		report.Note("logs and streams are in %s", dir)
	} else {
		defer func() { _ = os.RemoveAll(dir) }()
	}
	free, err := freePlaces(1)
	if err != nil {
		return nil, err
	}
	data := filepath.Join(dir, "data")
	r, err := startRegion(ctx, site{
		program: cfg.Program, dir: dir, data: data, keys: up.KeysDir(data), region: program.DefaultRegion, prefix: "sim", ports: free[0],
		count: cfg.Nodes, schedulers: cfg.Schedulers, retained: cfg.Retained, eventBytes: cfg.EventBytes, set: cfg.Set,
	})
	if err != nil {
		return nil, err
	}
	defer r.stop()
	m := &measurement{cfg: cfg, region: r, load: newLoad(patience, r.nc), report: report}
	m.watcher = newWatcher(r, m.load)
	err = m.run(ctx)
	cfg.Progress.Done()
	if err != nil {
		return nil, err
	}
	report.Seconds = time.Since(report.Began).Seconds()
	return report, nil
}

// measurement is one run.
type measurement struct {
	cfg     Config
	region  *region
	load    *load
	watcher *watcher
	report  *bench.Report
}

func (m *measurement) run(ctx context.Context) error {
	watched := make(chan struct{})
	wctx, unwatch := context.WithCancel(ctx)
	stop := sync.OnceFunc(func() { unwatch(); <-watched })
	go func() {
		defer close(watched)
		m.watcher.run(wctx)
	}()
	defer stop()
	for _, part := range []struct {
		wanted bool
		do     func(context.Context) error
	}{
		{m.cfg.Lifecycles > 0, m.lifecycles}, {m.cfg.Weekend > 0, m.weekend}, {m.cfg.Live > 0, m.churn},
		{m.cfg.Restart, m.restart}, {m.cfg.Surge, m.surge}, {true, m.end},
	} {
		if !part.wanted {
			continue
		}
		if err := part.do(ctx); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	stop()
	m.conclude(ctx)
	return nil
}

// say shows how far a part of the measurement is.
func (m *measurement) say(part string) {
	live, made, ended := m.load.count()
	m.cfg.Progress.Say("%s: %d live, %d made, %d ended, %d failed; control plane %d MiB", part, live, made, ended, m.load.failures.Count(),
		m.region.control.Load().Usage().Resident>>20)
}

// saying shows it every second until the returned function is called.
func (m *measurement) saying(ctx context.Context, part string) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				m.say(part)
			}
		}
	}()
	return func() { cancel(); <-done }
}

// cycles makes whole lifecycles as fast as they go until more says no.
func (m *measurement) cycles(ctx context.Context, name string, more func() bool) {
	defer m.saying(ctx, name)()
	var t times
	_, _, before := m.load.count()
	cpu, synced := m.cpu(), m.syncing(ctx)
	began := time.Now()
	together(ctx, m.cfg.Workers, func() bool {
		if !more() {
			return false
		}
		if id, err := m.load.create(ctx, &t); err == nil {
			_ = m.load.end(ctx, id, &t)
		}
		return true
	})
	took := time.Since(began)
	_, _, ended := m.load.count()
	n := ended - before
	m.report.Figure(name+": lifecycles", float64(n)/took.Seconds(), "1/s", 0)
	used := m.cpu()
	for i, who := range []string{"control plane", "nodes"} {
		m.report.Figure(name+": CPU of the "+who, float64((used[i]-cpu[i]).Microseconds())/float64(max(n, 1))/1000, "ms/lifecycle", 0)
	}
	m.times(name, &t, synced())
	// What has ended is not live; the list of those that are is made anew.
	m.load.mu.Lock()
	m.load.live = nil
	m.load.mu.Unlock()
}

func (m *measurement) cpu() [2]time.Duration {
	return [2]time.Duration{m.region.control.Load().Usage().CPU, m.region.nodes.Usage().CPU}
}

// times reports what was taken of a part, and what the disk took for a synced write
// meanwhile.
func (m *measurement) times(name string, t *times, synced []bench.Sample) {
	for _, x := range []struct {
		what    string
		samples []bench.Sample
	}{
		{"create until running", t.create.All()}, {"accepted to running, above the node's own", t.platform.All()},
		{"end", t.end.All()}, {"a write of 1 KiB synced, beside it", synced},
	} {
		if len(x.samples) > 0 {
			m.report.Time(name+": "+x.what, x.samples, 0)
		}
	}
}

func (m *measurement) lifecycles(ctx context.Context) error {
	until := time.Now().Add(m.cfg.Lifecycles)
	m.cycles(ctx, "lifecycles", func() bool { return time.Now().Before(until) })
	return nil
}

// weekend makes as many sandboxes as a weekend brings. Memory and disk must not
// grow with how many there were.
func (m *measurement) weekend(ctx context.Context) error {
	var mu sync.Mutex
	left := m.cfg.Weekend
	from := time.Since(m.watcher.began).Seconds()
	m.cycles(ctx, "weekend", func() bool {
		mu.Lock()
		defer mu.Unlock()
		left--
		return left >= 0
	})
	for _, x := range []struct {
		what   string
		series *bench.Series
		slack  float64
	}{{"memory of the control plane", &m.watcher.memory, 64}, {"disk of the bus", &m.watcher.disk, 64}} {
		second, last := growth(x.series.Points(), from)
		m.report.Figure("weekend: "+x.what+", second quarter", second, "MiB", 0)
		m.report.Figure("weekend: "+x.what+", last quarter", last, "MiB", 0)
		if m.cfg.Weekend >= flatFrom && last > second*1.1+x.slack {
			m.watcher.breaks("not flat: %s was %.0f MiB in the second quarter of the weekend and %.0f MiB in the last", x.what, second, last)
		}
	}
	return nil
}

// flatFrom is how many sandboxes a weekend must have for memory and disk to be
// expected flat: below, nothing has reached its bounds yet.
const flatFrom = 100_000

// growth returns the medians of a figure in the second and in the last quarter of
// the time since from.
func growth(points []bench.Point, from float64) (second, last float64) {
	var values []float64
	for _, p := range points {
		if p.X >= from {
			values = append(values, p.Y)
		}
	}
	median := func(part []float64) float64 {
		if len(part) == 0 {
			return 0
		}
		part = slices.Sorted(slices.Values(part))
		return part[len(part)/2]
	}
	n := len(values)
	return median(values[n/4 : n/2]), median(values[n-n/4:])
}

// churn lets Live sandboxes live while as many come as go.
func (m *measurement) churn(ctx context.Context) error {
	stop := m.saying(ctx, "filling")
	var t times
	began := time.Now()
	m.load.fill(ctx, m.cfg.Live, m.cfg.Workers, &t)
	m.report.Figure("filling: sandboxes made", float64(m.cfg.Live)/time.Since(began).Seconds(), "1/s", 0)
	stop()
	if m.cfg.Duration > 0 {
		m.steady(ctx, "churn", m.cfg.Duration)
	}
	m.report.Figure("control plane with "+fmt.Sprint(m.cfg.Live)+" live", float64(m.region.control.Load().Usage().Resident)/(1<<20), "MiB", 0)
	return nil
}

// steady makes and ends Churn sandboxes a second.
func (m *measurement) steady(ctx context.Context, name string, d time.Duration) {
	defer m.saying(ctx, name)()
	var t times
	cpu, synced := m.cpu(), m.syncing(ctx)
	began := time.Now()
	bench.Pace(ctx, int(d.Seconds()*m.cfg.Churn), m.cfg.Churn, func(int, time.Time) {
		var both sync.WaitGroup
		both.Go(func() { _, _ = m.load.create(ctx, &t) })
		both.Go(func() { m.load.endOldest(ctx, &t) })
		both.Wait()
	})
	took := time.Since(began)
	used := m.cpu()
	m.report.Figure(name+": CPU of the control plane", 100*float64(used[0]-cpu[0])/float64(took), "% of a core", 0)
	disk := synced()
	m.times(name, &t, disk)
	writes := bench.LatencyPlot("A write of 1 KiB synced", disk)
	writes.Name = "sync"
	m.report.Plots = append(m.report.Plots, bench.LatencyPlot("Accepted to running, above the node's own", t.platform.All()), writes)
}

// restart ends all services while everything lives, and starts them again.
func (m *measurement) restart(ctx context.Context) error {
	m.cfg.Progress.Say("restarting all services with %d live", m.cfg.Live)
	r, err := m.restarted(ctx)
	if err != nil {
		return err
	}
	m.report.Figure("restart: until the control plane says that it serves", r.served.Seconds(), "s", 0)
	m.report.Figure("restart: until a sandbox was made and ended", r.first.Seconds(), "s", 0)
	m.report.Figure("restart: until every node is ready", r.whole.Seconds(), "s", 0)
	m.watcher.audit(ctx)
	return nil
}

// restarted says how long the parts of a restart took, from when the control plane
// was started again.
type restarted struct{ served, first, whole time.Duration }

func (m *measurement) restarted(ctx context.Context) (r restarted, err error) {
	m.watcher.auditing.Lock() // there is nobody to ask
	defer m.watcher.auditing.Unlock()
	stopped := time.Now()
	began, err := m.region.restart(ctx)
	if err != nil {
		return r, err
	}
	r.served = time.Since(began)
	var t times
	if id, err := m.load.create(ctx, &t); err == nil {
		_ = m.load.end(ctx, id, &t)
	}
	r.first = time.Since(began)
	err = m.region.awaitNodes(ctx, stopped)
	r.whole = time.Since(began)
	return r, err
}

// surge lets the live count grow threefold.
func (m *measurement) surge(ctx context.Context) error {
	var t times
	stop := m.saying(ctx, "to the foot of the surge")
	m.load.fill(ctx, m.cfg.Peak/3, m.cfg.Workers, &t)
	stop()
	defer m.saying(ctx, "surge")()
	t = times{}
	more := m.cfg.Peak - m.cfg.Peak/3
	rate := float64(more) / m.cfg.SurgeTime.Seconds()
	synced := m.syncing(ctx)
	began := time.Now()
	var churn sync.WaitGroup
	churn.Go(func() { // those who leave anyway, and as many more
		bench.Pace(ctx, int(m.cfg.SurgeTime.Seconds()*m.cfg.Churn), m.cfg.Churn, func(int, time.Time) {
			_, _ = m.load.create(ctx, &t)
			m.load.endOldest(ctx, &t)
		})
	})
	bench.Pace(ctx, more, rate, func(int, time.Time) { _, _ = m.load.create(ctx, &t) })
	churn.Wait()
	live, _, _ := m.load.count()
	m.report.Figure("surge: live at the peak", float64(live), "sandboxes", 0)
	m.report.Figure("surge: time", time.Since(began).Seconds(), "s", 0)
	m.times("surge", &t, synced())
	m.watcher.audit(ctx)
	return nil
}

// end ends everything that lives.
func (m *measurement) end(ctx context.Context) error {
	live, _, _ := m.load.count()
	if live == 0 {
		return nil
	}
	defer m.saying(ctx, "ending")()
	var t times
	began := time.Now()
	m.load.fill(ctx, 0, m.cfg.Workers, &t)
	m.report.Figure("ending: sandboxes ended", float64(live)/time.Since(began).Seconds(), "1/s", 0)
	return nil
}
