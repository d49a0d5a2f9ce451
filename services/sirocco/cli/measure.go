package cli

import (
	"fmt"
	"time"

	sirocco "github.com/sirocco-run/sirocco/sdk/go"
	"github.com/sirocco-run/sirocco/services/sirocco/bench"
	"github.com/spf13/cobra"
)

func (a *app) benchCommand() *cobra.Command {
	cmd := group("bench", "Measure the platform through its public API")
	var create createFlags
	var mode string
	cfg := bench.Config{}
	tti := &cobra.Command{
		Use: "tti", Short: "Time to interactive: from a create until the first command has answered", Args: checked(cobra.NoArgs),
		Long: "tti makes sandboxes, runs one command in each, and ends them. It prints the percentiles\nof the time until that command had answered. It exits with 1 if any sandbox failed.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			req, err := create.request(a.Getenv, time.Now())
			if err != nil {
				return usageError{cmd.CommandPath(), err}
			}
			if req.GetName() != "" || req.GetIdempotencyKey() != "" {
				return usageError{cmd.CommandPath(), fmt.Errorf("--name and --key belong to one sandbox only")}
			}
			cfg.Request, cfg.Mode = req, bench.Mode(mode)
			if cfg.N < 1 || cfg.Mode != bench.Sequential && cfg.Mode != bench.Staggered && cfg.Mode != bench.Burst {
				return usageError{cmd.CommandPath(), fmt.Errorf("want --mode %s, %s or %s and -n of 1 or more", bench.Sequential, bench.Staggered, bench.Burst)}
			}
			client, err := a.connect()
			if err != nil {
				return err
			}
			// A first call tells that the platform is there, and opens the
			// connection that any client has after its first call.
			for _, err := range client.List(cmd.Context(), nil) {
				if err != nil {
					return err
				}
				break
			}
			if !a.json {
				cfg.Progress = func(done, failures int) {
					fmt.Fprintf(a.Err, "\r%d of %d, %d failed", done, cfg.N, failures)
					if done == cfg.N {
						fmt.Fprintln(a.Err)
					}
				}
			}
			r, err := bench.TTI(cmd.Context(), client, cfg)
			if err != nil {
				return &sirocco.Error{Code: sirocco.Unavailable, Message: err.Error()}
			}
			if a.json {
				err = a.printJSON(r)
			} else {
				err = a.printBench(r)
			}
			if err == nil && r.Succeeded < r.N {
				err = errSilent
			}
			return err
		},
	}
	create.add(tti.Flags())
	tti.Flags().StringVar(&mode, "mode", string(bench.Sequential), "`how` creates follow each other: sequential, staggered or burst")
	tti.Flags().IntVarP(&cfg.N, "count", "n", 100, "`number` of sandboxes")
	tti.Flags().DurationVar(&cfg.Stagger, "stagger", bench.DefaultStagger, "distance of creates in the mode staggered")
	cmd.AddCommand(tti)
	return cmd
}

func (a *app) printBench(r bench.Result) error {
	row := func(name string, d bench.Distribution) []string {
		cells := []string{name}
		for _, v := range []float64{d.Min, d.P50, d.P95, d.P99, d.Max, d.Mean} {
			cells = append(cells, fmt.Sprintf("%.1f", v))
		}
		return cells
	}
	fmt.Fprintf(a.Out, "%s: %d of %d in %.1f s (%.1f/s); milliseconds\n", r.Mode, r.Succeeded, r.N, r.Seconds, r.PerSecond)
	err := a.printTable([]string{"", "MIN", "P50", "P95", "P99", "MAX", "MEAN"}, [][]string{row("create", r.Create), row("tti", r.TTI)})
	for code, n := range r.Failures {
		fmt.Fprintf(a.Out, "failed: %d with %s\n", n, code)
	}
	if r.Example != "" {
		fmt.Fprintln(a.Out, "first failure:", r.Example)
	}
	return err
}
