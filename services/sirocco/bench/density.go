package bench

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	sirocco "github.com/sirocco-run/sirocco/sdk/go"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

// Density configures a measurement of many sandboxes at once.
type Density struct {
	// N is how many.
	N int
	// Idle: without servers and tunnels.
	Idle bool
	// Parallel is how many creates are under way at a time.
	Parallel int
	// Rest is for how long the CPU of idling is measured; default DefaultRest.
	Rest time.Duration
	// Request is what each is made from.
	Request *siroccov1.CreateSandboxRequest
	// Timeout bounds each call; default 2 min.
	Timeout time.Duration
}

const (
	// DefaultRest is how long many idle ones are watched.
	DefaultRest = 20 * time.Second
	// calm is how long they are left alone before.
	calm = 3 * time.Second
	// serverPort is where the servers of measurements listen.
	serverPort = 8000
	// lifetime is longer than any measurement.
	lifetime = 4 * time.Hour
	// goneEvery is how often the host is looked at while all end.
	goneEvery = 50 * time.Millisecond
)

// whoServer is the command of an HTTP server that answers with the id of its
// sandbox.
func whoServer() []string {
	return []string{"sh", "-c", fmt.Sprintf("mkdir -p /tmp/w && hostname > /tmp/w/index.html && exec httpd -q -p %d /tmp/w", serverPort)}
}

// small gives a request that says nothing of it the least CPU and memory that are
// set aside, so that only the machine limits how many there are.
func small(req *siroccov1.CreateSandboxRequest) *siroccov1.CreateSandboxRequest {
	req = proto.CloneOf(req)
	if req.Resources == nil {
		req.Resources = &siroccov1.Resources{}
	}
	if req.Resources.CpuRequestMillis == 0 {
		req.Resources.CpuRequestMillis = 1
	}
	if req.Resources.MemoryRequestBytes == 0 {
		req.Resources.MemoryRequestBytes = 8 << 20
	}
	if req.MaxLifetime == nil {
		req.MaxLifetime = durationpb.New(lifetime)
	}
	return req
}

// Density brings up N sandboxes, checks that each serves, measures what they
// cost, and ends all at once.
func (b *Bench) Density(ctx context.Context, cfg Density) (*Report, error) {
	if cfg.N < 1 || cfg.Parallel < 1 {
		return nil, errors.New("want at least one sandbox and one create at a time")
	}
	if cfg.Rest == 0 {
		cfg.Rest = DefaultRest
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 2 * time.Minute
	}
	if err := b.fits(ctx, cfg.N); err != nil {
		return nil, err
	}
	cfg.Request = small(cfg.Request)
	name, about := "density", fmt.Sprintf("%d live at once, each with an HTTP server behind its own tunnel", cfg.N)
	if cfg.Idle {
		name, about = "density-idle", fmt.Sprintf("%d live at once, idle", cfg.N)
	} else {
		cfg.Request.Command = whoServer()
		cfg.Request.Ports = []*siroccov1.Port{{Port: serverPort}}
	}
	m := &densityRun{run: b.begin(ctx, name, about), cfg: cfg, web: b.Tunnels.Client(1)}
	m.web.Transport.(*http.Transport).DisableKeepAlives = true
	err := m.rise(ctx)
	if err == nil {
		err = m.rest(ctx)
	}
	m.fall(ctx)
	if err = errors.Join(err, ctx.Err()); err != nil {
		return nil, err
	}
	m.Time("create answered", m.create.All(), m.Floor.create())
	if !cfg.Idle {
		m.Time("first answer through the tunnel", m.answered.All(), 0)
	}
	m.Time("terminate to gone, all at once", m.gone.All(), m.Floor.destroy())
	m.Plots = append(m.Plots, LivePlot("Live sandboxes", &m.live), LatencyPlot("Create answered", m.create.All()),
		DistributionPlot("Distribution", []string{"create answered", "terminate to gone"}, m.create.All(), m.gone.All()))
	return m.conclude(ctx, m.since()), nil
}

