package agent

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/sirocco-run/sirocco/services/node-agent/pool"
)

const (
	// buildPause is how long a template waits after a build that failed; it doubles
	// with each one, up to buildPatience.
	buildPause    = time.Second
	buildPatience = time.Minute
	// cellBytes is what an idle cell takes of the machine's memory: gVisor's sentry,
	// the supervisor and what the kernel keeps for them (measured; see
	// docs/performance.md).
	cellBytes = 14 << 20
	// lull is for how long after a start only what is about to run empty is refilled:
	// the client's first command comes then.
	lull = 60 * time.Millisecond
	// unbounded is the size of a pool that only demand and the budget bound.
	unbounded = 1 << 20
)

// pools keeps cells ready: warm sandboxes that only want a name and a command.
// What is built and what is given up, package pool decides; here it is done.
//
// Safety: a cell leaves its shelf under mu before anybody gets it, for good; so it
// is never handed out twice, nor given up while it is claimed. Liveness: a claim
// never waits: an empty shelf is answered with nothing, and the caller builds.
type pools struct {
	cells   *cells
	journal *journal[cellEntry]
	rules   pool.Rules
	free    func() pool.Room // what sandboxes leave of the node
	changed func()           // told when what is ready has changed
	metrics *metrics
	log     *slog.Logger
	wake    chan struct{}
	filled  chan struct{} // closed when the declared pools have been filled once
	work    sync.WaitGroup

	mu      sync.Mutex
	shelves map[string]*shelf // by the template's key
	busy    int               // claims and cold starts in progress
	// busySince is when busy last rose from zero.
	busySince time.Time
	lullUntil time.Time
	paused    bool          // the node takes no sandboxes
	told      bool          // declare has been called
	ready     bool          // filled is closed
	took      time.Duration // smoothed, of all builds
}

// shelf is the pool of one template.
type shelf struct {
	template
	pool.Template
	warm     map[string]*cell
	declared map[string]*siroccov1.Pool // by name
	failures int
	changes  int // how often the image has become another one
}

// shelfLocked returns the shelf of a template, a new one if there is none.
func (p *pools) shelfLocked(t template) *shelf {
	s := p.shelves[t.key]
	if s == nil {
		s = &shelf{template: t, warm: map[string]*cell{}, declared: map[string]*siroccov1.Pool{}}
		s.Template = pool.Template{Key: t.key, Max: unbounded, CostBytes: cellBytes}
		p.shelves[t.key] = s
	}
	return s
}

// begin tells that a start is in progress, until the function that it returns is
// called: nothing is refilled meanwhile.
func (p *pools) begin() (end func()) {
	p.mu.Lock()
	if p.busy++; p.busy == 1 {
		p.busySince = time.Now()
	}
	p.mu.Unlock()
	return func() {
		p.mu.Lock()
		p.busy--
		p.lullUntil = time.Now().Add(lull)
		p.mu.Unlock()
		p.poke()
		time.AfterFunc(lull, p.poke)
	}
}

// claim returns a warm cell of a template, the oldest, or nil. It is the caller's
// for good; its entry in the pools' journal stays until the caller lets it
// forget.
func (p *pools) claim(ctx context.Context, t template) *cell {
	_, end := p.cells.stage(ctx, "claim")
	defer end()
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.shelfLocked(t)
	s.Demand.Arrived(time.Now(), 1)
	for len(s.Warm) > 0 {
		b := s.takeLocked(0)
		if !b.dead() {
			b.sandbox.Foreground()
			p.metrics.claim(ctx, true)
			p.changed()
			return b
		}
		p.discard(b)
	}
	p.metrics.claim(ctx, false)
	return nil
}

// takeLocked takes the cell out of the shelf that is at a place of its list.
func (s *shelf) takeLocked(i int) *cell {
	b := s.warm[s.Warm[i].ID]
	delete(s.warm, b.id)
	s.Warm = slices.Delete(s.Warm, i, i+1)
	return b
}

// put makes a cell one that can be claimed. changes is what the shelf had when the cell's
// image was looked up; if it has become another one since, the cell is given up.
func (p *pools) put(t template, b *cell, changes int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.shelfLocked(t)
	if s.changes != changes {
		p.discard(b)
		return
	}
	s.warm[b.id] = b
	s.Version = b.image.Digest
	s.Warm = append(s.Warm, pool.Warm{ID: b.id, Version: b.image.Digest, BuiltAt: b.built})
	p.changed()
}

// forget drops the journal's entry of a cell that is not warm any more: gone, or a
// sandbox's by the journal of sandboxes.
func (p *pools) forget(id string) {
	if err := p.journal.remove(id); err != nil {
		p.log.Error("journal", "err", err)
	}
}

// built is told how a build ended; took is the time without waiting for its turn.
func (p *pools) built(t template, took time.Duration, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.shelfLocked(t)
	if err != nil {
		s.NotBefore = time.Now().Add(min(buildPause<<min(s.failures, 10), buildPatience))
		s.failures++
		return
	}
	s.failures, s.NotBefore = 0, time.Time{}
	s.BuildTime, p.took = smooth(s.BuildTime, took), smooth(p.took, took)
}

// smooth moves a smoothed time towards a new one.
func smooth(smoothed, took time.Duration) time.Duration {
	const alpha = 0.2
	if smoothed == 0 {
		return took
	}
	return smoothed + time.Duration(alpha*float64(took-smoothed))
}

// buildTime returns how long a cell takes to build here, whatever its template.
// It is the same work warm or cold, so nodes can be compared by it.
func (p *pools) buildTime() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.took
}

// declare sets the declared pools, by name.
func (p *pools) declare(declared map[string]*siroccov1.Pool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.told = true
	for _, s := range p.shelves {
		clear(s.declared)
	}
	for name, d := range declared {
		p.shelfLocked(template{d.GetKey(), d.GetTemplate()}).declared[name] = d
	}
	for _, s := range p.shelves {
		s.Min, s.Max = 0, unbounded
		for _, d := range s.declared {
			s.Min = max(s.Min, int(d.GetWarm()))
			if d.GetMax() > 0 {
				s.Max = min(s.Max, int(d.GetMax()))
			}
		}
		s.Max = max(s.Max, s.Min)
	}
	p.poke()
}

// outdate gives up the warm cells of an image that is another one now, and those that are
// being built of what it was.
func (p *pools) outdate(image string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.shelves {
		if s.GetImage() != image {
			continue
		}
		s.changes++
		for len(s.Warm) > 0 {
			p.discard(s.takeLocked(0))
		}
	}
}

// pause empties the pools of a node that takes no sandboxes, until it does again.
func (p *pools) pause(paused bool) {
	p.mu.Lock()
	p.paused = paused
	p.mu.Unlock()
	p.poke()
}

func (p *pools) poke() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// counts returns how many are warm, by the template's key.
func (p *pools) counts() map[string]int32 {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := map[string]int32{}
	for key, s := range p.shelves {
		if n := len(s.Warm); n > 0 {
			out[key] = int32(n) //nolint:gosec // at most thousands
		}
	}
	return out
}
