package bench

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

// Mode is how creates follow each other.
type Mode string

// The modes.
const (
	// Sequential: the next one begins when the one before has ended.
	Sequential Mode = "sequential"
	// Staggered: one begins every TTI.Stagger.
	Staggered Mode = "staggered"
	// Burst: all begin at once.
	Burst Mode = "burst"
)

// DefaultStagger is the distance of staggered creates.
const DefaultStagger = 200 * time.Millisecond

// TTI configures a measurement of the time to interactive.
type TTI struct {
	Mode Mode
	// N is how many sandboxes.
	N       int
	Stagger time.Duration
	// Cold gives each request a template of its own, for which no pool can hold a
	// warm sandbox.
	Cold bool
	// Request is what each is made from.
	Request *siroccov1.CreateSandboxRequest
	// Command is the first command; default: echo ready.
	Command []string
	// Timeout bounds each sandbox; default 1 min.
	Timeout time.Duration
}

var defaultCommand = []string{"echo", "ready"}

func (c TTI) withDefaults() (TTI, error) {
	if c.N < 1 {
		return c, errors.New("want at least one sandbox")
	}
	if c.Mode != Sequential && c.Mode != Staggered && c.Mode != Burst {
		return c, fmt.Errorf("%q is no mode: want %s, %s or %s", c.Mode, Sequential, Staggered, Burst)
	}
	if c.Timeout == 0 {
		c.Timeout = time.Minute
	}
	if c.Stagger == 0 {
		c.Stagger = DefaultStagger
	}
	if len(c.Command) == 0 {
		c.Command = defaultCommand
	}
	return c, nil
}

// name is the report's.
func (c TTI) name() string {
	if c.Cold {
		return "tti-cold-" + string(c.Mode)
	}
	return "tti-" + string(c.Mode)
}

// TTI measures the time to interactive: from the request until the first command
// of a new sandbox has answered. Every sandbox is ended again, outside the
// measured time. The error is that of a configuration or of ctx; failures of
// sandboxes are in the report.
func (b *Bench) TTI(ctx context.Context, cfg TTI) (*Report, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	m := &ttiRun{run: b.begin(ctx, cfg.name(), fmt.Sprintf("%d sandboxes, %s%s, until the first command answered", cfg.N, cfg.Mode, map[bool]string{true: ", no warm one fits"}[cfg.Cold])), cfg: cfg, exotic: newExotic()}
	var before, after Samples
	if cfg.Mode == Burst {
		m.alone(ctx, cfg.N, &before)
	}
	m.start = time.Now()
	m.all(ctx)
	took := m.since()
	m.ends.Wait()
	if cfg.Mode == Burst {
		m.alone(ctx, cfg.N+aloneStarts, &after)
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	m.Time("create answered", m.create.All(), m.Floor.create())
	m.Time("first command answered", m.tti.All(), m.Floor.tti())
	m.Time("terminate to gone", m.gone.All(), m.Floor.destroy())
	if cfg.Mode == Burst {
		m.Time("one by one before: first command answered", before.All(), m.Floor.tti())
		m.Time("one by one after: first command answered", after.All(), m.Floor.tti())
	}
	m.Figure("succeeded", float64(len(m.tti.All())), fmt.Sprintf("of %d", cfg.N), 0)
	m.Figure("whole starts", float64(len(m.tti.All()))/took.Seconds(), "/s", 0)
	m.Figure("warm", m.warmShare(), "%", 0)
	m.Plots = append(m.Plots, LatencyPlot("Time to the first command's answer, "+string(cfg.Mode), m.tti.All()),
		DistributionPlot("Distribution, "+string(cfg.Mode), []string{"create answered", "first command answered"}, m.create.All(), m.tti.All()))
	if cfg.Cold {
		m.Note("each request has a memory limit of its own, so that no warm sandbox fits it")
	}
	return m.conclude(ctx, took), nil
}

type ttiRun struct {
	*run
	cfg    TTI
	exotic exotic

	create, tti, gone Samples
	// ends are outside of what is measured; only Sequential waits for each.
	wg, ends sync.WaitGroup
	mu       sync.Mutex
	done     int
	warm     int
}

// all makes the sandboxes as the mode says.
func (m *ttiRun) all(ctx context.Context) {
	defer m.wg.Wait()
	for i := range m.cfg.N {
		switch {
		case m.cfg.Mode == Sequential:
			m.wg.Wait()
			m.ends.Wait()
		case m.cfg.Mode == Staggered && !until(ctx, m.start.Add(time.Duration(i)*m.cfg.Stagger)):
			return
		}
		if ctx.Err() != nil {
			return
		}
		m.wg.Go(func() { m.one(ctx, i) })
	}
}

// aloneStarts is how many sandboxes are made one by one before and after a burst, to see
// whether it leaves anything behind that makes later ones slower.
const aloneStarts = 10

// alone makes and ends sandboxes one by one. first is the number of the first.
func (m *ttiRun) alone(ctx context.Context, first int, times *Samples) {
	for i := range aloneStarts {
		if ctx.Err() != nil {
			return
		}
		m.Progress.Say("%s: %d of %d one by one", m.Name, i+1, aloneStarts)
		sctx, cancel := context.WithTimeout(ctx, m.cfg.Timeout)
		at := m.since()
		o, err := open(sctx, m.Client, m.request(first+i), m.cfg.Command, time.Now())
		if !m.failures.Add(err) {
			times.Add(at, o.tti)
		}
		if o.Sandbox != nil {
			if err := end(sctx, o.Sandbox, m.cfg.Timeout); o.Record.GetEnd() == nil {
				m.failures.Add(err)
			}
		}
		cancel()
	}
}

// request is what the i-th sandbox is made from.
func (m *ttiRun) request(i int) *siroccov1.CreateSandboxRequest {
	if m.cfg.Cold {
		return m.exotic.request(m.cfg.Request, i)
	}
	return m.cfg.Request
}

func (m *ttiRun) one(ctx context.Context, i int) {
	ctx, cancel := context.WithTimeout(ctx, m.cfg.Timeout)
	defer cancel()
	at := m.since()
	o, err := open(ctx, m.Client, m.request(i), m.cfg.Command, time.Now())
	if !m.failures.Add(err) {
		m.create.Add(at, o.create)
		m.tti.Add(at, o.tti)
	}
	if o.Sandbox != nil {
		m.ends.Go(func() {
			at, began := m.since(), time.Now()
			if err := end(ctx, o.Sandbox, m.cfg.Timeout); o.Record.GetEnd() == nil && !m.failures.Add(err) {
				m.gone.Add(at, time.Since(began))
			}
		})
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.done++
	if o.Sandbox != nil && o.Record.GetObserved().GetWarm() {
		m.warm++
	}
	m.Progress.Say("%s: %d of %d, %d failed", m.Name, m.done, m.cfg.N, m.failures.Count())
}

func (m *ttiRun) warmShare() float64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return 100 * float64(m.warm) / float64(m.cfg.N)
}