// fits returns an error if the nodes take fewer sandboxes than that: the last ones would
// wait for room until they are given up. A platform that does not say, to somebody who is
// no operator, is tried.
func (b *Bench) fits(ctx context.Context, n int) error {
	list, err := b.Client.Nodes().List(ctx, connect.NewRequest(&siroccov1.ListNodesRequest{}))
	if err != nil {
		return nil //nolint:nilerr // see above
	}
	room := 0
	for _, node := range list.Msg.GetNodes() {
		room += int(node.GetCapacity().GetSandboxes()) - int(node.GetLive())
	}
	if len(list.Msg.GetNodes()) > 0 && room < n {
		return fmt.Errorf("the nodes have room for %d sandboxes more, not for %d: fewer with -n, or more with --sandboxes of the node-agents (sirocco up --set node-agent.sandboxes=%d)", room, n, n+n/10)
	}
	return nil
}

type densityRun struct {
	*run
	cfg Density
	web *http.Client

	create, answered, gone Samples
	live                   Series
	count                  atomic.Int64

	mu  sync.Mutex
	all []*sirocco.Sandbox
}

// each calls f for 0 to n-1, so many at a time.
func each(ctx context.Context, n, parallel int, f func(i int)) {
	var wg sync.WaitGroup
	next := make(chan int)
	for range min(parallel, n) {
		wg.Go(func() {
			for i := range next {
				f(i)
			}
		})
	}
	for i := range n {
		select {
		case next <- i:
		case <-ctx.Done():
		}
	}
	close(next)
	wg.Wait()
}

// rise brings all of them up, and asks each once more when all live.
func (m *densityRun) rise(ctx context.Context) error {
	before, machines, err := m.usage()
	if err != nil {
		return err
	}
	m.start = time.Now()
	each(ctx, m.cfg.N, m.cfg.Parallel, func(int) { m.one(ctx) })
	up := m.since()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	m.Figure("live at once", float64(m.count.Load()), fmt.Sprintf("of %d", m.cfg.N), 0)
	m.Figure("from 0 to all", up.Seconds(), "s", m.Floor.create()*float64(m.cfg.N)/1000)
	if !m.cfg.Idle {
		m.askAll(ctx)
	}
	if !until(ctx, time.Now().Add(calm)) || m.Local == nil {
		return ctx.Err()
	}
	after, more, err := m.usage()
	if err != nil {
		return err
	}
	// Pools of warm ones may have grown or shrunk meanwhile.
	more -= machines
	per := func(bytes int64) float64 { return float64(bytes) / (1 << 20) / float64(max(more, 1)) }
	m.Figure("machines more than before, warm ones counted", float64(more), "", 0)
	m.Figure("memory of the machine, each", per(before.Available-after.Available), "MiB", 0)
	m.Figure("  of which in its cgroup", per(after.CgroupBytes-before.CgroupBytes), "MiB", 0)
	m.Figure("  of which in the services' process", per(after.RSS-before.RSS), "MiB", 0)
	return nil
}

// usage is that of a platform of this machine, and how many machines it has;
// nothing of another.
func (m *densityRun) usage() (Usage, int, error) {
	if m.Local == nil {
		return Usage{}, 0, nil
	}
	u, err := m.Local.Usage()
	return u, len(m.Local.machines()), err
}

func (m *densityRun) one(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, m.cfg.Timeout)
	defer cancel()
	at, began := m.since(), time.Now()
	o, err := open(ctx, m.Client, m.cfg.Request, nil, began)
	if o.Sandbox != nil && o.Record.GetEnd() == nil {
		m.mu.Lock()
		m.all = append(m.all, o.Sandbox)
		m.mu.Unlock()
	}
	if m.failures.Add(err) {
		return
	}
	m.create.Add(at, o.create)
	if !m.cfg.Idle {
		if m.failures.Add(m.ask(ctx, o.Sandbox)) {
			return
		}
		m.answered.Add(at, time.Since(began))
	}
	n := m.count.Add(1)
	m.live.Add(m.since(), float64(n))
	m.Progress.Say("%s: %d of %d live, %d failed", m.Name, n, m.cfg.N, m.failures.Count())
}

