package agent

import (
	"net"
	"strings"
	"sync"
	"time"

	"github.com/sirocco-run/sirocco/pkg/guest"
	"github.com/sirocco-run/sirocco/pkg/runtime"
	"github.com/sirocco-run/sirocco/pkg/runtime/sim"
)

// Simulation is a machine on which nothing runs. It outlives its agent, as a
// machine does: give the same one to the next agent of the node.
type Simulation struct {
	Host *sim.Host

	mu    sync.Mutex
	inner map[string]*guest.SimServer
}

// NewSimulation makes an empty machine without limits of its own.
func NewSimulation() *Simulation {
	return &Simulation{Host: sim.NewHost(sim.Limits{}), inner: map[string]*guest.SimServer{}}
}

// forget drops the inside of a sandbox that is gone.
func (s *Simulation) forget(id string) {
	s.mu.Lock()
	inside := s.inner[id]
	delete(s.inner, id)
	s.mu.Unlock()
	if inside != nil {
		inside.Kill()
	}
}

func (s *Simulation) runtime(cfg Config) *sim.Runtime {
	return sim.New(sim.Config{
		Host: s.Host, FailureRate: cfg.SimFailures, Serve: s.serve, Inside: s.inside, Load: s.load,
		Start: sim.Latency{Median: cfg.SimStart, P99: 3 * cfg.SimStart}, Destroy: sim.Latency{Median: time.Millisecond},
	})
}

// inside returns the supervisor of a sandbox.
func (s *Simulation) inside(id string) sim.Inside {
	s.mu.Lock()
	defer s.mu.Unlock()
	if inside := s.inner[id]; inside != nil {
		return inside
	}
	return nil
}

// load makes the supervisor of a sandbox that came from elsewhere.
func (s *Simulation) load(spec runtime.Spec, state []byte) error {
	inside, err := guest.LoadSimServer(secretOf(spec), state)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inner[spec.ID] = inside
	return nil
}

// secretOf finds the supervisor's secret in its environment.
func secretOf(spec runtime.Spec) []byte {
	for _, v := range spec.Env {
		if rest, ok := strings.CutPrefix(v, guest.SecretEnv+"="); ok {
			return []byte(rest)
		}
	}
	return nil
}

// serve gives a sandbox its inside: a supervisor, and no other port.
func (s *Simulation) serve(spec runtime.Spec) sim.Handler {
	s.mu.Lock()
	inside := s.inner[spec.ID]
	if inside == nil {
		inside = guest.NewSimServer(secretOf(spec))
		s.inner[spec.ID] = inside
	}
	s.mu.Unlock()
	return func(port uint16) (net.Conn, error) {
		if port != runtime.GuestPort {
			return nil, runtime.ErrRefused
		}
		client, server := sim.Pipe()
		go func() { _ = inside.Serve(server) }()
		return client, nil
	}
}
