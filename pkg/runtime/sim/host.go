package sim

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"

	"github.com/sirocco-run/sirocco/pkg/runtime"
)

// Limits are a Host's size; zero means none.
type Limits struct {
	// Sandboxes is how many fit. MemoryBytes limits the sum of what they were
	// created with.
	Sandboxes   int
	MemoryBytes int64
}

// Host is a simulated machine: what goes on while no agent runs. Its methods may
// be called concurrently.
type Host struct {
	mu       sync.Mutex
	limits   Limits
	memory   int64
	running  map[string]*machine
	failures map[Op][]error
}

// machine is one sandbox. Fields other than spec and done are under Host.mu.
type machine struct {
	spec    runtime.Spec
	done    chan struct{}
	started bool
	ended   bool
	exit    runtime.Exit
	stats   runtime.Stats
	handler Handler
	conns   map[*conn]bool
	resumed chan struct{} // closed when it goes on; nil: not paused
}

// Op is what can be made to fail.
type Op string

// What Host.Fail knows. OpCreate is also the restoring of a checkpoint.
const (
	OpCreate     Op = "create"
	OpPause      Op = "pause"
	OpCheckpoint Op = "checkpoint"
	OpResume     Op = "resume"
)

// NewHost returns an empty machine.
func NewHost(l Limits) *Host {
	return &Host{limits: l, running: map[string]*machine{}, failures: map[Op][]error{}}
}

// SetLimits changes the size. Sandboxes that no longer fit stay.
func (h *Host) SetLimits(l Limits) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.limits = l
}

// FailNext makes the next creations fail, one with each error.
func (h *Host) FailNext(errs ...error) { h.Fail(OpCreate, errs...) }

// Fail makes the next calls of a kind fail, one with each error, without any effect.
func (h *Host) Fail(op Op, errs ...error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.failures[op] = append(h.failures[op], errs...)
}

// failLocked returns the error that the next call of a kind is to fail with.
func (h *Host) failLocked(op Op) error {
	errs := h.failures[op]
	if len(errs) == 0 {
		return nil
	}
	h.failures[op] = errs[1:]
	return errs[0]
}

// Len returns how many sandboxes the machine holds, ended ones included.
func (h *Host) Len() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.running)
}

// End ends a sandbox as e says. Error: runtime.ErrNotFound, for one that does not
// run.
func (h *Host) End(id string, e runtime.Exit) error {
	h.mu.Lock()
	m := h.running[id]
	if m == nil || !m.started || m.ended {
		h.mu.Unlock()
		return fmt.Errorf("end sandbox %s: %w", id, runtime.ErrNotFound)
	}
	cut := h.endLocked(m, e)
	h.mu.Unlock()
	closeAll(cut)
	return nil
}

// Exit ends a sandbox as if process 1 had ended with the code.
func (h *Host) Exit(id string, code int) error { return h.End(id, runtime.Exit{Code: code}) }

// OOM ends a sandbox as if it had reached its memory limit.
func (h *Host) OOM(id string) error {
	h.mu.Lock()
	if m := h.running[id]; m != nil {
		m.stats.OOMKills++
	}
	h.mu.Unlock()
	return h.End(id, runtime.Exit{Code: 137, Signal: "SIGKILL", OOM: true})
}

// Crash ends all sandboxes, as a machine's restart would.
func (h *Host) Crash() {
	for _, m := range h.machines() {
		_ = h.End(m.spec.ID, runtime.Exit{Code: 137, Signal: "SIGKILL", Err: fmt.Errorf("sim: machine crashed")})
	}
}

// SetStats sets what Stats reports of a sandbox. Error: runtime.ErrNotFound.
func (h *Host) SetStats(id string, s runtime.Stats) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	m := h.running[id]
	if m == nil {
		return fmt.Errorf("set stats of sandbox %s: %w", id, runtime.ErrNotFound)
	}
	m.stats = s
	return nil
}

// reserve takes room for a sandbox that is about to start.
func (h *Host) reserve(spec runtime.Spec) (*machine, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.running[spec.ID] != nil {
		return nil, runtime.ErrExists
	}
	if err := h.failLocked(OpCreate); err != nil {
		return nil, err
	}
	mem := spec.Resources.MemoryBytes
	if l := h.limits; l.Sandboxes > 0 && len(h.running) >= l.Sandboxes || l.MemoryBytes > 0 && h.memory+mem > l.MemoryBytes {
		return nil, ErrCapacity
	}
	m := &machine{spec: spec, done: make(chan struct{}), stats: runtime.Stats{MemoryBytes: 8 << 20, Pids: 1}}
	h.running[spec.ID] = m
	h.memory += mem
	return m, nil
}

// start makes a reserved sandbox run. It fails if someone swept it away.
func (h *Host) start(m *machine, serve Handler) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.running[m.spec.ID] != m {
		return runtime.ErrNotFound
	}
	m.started, m.handler = true, serve
	return nil
}

// adopt gives a sandbox that runs a new inside; false if it does not run.
func (h *Host) adopt(m *machine, serve Handler) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !m.started || m.ended {
		return false
	}
	m.handler = serve
	return true
}

// remove ends a sandbox if it runs and frees its room.
func (h *Host) remove(m *machine) {
	h.mu.Lock()
	cut := h.endLocked(m, runtime.Exit{Code: 137, Signal: "SIGKILL"})
	if h.running[m.spec.ID] == m {
		delete(h.running, m.spec.ID)
		h.memory -= m.spec.Resources.MemoryBytes
	}
	h.mu.Unlock()
	closeAll(cut)
}

// endLocked returns the connections that have to be closed.
func (h *Host) endLocked(m *machine, e runtime.Exit) []*conn {
	if m.ended {
		return nil
	}
	m.ended, m.exit = true, e
	cut := make([]*conn, 0, len(m.conns))
	for c := range m.conns {
		cut = append(cut, c)
	}
	m.conns = nil
	close(m.done)
	return cut
}

// machines lists all, by id.
func (h *Host) machines() []*machine {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := make([]*machine, 0, len(h.running))
	for _, m := range h.running {
		all = append(all, m)
	}
	slices.SortFunc(all, func(a, b *machine) int { return strings.Compare(a.spec.ID, b.spec.ID) })
	return all
}

func closeAll(conns []*conn) {
	for _, c := range conns {
		c.Conn.Close()
	}
}

// track enters an open connection, which ends with the sandbox.
func (h *Host) track(m *machine, inner net.Conn) (*conn, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if m.ended {
		inner.Close()
		return nil, runtime.ErrNotFound
	}
	c := &conn{Conn: inner, h: h, m: m}
	if m.conns == nil {
		m.conns = map[*conn]bool{}
	}
	m.conns[c] = true
	return c, nil
}