// ask checks that the sandbox's tunnel leads to the sandbox.
func (m *densityRun) ask(ctx context.Context, s *sirocco.Sandbox) error {
	url, err := tunnelOf(s.Record)
	if err != nil {
		return err
	}
	var body strings.Builder
	if err := get(ctx, m.web, url+"/", &body); err != nil {
		return err
	}
	if got := strings.TrimSpace(body.String()); got != s.ID {
		return fmt.Errorf("the tunnel of %s leads to %q", s.ID, got)
	}
	return nil
}

// askAll asks each while all live.
func (m *densityRun) askAll(ctx context.Context) {
	began := time.Now()
	var right atomic.Int64
	each(ctx, len(m.all), m.cfg.Parallel, func(i int) {
		actx, cancel := context.WithTimeout(ctx, m.cfg.Timeout)
		defer cancel()
		if !m.failures.Add(m.ask(actx, m.all[i])) {
			m.Progress.Say("%s: all live; %d of %d have answered again", m.Name, right.Add(1), len(m.all))
		}
	})
	m.Figure("answered once all were live", float64(right.Load()), fmt.Sprintf("of %d", len(m.all)), 0)
	m.Figure("  in", time.Since(began).Seconds(), "s", 0)
}

// rest measures the CPU while nothing happens.
func (m *densityRun) rest(ctx context.Context) error {
	if m.Local == nil {
		m.Note("memory and CPU: not available, the platform is not on this machine (%v)", m.LocalError)
		return nil
	}
	before, err := m.Local.Usage()
	if err != nil {
		return err
	}
	began := time.Now()
	m.Progress.Say("%s: %d idle for %s", m.Name, m.count.Load(), m.cfg.Rest)
	if !until(ctx, began.Add(m.cfg.Rest)) {
		return ctx.Err()
	}
	after, err := m.Local.Usage()
	if err != nil {
		return err
	}
	share := func(d time.Duration) float64 { return 100 * d.Seconds() / time.Since(began).Seconds() }
	m.Figure("CPU while all idle", share(after.Services-before.Services+after.Sandboxes-before.Sandboxes), "% of a core", 0)
	m.Figure("  services and bus", share(after.Services-before.Services), "% of a core", 0)
	m.Figure("  sandboxes", share(after.Sandboxes-before.Sandboxes), "% of a core", 0)
	return nil
}

// fall ends all at once, and waits until their machines are gone from the host. Of
// the machines that are there before, as many as were warm may stay.
func (m *densityRun) fall(ctx context.Context) {
	m.Progress.Say("%s: ending %d at once", m.Name, len(m.all))
	var before map[string]bool
	if m.Local != nil {
		before = m.Local.machines()
	}
	began := time.Now()
	var ended atomic.Int64
	each(context.WithoutCancel(ctx), len(m.all), len(m.all), func(i int) {
		at, asked := m.since(), time.Now()
		if !m.failures.Add(end(ctx, m.all[i], m.cfg.Timeout)) {
			m.gone.Add(at, time.Since(asked))
		}
		left := int64(len(m.all)) - ended.Add(1)
		m.live.Add(m.since(), float64(left))
		m.Progress.Say("%s: %d are left", m.Name, left)
	})
	floor := m.Floor.destroy() * float64(len(m.all)) / 1000
	m.Figure("all ended, as the api says", time.Since(began).Seconds(), "s", floor)
	if m.Local == nil || ctx.Err() != nil {
		return
	}
	for warm := len(before) - len(m.all); ; {
		left := -warm
		for id := range m.Local.machines() {
			if before[id] {
				left++
			}
		}
		if left <= 0 || time.Since(began) > m.cfg.Timeout || !until(ctx, time.Now().Add(goneEvery)) {
			break
		}
		m.Progress.Say("%s: %d machines are on the host", m.Name, left)
	}
	m.Figure("all gone, as the host says", time.Since(began).Seconds(), "s", floor)
}
