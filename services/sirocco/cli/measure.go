package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"connectrpc.com/connect"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	sirocco "github.com/sirocco-run/sirocco/sdk/go"
	"github.com/sirocco-run/sirocco/services/sirocco/bench"
	"github.com/sirocco-run/sirocco/services/sirocco/up"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"
)

// benchFlags are those of every measurement of real nodes.
type benchFlags struct {
	data, out, otlp string
	floor           int
	template        templateFlags
}

func (f *benchFlags) add(fs *pflag.FlagSet) {
	fs.StringVar(&f.data, "data", "", "`folder` of the state of the platform of this machine, as given to up (default: the one that the CLI is set up for)")
	fs.StringVar(&f.out, "out", "", "`folder` to write the report to, as JSON, and its plots, as SVG")
	fs.StringVar(&f.otlp, "otlp-listen", "", "take in the platform's traces at this `address` and say where the time goes; up needs --otlp-endpoint http://<address>")
	fs.IntVar(&f.floor, "floor", bench.FloorRuns, "`number` of sandboxes of bare gVisor to measure beforehand, as root; 0 for none")
	f.template.add(fs)
}

func (a *app) benchCommand() *cobra.Command {
	cmd := group("bench", "Measure the platform through its public API")
	cmd.AddCommand(a.benchTTICommand(), a.benchChurnCommand(), a.benchDensityCommand(), a.benchTunnelCommand(), a.benchFloorCommand(), a.benchMigrateCommand(), a.benchServeCommand(), a.fleetCommand(), a.evacuateCommand(), a.nodesCommand())
	return cmd
}

const benchEnd = "\n\nThe figures stand beside the floor: what bare gVisor costs on this machine in the same run (needs root and\n" +
	"runsc beside this program). Where the platform is `sirocco up` on this machine, records, inventories and\n" +
	"host resources are checked at the end. It exits with 1 if anything failed or was lost, or an invariant is broken."

func (a *app) benchTTICommand() *cobra.Command {
	var f benchFlags
	var cfg bench.TTI
	var mode string
	cmd := &cobra.Command{
		Use: "tti", Short: "Time to interactive: from a create until the first command has answered", Args: checked(cobra.NoArgs),
		Long: "tti makes sandboxes, runs one command in each, and ends them. It prints the percentiles of the time until\n" +
			"that command had answered. With --cold each request has a memory limit that no request had before (pages\n" +
			"above what was asked for), so that no warm sandbox fits it, whatever pools there are." + benchEnd,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg.Mode = bench.Mode(mode)
			if cfg.N < 1 || cfg.Mode != bench.Sequential && cfg.Mode != bench.Staggered && cfg.Mode != bench.Burst {
				return usageError{cmd.CommandPath(), fmt.Errorf("want --mode %s, %s or %s and -n of 1 or more", bench.Sequential, bench.Staggered, bench.Burst)}
			}
			return a.measure(cmd, f, func(ctx context.Context, b *bench.Bench, req *siroccov1.CreateSandboxRequest) (*bench.Report, error) {
				cfg.Request = req
				return b.TTI(ctx, cfg)
			})
		},
	}
	fs := cmd.Flags()
	f.add(fs)
	fs.StringVar(&mode, "mode", string(bench.Sequential), "`how` creates follow each other: sequential, staggered or burst")
	fs.IntVarP(&cfg.N, "count", "n", 100, "`number` of sandboxes")
	fs.DurationVar(&cfg.Stagger, "stagger", bench.DefaultStagger, "distance of creates in the mode staggered")
	fs.BoolVar(&cfg.Cold, "cold", false, "ask for what no pool can have")
	return cmd
}

