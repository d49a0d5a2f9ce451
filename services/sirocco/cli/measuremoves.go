package cli

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/sirocco-run/sirocco/services/sirocco/bench"
	"github.com/spf13/cobra"
)

// benchMigrateCommand measures moves. It needs no platform: it starts its own.
func (a *app) benchMigrateCommand() *cobra.Command {
	cfg := bench.Migrate{Programs: bench.OurPrograms()}
	var out string
	cmd := &cobra.Command{
		Use: "migrate", Short: "Running sandboxes move between two regions while clients use them", Args: checked(cobra.NoArgs),
		Long: "migrate starts two regions with real sandboxes, --each of each kind: one that idles, one with an HTTP server, and\n" +
			"for each of --sizes one whose server holds so much memory, half of it noise, and changes it all the time. It moves\n" +
			"them back and forth, -n moves in all, while clients send requests through their tunnels, run commands in them and\n" +
			"follow an output. Each answer is checked: the same process, which counts each request once. In the end nothing\n" +
			"may be lost or double. The pauses stand beside the floor: checkpoint and restore of the same kind of sandbox by\n" +
			"this process alone. It exits with 1 if anything failed or was lost, or an invariant is broken. It needs root, and\n" +
			"the programs of `make build` beside this one.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cfg.N < 1 || cfg.Parallel < 1 || cfg.Each < 1 || cfg.FloorRuns < 0 || slices.ContainsFunc(cfg.Sizes, func(mb int) bool { return mb < 1 }) {
				return usageError{cmd.CommandPath(), errors.New("want -n, --parallel, --each and --sizes of 1 or more")}
			}
			var err error
			if cfg.Program, err = os.Executable(); err != nil {
				return fmt.Errorf("find this program: %w", err)
			}
			b := &bench.Bench{Progress: a.progress()}
			report, err := b.Migrate(cmd.Context(), cfg)
			if err != nil {
				return failed("run it as root, with the programs of `make build`; --keep-log keeps what the platform said.", "%w", err)
			}
			return a.conclude(report, out)
		},
	}
	fs := cmd.Flags()
	fs.IntVarP(&cfg.N, "count", "n", 1000, "`number` of moves in all")
	fs.IntVar(&cfg.Parallel, "parallel", 1, "`number` of moves under way at a time; with more, each has less of this machine")
	fs.IntVar(&cfg.Each, "each", 2, "`number` of sandboxes of each kind")
	fs.IntSliceVar(&cfg.Sizes, "sizes", []int{64, 128, 256}, "`MiB` that the servers hold")
	fs.IntVar(&cfg.FloorRuns, "floor", 5, "`number` of checkpoints of each kind without a platform; 0 for none")
	fs.StringVar(&cfg.Log, "keep-log", "", "`file` to copy the platform's log to")
	fs.StringVar(&out, "out", "", "`folder` to write the report to, as JSON, and its plots, as SVG")
	return cmd
}
