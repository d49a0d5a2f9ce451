package cli

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/sirocco-run/sirocco/pkg/program"
	"github.com/sirocco-run/sirocco/services/sirocco/bench"
	"github.com/sirocco-run/sirocco/services/sirocco/bench/fleet"
	"github.com/spf13/cobra"
)

// fleetCommand measures the control plane with simulated nodes. It needs no
// platform: it starts its own.
func (a *app) fleetCommand() *cobra.Command {
	var cfg fleet.Config
	var dir string
	cmd := &cobra.Command{
		Use: "fleet", Short: "The control plane alone: thousands of sandboxes on simulated nodes", Args: checked(cobra.NoArgs),
		Long: "fleet starts a control plane (bus, api, schedulers, relay, reaper) in one process and simulated\n" +
			"nodes in another, and measures: whole lifecycles as fast as they go (--lifecycles), a weekend of a\n" +
			"million (--weekend), sandboxes that come and go while thousands live (--live, --churn), a restart\n" +
			"of everything (--restart), a surge (--surge). It exits with 1 if anything failed, was lost, or did\n" +
			"not hold.",
		RunE: a.starting(&dir, cfg.Validate, func(ctx context.Context, self string) (*bench.Report, error) {
			cfg.Program, cfg.Progress = self, a.progress()
			return fleet.Run(ctx, cfg)
		}),
	}
	cfg.Flags(cmd.Flags())
	cmd.Flags().StringVar(&dir, "out", "", "`folder` that the report and its plots are written into")
	return cmd
}

// evacuateCommand measures several regions, with simulated nodes, while one is evacuated.
func (a *app) evacuateCommand() *cobra.Command {
	var cfg fleet.Evacuation
	var dir string
	cmd := &cobra.Command{
		Use: "evacuate", Short: "A region is evacuated while clients use all of them: thousands of simulated sandboxes move", Args: checked(cobra.NoArgs),
		Long: "evacuate starts several regions (each a bus, api, scheduler, relay and reaper in one process, and simulated\n" +
			"nodes in another) that name each other as peers, fills them, and evacuates the first while clients create and\n" +
			"end sandboxes, ask for them, and run commands in them, through all regions. It shows once a second how many\n" +
			"live in each region, where new ones go, and what failed. In the end the first region must be empty, every\n" +
			"sandbox must live exactly once, and no call may have failed: else it exits with 1.",
		RunE: a.starting(&dir, cfg.Validate, func(ctx context.Context, self string) (*bench.Report, error) {
			cfg.Program, cfg.Progress = self, a.progress()
			return fleet.RunEvacuation(ctx, cfg)
		}),
	}
	cfg.Flags(cmd.Flags())
	cmd.Flags().StringVar(&dir, "out", "", "`folder` that the report and its plots are written into")
	return cmd
}

// starting runs a benchmark that starts this program again, as another process.
func (a *app) starting(out *string, validate func() error, run func(ctx context.Context, self string) (*bench.Report, error)) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, _ []string) error {
		if err := validate(); err != nil {
			return usageError{cmd.CommandPath(), err}
		}
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("find this program: %w", err)
		}
		report, err := run(cmd.Context(), self)
		if err != nil {
			return err
		}
		return a.conclude(report, *out)
	}
}

// nodesCommand is the process of the simulated nodes, for fleet.
func (a *app) nodesCommand() *cobra.Command {
	var cfg fleet.NodesConfig
	cmd := &cobra.Command{
		Use: "nodes", Hidden: true, Args: checked(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			again := make(chan os.Signal, 1)
			signal.Notify(again, syscall.SIGHUP)
			defer signal.Stop(again)
			restarts := make(chan struct{})
			go func() {
				for {
					select {
					case <-again:
					case <-cmd.Context().Done():
						return
					}
					select {
					case restarts <- struct{}{}:
					case <-cmd.Context().Done():
						return
					}
				}
			}()
			cfg.Again = restarts
			settings := program.Settings{LogLevel: "warn", LogFormat: program.FormatText}
			log, err := settings.Logger(a.Err, "node-agent")
			if err != nil {
				return err
			}
			return fleet.RunNodes(cmd.Context(), cfg, a.Out, log)
		},
	}
	cfg.Flags(cmd.Flags())
	return cmd
}