func (a *app) benchChurnCommand() *cobra.Command {
	var f benchFlags
	var cfg bench.Churn
	cmd := &cobra.Command{
		Use: "churn", Short: "Steady load: sandboxes come and go at a rate", Args: checked(cobra.NoArgs),
		Long: "churn makes and ends --rate sandboxes a second for --duration while --live of them live, whether the platform\n" +
			"keeps up or not: times count from when a create was due. Each gets a first command. Every 50th create is sent\n" +
			"again with its idempotency key." + benchEnd,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cfg.Rate <= 0 || cfg.Duration <= 0 || cfg.Live < 0 {
				return usageError{cmd.CommandPath(), errors.New("want --rate and --duration above 0, and --live of 0 or more")}
			}
			return a.measure(cmd, f, func(ctx context.Context, b *bench.Bench, req *siroccov1.CreateSandboxRequest) (*bench.Report, error) {
				cfg.Request = req
				return b.Churn(ctx, cfg)
			})
		},
	}
	fs := cmd.Flags()
	f.add(fs)
	fs.Float64Var(&cfg.Rate, "rate", 10, "how many are made, and how many ended, each second")
	fs.DurationVar(&cfg.Duration, "duration", time.Minute, "for how long")
	fs.IntVar(&cfg.Live, "live", 20, "`number` of sandboxes that live all the while")
	return cmd
}

func (a *app) benchDensityCommand() *cobra.Command {
	var f benchFlags
	var cfg bench.Density
	cmd := &cobra.Command{
		Use: "density", Short: "Many live at once, what they cost, and how fast all are gone", Args: checked(cobra.NoArgs),
		Long: "density brings up sandboxes until -n live at once, each with an HTTP server that is asked through its own\n" +
			"tunnel (with --idle: none). It measures how long that takes, the memory of each, the CPU that all cost while\n" +
			"nothing happens, and how long it takes to end them all at once, to the last resource of the host. Unless asked\n" +
			"otherwise each requests 1m of CPU and 8Mi of memory, so that no more than the machine limits their number." + benchEnd,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cfg.N < 1 || cfg.Parallel < 1 {
				return usageError{cmd.CommandPath(), errors.New("want -n and --parallel of 1 or more")}
			}
			return a.measure(cmd, f, func(ctx context.Context, b *bench.Bench, req *siroccov1.CreateSandboxRequest) (*bench.Report, error) {
				cfg.Request = req
				return b.Density(ctx, cfg)
			})
		},
	}
	fs := cmd.Flags()
	f.add(fs)
	fs.IntVarP(&cfg.N, "count", "n", 1000, "`number` of sandboxes")
	fs.BoolVar(&cfg.Idle, "idle", false, "without servers and tunnels")
	fs.IntVar(&cfg.Parallel, "parallel", 16, "`number` of creates under way at a time")
	fs.DurationVar(&cfg.Rest, "rest", bench.DefaultRest, "for how long the CPU of idling is measured")
	return cmd
}

func (a *app) benchTunnelCommand() *cobra.Command {
	var f benchFlags
	var cfg bench.Tunnel
	cmd := &cobra.Command{
		Use: "tunnel", Short: "Throughput and added latency of a tunnel, and what idle WebSockets cost", Args: checked(cobra.NoArgs),
		Long: "tunnel reads a file of 1 MiB again and again over --connections from an HTTP server in a sandbox, through its\n" +
			"tunnel and, as root, from the same server in a sandbox of this program's own, without relay, TLS, link and\n" +
			"agent: through gVisor's port-forward alone. It compares the throughput, and the time of small requests one\n" +
			"after the other. With --websockets it then opens that many, asks each for an echo, lets them idle, and\n" +
			"measures how the memory of the services' process (relay and agent among them) grew." + benchEnd,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cfg.Connections < 1 || cfg.Duration <= 0 || cfg.WebSockets < 0 {
				return usageError{cmd.CommandPath(), errors.New("want --connections of 1 or more, --duration above 0 and --websockets of 0 or more")}
			}
			cfg.Programs = bench.OurPrograms()
			return a.measure(cmd, f, func(ctx context.Context, b *bench.Bench, req *siroccov1.CreateSandboxRequest) (*bench.Report, error) {
				cfg.Request = req
				return b.Tunnel(ctx, cfg)
			})
		},
	}
	fs := cmd.Flags()
	f.add(fs)
	fs.IntVar(&cfg.Connections, "connections", 64, "`number` of connections")
	fs.DurationVar(&cfg.Duration, "duration", 10*time.Second, "how long throughput is measured, each way")
	fs.IntVar(&cfg.WebSockets, "websockets", 0, "`number` of idle WebSockets")
	return cmd
}

