package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/havoc"
	"github.com/sirocco-run/sirocco/services/sirocco/up"
	"github.com/spf13/cobra"
)

func (a *app) faultCommand() *cobra.Command {
	cmd := group("fault", "Make nodes and buses of this machine's `sirocco up --regions` slow and unreliable, to see what happens")
	cmd.Long = "fault makes starts of sandboxes slow, or fail, on nodes that follow such orders, and slows down or\n" +
		"stops a region's bus (--faults of both, which `sirocco up --regions` gives them). It speaks to the bus\n" +
		"itself, as `sirocco key` does; a bus that hangs can't be told anything, and ends that by itself."
	cmd.Example = "  sirocco fault region eu --latency 400ms --errors 30%\n  sirocco region weights -f\n  sirocco fault bus us --stop 10s\n  sirocco fault clear"
	data := cmd.PersistentFlags().String("data", up.DefaultData, "`folder` of the state, as given to up")
	cmd.AddCommand(
		a.faultSetCommand(data, "region REGION", "Make all nodes of a region so", func(name string) (string, string) { return name, "" }),
		a.faultSetCommand(data, "node NODE", "Make one node so", func(name string) (string, string) { return "", name }),
		a.faultBusCommand(data),
		&cobra.Command{
			Use: "clear", Short: "Take all of it back", Args: checked(cobra.NoArgs),
			RunE: func(cmd *cobra.Command, _ []string) error {
				n := 0
				var failed error // of a bus that hangs; the others are told all the same
				for _, home := range up.Homes(*data) {
					err := a.withHavoc(cmd.Context(), home, func(ctx context.Context, s *havoc.Store) error {
						one, err := s.Clear(ctx)
						n += one
						return err
					})
					if err != nil && failed == nil {
						failed = err
					}
				}
				fmt.Fprintf(a.Out, "%d taken back\n", n)
				return failed
			},
		})
	return cmd
}

// faultSetCommand gives an order. which says for which region and node; an empty region
// is every one, so that a node is found wherever it is.
func (a *app) faultSetCommand(data *string, use, short string, which func(name string) (region, node string)) *cobra.Command {
	var latency, hold time.Duration
	var share string
	cmd := &cobra.Command{
		Use: use, Short: short, Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			failing, err := parseShare(share)
			if err == nil && latency == 0 && failing == 0 {
				err = errors.New("say what is to happen: --latency, --errors")
			}
			if err != nil {
				return usageError{cmd.CommandPath(), err}
			}
			order := havoc.Order{Latency: latency, Errors: failing, Until: time.Now().Add(hold)}
			region, node := which(args[0])
			known := false
			for _, home := range up.Homes(*data) {
				of := filepath.Base(home)
				if region != "" && region != of {
					continue
				}
				known = true
				if err := a.withHavoc(cmd.Context(), home, func(ctx context.Context, s *havoc.Store) error { return s.Set(ctx, of, node, order) }); err != nil {
					return err
				}
			}
			if !known {
				return failed("name a region of `sirocco up --regions`, and its --data.", "no region %s has its state in %s", region, *data)
			}
			return nil
		},
	}
	cmd.Flags().DurationVar(&latency, "latency", 0, "`time` that each start takes longer")
	cmd.Flags().StringVar(&share, "errors", "0", "`share` of starts that fail, such as 30%")
	cmd.Flags().DurationVar(&hold, "for", 10*time.Minute, "how long, unless it is cleared before")
	return cmd
}

// faultBusCommand gives an order for the bus of a region.
func (a *app) faultBusCommand(data *string) *cobra.Command {
	var stop, latency, hold time.Duration
	cmd := &cobra.Command{
		Use: "bus REGION", Short: "Let the bus of a region hang, or be slow", Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if stop <= 0 && latency <= 0 {
				return usageError{cmd.CommandPath(), errors.New("say what is to happen: --stop, --latency")}
			}
			for _, home := range up.Homes(*data) {
				if filepath.Base(home) != args[0] {
					continue
				}
				return a.withHavoc(cmd.Context(), home, func(ctx context.Context, s *havoc.Store) error {
					now := time.Now()
					order := havoc.BusOrder{Latency: latency, Until: now.Add(hold)}
					if stop > 0 {
						order.StopFrom = now.Add(havoc.StopDelay)
						order.StopUntil = order.StopFrom.Add(stop)
					}
					return s.SetBus(ctx, args[0], order)
				})
			}
			return failed("name a region of `sirocco up --regions`, and its --data.", "no region %s has its state in %s", args[0], *data)
		},
	}
	cmd.Flags().DurationVar(&stop, "stop", 0, "`time` for which it hangs: connections stay, and nothing passes")
	cmd.Flags().DurationVar(&latency, "latency", 0, "`time` by which everything comes later that it sends")
	cmd.Flags().DurationVar(&hold, "for", 10*time.Minute, "how long it is slow, unless it is cleared before")
	return cmd
}

// withHavoc calls f with the orders of a platform.
func (a *app) withHavoc(ctx context.Context, home string, f func(context.Context, *havoc.Store) error) error {
	access, err := up.BusAccess(home)
	if err != nil {
		return failed("faults are asked for over the bus, with the services' password: name the folder that up was given with --data, as its owner (root).", "%w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, busTimeout)
	defer cancel()
	nc, err := access.Connect(ctx, "cli", slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	store, err := havoc.Open(ctx, js)
	if err != nil {
		return err
	}
	return f(ctx, store)
}

// parseShare reads a share: "30%", "0.3".
func parseShare(s string) (float64, error) {
	number, factor := s, 1.0
	if cut, percent := strings.CutSuffix(s, "%"); percent {
		number, factor = cut, 100
	}
	n, err := strconv.ParseFloat(number, 64)
	if err != nil || !(n >= 0 && n/factor <= 1) {
		return 0, fmt.Errorf("%q is not a share such as 30%% or 0.3", s)
	}
	return n / factor, nil
}
