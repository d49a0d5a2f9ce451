package fleet

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/sirocco-run/sirocco/pkg/pki"
	"github.com/sirocco-run/sirocco/pkg/program"
	"github.com/sirocco-run/sirocco/pkg/rundir"
	"github.com/sirocco-run/sirocco/pkg/telemetry"
	"github.com/sirocco-run/sirocco/services/node-agent/agent"
	"github.com/sirocco-run/sirocco/services/sirocco/up"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"
)

// NodesConfig is what the process of the simulated nodes is told.
type NodesConfig struct {
	// Data is the folder of the control plane, Nodes how many nodes there are.
	Data  string
	Nodes int
	// Name starts the names of the nodes.
	Name string
	// Settings are those that the nodes share with their region.
	Settings program.Settings
	// Start is how long a simulated start takes.
	Start time.Duration
	// Again lets all agents end and start again, as their programs would; the
	// machines and what runs on them stay.
	Again <-chan struct{}
}

// Flags adds the flags, with their defaults.
func (c *NodesConfig) Flags(fs *pflag.FlagSet) {
	fs.StringVar(&c.Data, "data", up.DefaultData, "`folder` of the control plane")
	fs.IntVar(&c.Nodes, "nodes", 300, "`number` of nodes")
	fs.StringVar(&c.Name, "node-name", "sim", "`name` with which the nodes' names start")
	fs.StringVar(&c.Settings.Region, "region", program.DefaultRegion, "`name` of the region")
	fs.StringVar(&c.Settings.Peers, "peers", "", "all `regions` and their buses")
	fs.StringVar(&c.Settings.Keys, "keys", "", "`folder` of certificates and keys")
	fs.StringVar(&c.Settings.MetricsAddress, "metrics-listen", "", "`host:port` for profiles of this process; empty for none")
	c.Settings.FrontFlags(fs)
	fs.DurationVar(&c.Start, "start", 2*time.Millisecond, "how long a start takes in the median")
}

// nodeName is the name of node i, from 0.
func nodeName(prefix string, i int) string { return prefix + "-" + strconv.Itoa(i+1) }

// RunNodes runs the agents of simulated nodes until ctx ends. It writes a line to
// out once all have been started.
func RunNodes(ctx context.Context, cfg NodesConfig, out io.Writer, log *slog.Logger) error {
	telemetry.Propagate()
	// Where a real node has its journal.
	if err := rundir.Ensure(); err != nil {
		return err
	}
	state := rundir.Of("bench-" + strconv.Itoa(os.Getpid()))
	defer func() { _ = os.RemoveAll(state) }()
	machines := make([]*agent.Simulation, cfg.Nodes)
	for i := range machines {
		machines[i] = agent.NewSimulation()
	}
	stop, err := program.ServeMetrics(cfg.Settings.MetricsAddress, http.NotFoundHandler(), func() bool { return true }, log)
	if err != nil {
		return err
	}
	defer stop()
	for ctx.Err() == nil {
		round, end := context.WithCancel(ctx)
		go func() {
			defer end()
			select {
			case <-cfg.Again:
			case <-round.Done():
			}
		}()
		if err := runAgents(round, cfg, state, machines, out, log); err != nil {
			return err
		}
	}
	return nil
}

// runAgents runs one agent for each machine until ctx ends.
func runAgents(ctx context.Context, cfg NodesConfig, state string, machines []*agent.Simulation, out io.Writer, log *slog.Logger) error {
	access, err := up.BusAccess(cfg.Data)
	if err != nil {
		return err
	}
	keys, err := pki.Open(cfg.Settings.Keys)
	if err != nil {
		return err
	}
	tele, err := telemetry.Start(ctx, telemetry.Config{Service: "node-agent", Region: cfg.Settings.Region, Instance: cfg.Name, Version: program.Version, Log: log})
	if err != nil {
		return err
	}
	defer func() { _ = tele.Shutdown(context.WithoutCancel(ctx)) }()
	group, ctx := errgroup.WithContext(ctx)
	for i, machine := range machines {
		name := nodeName(cfg.Name, i)
		nc, err := access.Connect(ctx, "node-agent/"+name, log)
		if err != nil {
			return err
		}
		defer nc.Close()
		settings := cfg.Settings
		settings.Instance = name
		env, err := settings.Env(nc, keys, log, tele)
		if err != nil {
			return err
		}
		if env.Peers, err = settings.PeerSet("node-agent", access.User, access.Password, log); err != nil {
			return err
		}
		defer env.Peers.Close()
		var node agent.Config
		node.Flags(pflag.NewFlagSet("", pflag.ContinueOnError))
		node.Runtime, node.Simulation, node.SimStart = "sim", machine, cfg.Start
		node.Listen, node.StateDir = "127.0.0.1:0", filepath.Join(state, name)
		// Room for anything that the measurement wants: it is not about what fits.
		node.CPUMillis, node.MemoryBytes, node.DiskBytes, node.Sandboxes = 1<<30, 1<<50, 1<<50, 4000
		a, err := agent.New(env, node)
		if err != nil {
			return err
		}
		group.Go(func() error { return a.Run(ctx) })
	}
	fmt.Fprintln(out, "started", len(machines))
	return group.Wait()
}
