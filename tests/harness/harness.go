// Package harness runs a whole region in the process of a test: a real NATS
// server and the real services, each of which can be stopped and started again
// on its own. Nodes are simulated or real.
package harness

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/bustest"
	"github.com/sirocco-run/sirocco/pkg/pki"
	"github.com/sirocco-run/sirocco/pkg/program"
	"github.com/sirocco-run/sirocco/pkg/record"
	"github.com/sirocco-run/sirocco/pkg/topology"
	"github.com/sirocco-run/sirocco/pkg/tunnel"
	"github.com/sirocco-run/sirocco/services/node-agent/agent"
	"github.com/sirocco-run/sirocco/services/reaper/reaper"
	"github.com/sirocco-run/sirocco/services/scheduler/scheduler"
	"github.com/spf13/pflag"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/trace"
	tracenoop "go.opentelemetry.io/otel/trace/noop"
)

// Region is one region.
type Region struct {
	t      testing.TB
	Server *server.Server
	NC     *nats.Conn
	JS     jetstream.JetStream
	Store  *record.Store
	Keys   *pki.Folder
	Front  tunnel.Front
	Log    *slog.Logger
	// Tracer is given to services that are started from then on.
	Tracer trace.TracerProvider
	dir    string
}

// Start makes a region with nothing in it but the bus.
func Start(t testing.TB) *Region {
	t.Helper()
	r := &Region{t: t, Log: logger(t), Tracer: tracenoop.NewTracerProvider(), dir: t.TempDir()}
	r.Server = bustest.Server(t, nil)
	r.NC, r.JS = bustest.Connect(t, r.Server)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := topology.Ensure(ctx, r.JS, topology.Options{}); err != nil {
		t.Fatal(err)
	}
	var err error
	if r.Store, err = record.Open(ctx, r.JS); err != nil {
		t.Fatal(err)
	}
	if r.Keys, err = pki.Open(filepath.Join(r.dir, "keys")); err != nil {
		t.Fatal(err)
	}
	r.Front = tunnel.Front{Domain: "sandbox.localhost", Port: FreePort(t), TCPFirst: 30000, TCPLast: 30999}
	return r
}

// Env returns what a service of the region is given.
func (r *Region) Env(service, instance string) program.Env {
	nc, js := bustest.Connect(r.t, r.Server, nats.Name(service+"/"+instance))
	return program.Env{
		Region: "eu", Instance: instance, NC: nc, JS: js, Keys: r.Keys, Front: r.Front,
		Log: r.Log.With("service", service), Tracer: r.Tracer, Meter: metricnoop.NewMeterProvider(),
	}
}

// Service is a service that runs.
type Service struct {
	t      testing.TB
	name   string
	cancel context.CancelFunc
	done   chan error
}

// Run starts a service; the test's end stops it.
func (r *Region) Run(name string, runner program.Runner, err error) *Service {
	r.t.Helper()
	if err != nil {
		r.t.Fatalf("%s: %v", name, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &Service{t: r.t, name: name, cancel: cancel, done: make(chan error, 1)}
	go func() { s.done <- runner.Run(ctx) }()
	r.t.Cleanup(s.Stop)
	return s
}

// Stop ends the service gracefully and waits for it. Twice is harmless.
func (s *Service) Stop() {
	s.cancel()
	select {
	case err, ok := <-s.done:
		if ok {
			close(s.done)
		}
		if err != nil {
			s.t.Errorf("%s ended with: %v", s.name, err)
		}
	case <-time.After(30 * time.Second):
		s.t.Errorf("%s did not stop within 30 s", s.name)
	}
}

// Scheduler starts a scheduler.
func (r *Region) Scheduler(name string, change ...func(*scheduler.Config)) *Service {
	var cfg scheduler.Config
	cfg.Flags(pflag.NewFlagSet("", pflag.ContinueOnError))
	for _, f := range change {
		f(&cfg)
	}
	s, err := scheduler.New(r.Env("scheduler", name), cfg)
	return r.Run("scheduler "+name, s, err)
}

// Reaper starts a reaper that looks more often than usual.
func (r *Region) Reaper(change ...func(*reaper.Config)) *Service {
	var cfg reaper.Config
	cfg.Flags(pflag.NewFlagSet("", pflag.ContinueOnError))
	cfg.SweepEvery, cfg.InventoryEvery, cfg.ClaimsEvery = 50*time.Millisecond, 200*time.Millisecond, time.Second
	for _, f := range change {
		f(&cfg)
	}
	s, err := reaper.New(r.Env("reaper", "reaper"), cfg)
	return r.Run("reaper", s, err)
}

// AgentConfig returns the configuration of a node of the region.
func (r *Region) AgentConfig(name string) agent.Config {
	var cfg agent.Config
	cfg.Flags(pflag.NewFlagSet("", pflag.ContinueOnError))
	cfg.Listen = "127.0.0.1:0"
	cfg.StateDir = filepath.Join(r.dir, name)
	return cfg
}

// SimNode starts an agent of a simulated node. The machine lives on when the
// agent is stopped; give it again to the next.
func (r *Region) SimNode(name string, machine *agent.Simulation, change ...func(*agent.Config)) *Service {
	cfg := r.AgentConfig(name)
	cfg.Runtime, cfg.Simulation, cfg.SimStart = "sim", machine, 0
	for _, f := range change {
		f(&cfg)
	}
	a, err := agent.New(r.Env("node-agent", name), cfg)
	return r.Run("node-agent "+name, a, err)
}

// Eventually waits until check returns "" and fails the test with what it
// returned last otherwise.
func Eventually(t testing.TB, limit time.Duration, check func() string) {
	t.Helper()
	deadline := time.Now().Add(limit)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		why := check()
		if why == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", limit, why)
		}
		<-tick.C
	}
}

// FreePort returns a TCP port of loopback that is free now.
func FreePort(t testing.TB) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	addr, ok := l.Addr().(*net.TCPAddr)
	if !ok {
		t.Fatalf("an address of %T", l.Addr())
	}
	return uint16(addr.Port) //nolint:gosec // a port
}

// logger writes to the file that SIROCCO_TEST_LOG names, or nowhere.
func logger(t testing.TB) *slog.Logger {
	w := io.Discard
	if path := os.Getenv("SIROCCO_TEST_LOG"); path != "" {
		f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(fmt.Errorf("SIROCCO_TEST_LOG: %w", err))
		}
		t.Cleanup(func() { _ = f.Close() })
		w = f
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug}))
}
