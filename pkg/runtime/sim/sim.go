// Package sim is a runtime without machines: sandboxes are entries in a map, with
// no process and no goroutine. It takes as long, and fails as often, as it is told
// to, so that thousands of nodes' worth of sandboxes run through the real services
// on one small machine.
//
// What a real machine would keep while its agent is away is kept by a Host. A
// second Runtime on the same Host is a restarted agent.
//
// Latencies and random failures follow from the seed and the sandbox's id alone:
// the same creations go the same way whatever their order.
package sim

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/sirocco-run/sirocco/pkg/runtime"
)

// Version is what Runtime.Version returns.
const Version = "sim-1"

// Errors that a simulated machine gives on request.
var (
	// ErrCapacity: the Host's limits leave no room.
	ErrCapacity = errors.New("sim: machine is full")
	// ErrInjected: the creation was drawn to fail (Config.FailureRate).
	ErrInjected = errors.New("sim: injected failure")
	// ErrClosed: the Runtime has let go of its sandboxes.
	ErrClosed = errors.New("sim: runtime is closed")
)

// Latency is a log-normal distribution. Zero takes no time; with P99 at or below
// Median every sample is the median.
type Latency struct{ Median, P99 time.Duration }

// sample returns the value that a fraction u, between 0 and 1, of all are below.
func (l Latency) sample(u float64) time.Duration {
	if l.Median <= 0 || l.P99 <= l.Median {
		return max(0, l.Median)
	}
	// 2.3263 standard deviations are the 99th percentile of a normal distribution.
	sigma := math.Log(float64(l.P99)/float64(l.Median)) / 2.3263
	z := math.Sqrt2 * math.Erfinv(2*min(max(u, 1e-6), 1-1e-6)-1)
	return time.Duration(float64(l.Median) * math.Exp(sigma*z))
}

// Handler plays a sandbox's inside: it returns a connection to whatever listens on
// the port, or runtime.ErrRefused. See Pipe.
type Handler func(port uint16) (net.Conn, error)

// Config configures a Runtime.
type Config struct {
	// Host is the machine. Nil: one of its own, with no limits.
	Host *Host
	// Seed of latencies and failures.
	Seed uint64
	// Start, Destroy and Checkpoint are how long Create, Destroy and Checkpoint take.
	Start, Destroy, Checkpoint Latency
	// FailureRate is the fraction of creations that fail, between 0 and 1.
	FailureRate float64
	// Serve makes the inside of a new sandbox, and of one that is adopted. Nil, or
	// a nil Handler: every port refuses. It is called without any lock.
	Serve func(spec runtime.Spec) Handler
	// Inside returns what pauses and moves with a sandbox besides what Host knows of it.
	// Nil, or a nil Inside: there is nothing. It is called without any lock.
	Inside func(id string) Inside
	// Load makes the inside of a restored sandbox, paused, of what Inside.Save has
	// returned; Serve is called after it. Nil: it is not kept.
	Load func(spec runtime.Spec, state []byte) error
}

// Runtime implements runtime.Runtime.
type Runtime struct {
	cfg  Config
	host *Host

	mu     sync.Mutex
	closed bool
	known  map[string]bool
}

var _ runtime.Runtime = (*Runtime)(nil)

// New returns a Runtime.
func New(cfg Config) *Runtime {
	if cfg.Host == nil {
		cfg.Host = NewHost(Limits{})
	}
	return &Runtime{cfg: cfg, host: cfg.Host, known: map[string]bool{}}
}

// Host returns the machine, through which tests make things happen.
func (r *Runtime) Host() *Host { return r.host }

// Name implements runtime.Runtime.
func (r *Runtime) Name() string { return "sim" }

// Version implements runtime.Runtime.
func (r *Runtime) Version() string { return Version }

// Create implements runtime.Runtime. Further errors: ErrCapacity, ErrInjected, and
// what Host.FailNext was given.
func (r *Runtime) Create(ctx context.Context, spec runtime.Spec) (runtime.Sandbox, error) {
	fail := func(err error) (runtime.Sandbox, error) {
		return nil, fmt.Errorf("create sandbox %s: %w", spec.ID, err)
	}
	if err := ctx.Err(); err != nil {
		return fail(err)
	}
	if err := r.enter(spec.ID); err != nil {
		return fail(err)
	}
	m, err := r.host.reserve(spec)
	if err == nil {
		err = sleep(ctx, r.cfg.Start.sample(r.draw("start", spec.ID)))
		if err == nil && r.draw("fail", spec.ID) < r.cfg.FailureRate {
			err = ErrInjected
		}
		if err == nil && spec.Restore != nil {
			err = r.restore(ctx, m)
		}
		if err == nil {
			if err = r.host.start(m, r.serve(spec)); err == nil {
				return &Sandbox{r: r, m: m}, nil
			}
		}
		r.host.remove(m)
	}
	r.leave(spec.ID)
	return fail(err)
}

// enter claims an id, so that Sweep leaves it alone.
func (r *Runtime) enter(id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return ErrClosed
	}
	if r.known[id] {
		return runtime.ErrExists
	}
	r.known[id] = true
	return nil
}

func (r *Runtime) leave(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.known, id)
}

func (r *Runtime) isClosed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.closed
}

func (r *Runtime) serve(spec runtime.Spec) Handler {
	if r.cfg.Serve == nil {
		return nil
	}
	return r.cfg.Serve(spec)
}

// draw returns a number in [0, 1) that depends on nothing but the seed and its
// arguments.
func (r *Runtime) draw(what, id string) float64 {
	h := fnv.New64a()
	fmt.Fprintf(h, "%d/%s/%s", r.cfg.Seed, what, id)
	x := h.Sum64()
	// FNV mixes its last bytes badly into the high bits (finalizer of splitmix64).
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	x ^= x >> 31
	return float64(x>>11) / (1 << 53)
}

// Adopt implements runtime.Runtime.
func (r *Runtime) Adopt(ctx context.Context) ([]runtime.Sandbox, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if r.isClosed() {
		return nil, ErrClosed
	}
	var alive []runtime.Sandbox
	for _, m := range r.host.machines() {
		if r.enter(m.spec.ID) != nil {
			continue
		}
		if !r.host.adopt(m, r.serve(m.spec)) {
			r.host.remove(m)
			r.leave(m.spec.ID)
			continue
		}
		alive = append(alive, &Sandbox{r: r, m: m})
	}
	return alive, nil
}

// Sweep implements runtime.Runtime.
func (r *Runtime) Sweep(ctx context.Context) ([]string, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if r.isClosed() {
		return nil, ErrClosed
	}
	var removed []string
	for _, m := range r.host.machines() {
		if r.enter(m.spec.ID) != nil {
			continue
		}
		r.host.remove(m)
		r.leave(m.spec.ID)
		removed = append(removed, "sandbox "+m.spec.ID)
	}
	slices.Sort(removed)
	return removed, nil
}

// Close implements runtime.Runtime.
func (r *Runtime) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	return nil
}

// sleep waits for d or ctx.
func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