func (a *app) benchFloorCommand() *cobra.Command {
	var n int
	cmd := &cobra.Command{
		Use: "floor", Short: "What bare gVisor costs on this machine, without the platform", Args: checked(cobra.NoArgs),
		Long: "floor makes sandboxes with gVisor's own calls, in this process, one after the other: no limits, no network, no\n" +
			"record. It runs a command in each and ends it. Nothing that uses gVisor can be faster. It needs root, and runsc\n" +
			"beside this program.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if n < 1 {
				return usageError{cmd.CommandPath(), errors.New("want -n of 1 or more")}
			}
			floor, err := bench.MeasureFloor(cmd.Context(), bench.OurPrograms(), n)
			if err != nil {
				return failed("run it as root, with the programs of `make build`.", "%w", err)
			}
			if a.json {
				return a.printJSON(floor)
			}
			return a.printTable([]string{"N", "CREATE", "START", "FIRST COMMAND", "ALL THREE", "DESTROY", "CPU A CYCLE"}, [][]string{{
				fmt.Sprint(floor.N), millis(floor.New), millis(floor.Start), millis(floor.Exec), millis(floor.TTI), millis(floor.Destroy), millis(floor.CPU),
			}})
		},
	}
	cmd.Flags().IntVarP(&n, "count", "n", bench.FloorRuns, "`number` of sandboxes")
	return cmd
}

func millis(f float64) string { return fmt.Sprintf("%.1f ms", f) }

// benchServeCommand is what `bench tunnel` runs inside its sandbox.
func (a *app) benchServeCommand() *cobra.Command {
	return &cobra.Command{
		Use: "serve ADDRESS", Short: "Echo WebSocket messages", Args: exactArgs(1), Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error { return bench.ServeEcho(cmd.Context(), args[0]) },
	}
}

// measure runs one measurement and prints and writes its report.
func (a *app) measure(cmd *cobra.Command, f benchFlags, do func(context.Context, *bench.Bench, *siroccov1.CreateSandboxRequest) (*bench.Report, error)) error {
	ctx := cmd.Context()
	t, err := f.template.template()
	if err != nil {
		return usageError{cmd.CommandPath(), err}
	}
	req := &siroccov1.CreateSandboxRequest{Image: t.GetImage(), Resources: t.GetResources(), Network: t.GetNetwork()}
	b := &bench.Bench{Progress: a.progress()}
	if f.otlp != "" {
		if b.Spans, err = bench.CollectSpans(f.otlp); err != nil {
			return err
		}
		defer b.Spans.Close()
		a.options = []connect.ClientOption{connect.WithInterceptors(b.Spans.Interceptor())}
	}
	if b.Client, err = a.connect(); err != nil {
		return err
	}
	// A first call tells that the platform is there, and opens the connection that
	// any client has after its first call.
	for _, err := range b.Client.List(ctx, nil) {
		if err != nil {
			return err
		}
		break
	}
	if b.Tunnels, err = bench.NewTunnels(a.caFile); err != nil {
		return err
	}
	if b.Local, b.LocalError = bench.OpenLocal(ctx, cmp.Or(f.data, dataOf(a.caFile))); b.Local != nil {
		defer b.Local.Close()
	}
	if f.floor > 0 {
		b.Progress.Say("measuring the floor")
		b.Floor, b.FloorError = bench.MeasureFloor(ctx, bench.OurPrograms(), f.floor)
	}
	report, err := do(ctx, b, req)
	if err != nil {
		return &sirocco.Error{Code: sirocco.Unavailable, Message: err.Error()}
	}
	return a.conclude(report, f.out)
}

// conclude prints a report and writes its files.
func (a *app) conclude(r *bench.Report, out string) error {
	var err error
	if a.json {
		err = a.printJSON(r)
	} else {
		err = r.Print(a.Out)
	}
	if err == nil && out != "" {
		err = r.Write(out)
	}
	if err == nil && !r.OK() {
		err = errSilent
	}
	return err
}

// progress is the line that a measurement shows; none with --json.
func (a *app) progress() *bench.Progress {
	if a.json {
		return nil
	}
	return bench.NewProgress(a.Err, isTerminal(a.Err))
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd())) //nolint:gosec // descriptors are small
}

// dataOf is the folder of the platform that the CLI is set up for: `sirocco up`
// keeps its authority's certificate there.
func dataOf(ca string) string {
	if filepath.Base(filepath.Dir(ca)) == "keys" {
		return filepath.Dir(filepath.Dir(ca))
	}
	return up.DefaultData
}
