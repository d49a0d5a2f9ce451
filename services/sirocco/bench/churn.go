package bench

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	sirocco "github.com/sirocco-run/sirocco/sdk/go"
	"google.golang.org/protobuf/proto"
)

// Churn configures a measurement under a steady load.
type Churn struct {
	// Rate is how many sandboxes are made, and how many ended, each second.
	Rate float64
	// Duration is for how long.
	Duration time.Duration
	// Live is how many sandboxes live all the while.
	Live int
	// Request is what each is made from.
	Request *siroccov1.CreateSandboxRequest
	// Command is the first command; default: echo ready.
	Command []string
	// Timeout bounds each call; default 1 min.
	Timeout time.Duration
}

const (
	// resendEvery: each 50th create is sent a second time with its key.
	resendEvery = 50
	// fillers make the sandboxes that live from the beginning.
	fillers = 4
	// memoryEvery is how often the platform's memory is looked at.
	memoryEvery = time.Second
)

// Churn measures while sandboxes come and go at a rate that does not depend on
// how fast the platform answers: create, first command, and each time one of the
// oldest is terminated.
func (b *Bench) Churn(ctx context.Context, cfg Churn) (*Report, error) {
	if cfg.Rate <= 0 || cfg.Duration <= 0 || cfg.Live < 0 {
		return nil, errors.New("want a rate and a duration above 0, and no fewer than 0 live sandboxes")
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = time.Minute
	}
	if len(cfg.Command) == 0 {
		cfg.Command = defaultCommand
	}
	m := &churnRun{
		run: b.begin(ctx, "churn", fmt.Sprintf("%g created and %g destroyed a second for %s, %d live", cfg.Rate, cfg.Rate, cfg.Duration, cfg.Live)),
		cfg: cfg,
	}
	defer m.endAll(ctx)
	if err := m.fill(ctx); err != nil {
		return nil, err
	}
	if err := m.churn(ctx); err != nil {
		return nil, err
	}
	took := m.since()
	m.endAll(ctx)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	m.Lost = m.lost
	m.Time("create answered", m.create.All(), m.Floor.create())
	m.Time("first command answered", m.tti.All(), m.Floor.tti())
	m.Time("terminate to gone", m.gone.All(), m.Floor.destroy())
	m.figures(took)
	m.Plots = append(m.Plots,
		LatencyPlot("Create until the first command answered", m.tti.All()),
		DistributionPlot("Distribution under churn", []string{"first command answered", "terminate to gone"}, m.tti.All(), m.gone.All()),
		LivePlot("Live sandboxes", &m.liveOver))
	if m.Local != nil {
		m.Plots = append(m.Plots, Plot{Name: "memory", Title: "Memory of the services' process", X: "seconds since the start", Y: "MiB", Lines: []Line{{Name: "resident", Points: m.memory.Points()}}})
	}
	return m.conclude(ctx, took), nil
}

type churnRun struct {
	*run
	cfg Churn

	create, tti, gone     Samples
	liveOver, memory      Series
	created, ended, lives atomic.Int64
	warm                  atomic.Int64
	before, after         Usage

	mu     sync.Mutex
	oldest []*sirocco.Sandbox // what lives and is not being ended, oldest first
	owed   int                // ends that were due when nothing lived
	lost   []string
	ends   sync.WaitGroup
}

// fill makes the sandboxes that live from the beginning, outside of what is
// measured.
func (m *churnRun) fill(ctx context.Context) error {
	todo := make(chan struct{}, m.cfg.Live)
	for range m.cfg.Live {
		todo <- struct{}{}
	}
	close(todo)
	var wg sync.WaitGroup
	for range fillers {
		wg.Go(func() {
			for range todo {
				octx, cancel := context.WithTimeout(ctx, m.cfg.Timeout)
				o, err := open(octx, m.Client, m.cfg.Request, m.cfg.Command, time.Now())
				cancel()
				m.failures.Add(err)
				if o.Sandbox != nil {
					m.keep(o.Sandbox)
				}
				m.Progress.Say("churn: %d of %d live to begin with", m.lives.Load(), m.cfg.Live)
			}
		})
	}
	wg.Wait()
	return ctx.Err()
}

// keep adds one that lives; an end that is owed ends one.
func (m *churnRun) keep(s *sirocco.Sandbox) {
	m.lives.Add(1)
	m.mu.Lock()
	m.oldest = append(m.oldest, s)
	owed := m.owed > 0
	if owed {
		m.owed--
	}
	m.mu.Unlock()
	if owed {
		m.endOldest(context.Background())
	}
}

// churn makes and ends at the rate, and watches.
func (m *churnRun) churn(ctx context.Context) error {
	n := int(m.cfg.Rate * m.cfg.Duration.Seconds())
	if m.Local != nil {
		var err error
		if m.before, err = m.Local.Usage(); err != nil {
			return err
		}
	}
	m.start = time.Now() // what came before was not measured
	wctx, stop := context.WithCancel(ctx)
	var watch sync.WaitGroup
	watch.Go(func() { m.watch(wctx, n) })
	Pace(ctx, n, m.cfg.Rate, func(i int, due time.Time) {
		m.endOldest(ctx)
		m.cycle(ctx, i, due)
	})
	m.ends.Wait()
	stop()
	watch.Wait()
	if m.Local != nil && ctx.Err() == nil {
		var err error
		m.after, err = m.Local.Usage()
		return err
	}
	return ctx.Err()
}

// cycle is one arrival.
func (m *churnRun) cycle(ctx context.Context, i int, due time.Time) {
	octx, cancel := context.WithTimeout(ctx, m.cfg.Timeout)
	defer cancel()
	at := due.Sub(m.start)
	o, err := open(octx, m.Client, m.cfg.Request, m.cfg.Command, due)
	m.created.Add(1)
	if !m.failures.Add(err) {
		m.create.Add(at, o.create)
		m.tti.Add(at, o.tti)
		if o.Record.GetObserved().GetWarm() {
			m.warm.Add(1)
		}
		if i%resendEvery == resendEvery/2 {
			m.resend(octx, o)
		}
	}
	if o.Sandbox != nil && o.Record.GetEnd() == nil {
		m.keep(o.Sandbox)
	}
}

// resend checks that a create that comes twice makes nothing twice.
func (m *churnRun) resend(ctx context.Context, o opened) {
	req := proto.CloneOf(m.cfg.Request)
	req.IdempotencyKey = o.key
	again, err := m.Client.Create(ctx, req)
	if err != nil {
		m.failures.Add(err)
		return
	}
	if again.ID != o.ID || !again.Existed {
		m.failures.Add(fmt.Errorf("one key gave %s, then %s", o.ID, again.ID))
	}
}

// endOldest ends the one that has lived longest.
func (m *churnRun) endOldest(ctx context.Context) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.oldest) == 0 {
		m.owed++
		return
	}
	s := m.oldest[0]
	m.oldest = m.oldest[1:]
	m.ends.Go(func() { m.end(ctx, s) })
}

func (m *churnRun) end(ctx context.Context, s *sirocco.Sandbox) {
	at, began := m.since(), time.Now()
	err := end(ctx, s, m.cfg.Timeout)
	m.lives.Add(-1)
	m.ended.Add(1)
	if m.failures.Add(err) {
		m.look(ctx, s, err)
		return
	}
	m.gone.Add(at, time.Since(began))
}

// look finds out whether one that could not be ended is lost.
func (m *churnRun) look(ctx context.Context, s *sirocco.Sandbox, why error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), m.cfg.Timeout)
	defer cancel()
	sb, err := m.Client.Get(ctx, s.ID)
	if err == nil && sb.GetEnd() != nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lost = append(m.lost, fmt.Sprintf("%s: %v", s.ID, why))
}

// endAll ends what is left. It may be called again.
func (m *churnRun) endAll(ctx context.Context) {
	m.mu.Lock()
	left := m.oldest
	m.oldest, m.owed = nil, 0
	m.mu.Unlock()
	var wg sync.WaitGroup
	turns := make(chan struct{}, 16)
	for _, s := range left {
		turns <- struct{}{}
		wg.Go(func() {
			defer func() { <-turns }()
			m.failures.Add(end(ctx, s, m.cfg.Timeout))
			m.lives.Add(-1)
		})
	}
	wg.Wait()
}

// watch notes what lives and what the platform uses, and shows how far it is.
func (m *churnRun) watch(ctx context.Context, n int) {
	for until(ctx, time.Now().Add(memoryEvery)) {
		m.liveOver.Add(m.since(), float64(m.lives.Load()))
		if m.Local != nil {
			if u, err := m.Local.Usage(); err == nil {
				m.memory.Add(m.since(), float64(u.RSS)/(1<<20))
			}
		}
		d := m.tti.Distribution()
		m.Progress.Say("churn: %d of %d created, %d ended, %d live, %d failed; p50 %.0f ms, p99 %.0f ms",
			m.created.Load(), n, m.ended.Load(), m.lives.Load(), m.failures.Count(), d.P50, d.P99)
	}
}

func (m *churnRun) figures(took time.Duration) {
	m.Figure("created", float64(m.created.Load()), "", 0)
	m.Figure("ended", float64(m.ended.Load()), "", 0)
	m.Figure("cycles", float64(m.ended.Load())/took.Seconds(), "/s", 0)
	m.Figure("warm", 100*float64(m.warm.Load())/float64(max(m.created.Load(), 1)), "%", 0)
	if m.Local == nil {
		m.Note("CPU and memory of the platform: not available, it is not on this machine (%v)", m.LocalError)
		return
	}
	perCycle := func(d time.Duration) float64 { return Millis(d) / float64(max(m.ended.Load(), 1)) }
	services, ended := m.after.Services-m.before.Services, m.after.Ended-m.before.Ended
	sandboxes := m.after.Sandboxes - m.before.Sandboxes
	m.Figure("CPU a cycle, all of the platform", perCycle(services+max(ended, sandboxes)), "ms", m.Floor.cpu())
	m.Figure("  services and bus", perCycle(services), "ms", 0)
	m.Figure("  sandboxes", perCycle(max(ended, sandboxes)), "ms", 0)
	m.Figure("CPU a cycle, this client", perCycle(m.after.Client-m.before.Client), "ms", 0)
	m.Figure("resident memory of the services, start", float64(m.before.RSS)/(1<<20), "MiB", 0)
	m.Figure("resident memory of the services, end", float64(m.after.RSS)/(1<<20), "MiB", 0)
	m.Figure("descriptors of the services, start", float64(m.before.Descriptors), "", 0)
	m.Figure("descriptors of the services, end", float64(m.after.Descriptors), "", 0)
}
