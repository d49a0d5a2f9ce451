package cli

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

func (a *app) regionCommand() *cobra.Command {
	cmd := group("region", "Show regions, their health and their weights, and steer them")
	cmd.AddCommand(a.regionListCommand(), a.regionWeightsCommand(), a.regionSetWeightCommand(), a.regionEvacuateCommand())
	return cmd
}

func (a *app) regions(ctx context.Context) ([]*siroccov1.Region, error) {
	client, err := a.connect()
	if err != nil {
		return nil, err
	}
	resp, err := client.Regions().List(ctx, connect.NewRequest(&siroccov1.ListRegionsRequest{}))
	if err != nil {
		return nil, err
	}
	return resp.Msg.GetRegions(), nil
}

func (a *app) regionListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "ls", Short: "List regions, with the reasons of their scores", Args: checked(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			regions, err := a.regions(cmd.Context())
			if err != nil {
				return err
			}
			if a.json {
				return printMessages(a, regions)
			}
			var rows [][]string
			for _, r := range regions {
				rep := r.GetReport()
				rows = append(rows, []string{
					nameOf(r), stateOf(r), percent(r.GetWeight()), strconv.FormatFloat(r.GetScore(), 'f', 2, 64),
					fmt.Sprintf("%d/%d", rep.GetReadyNodes(), rep.GetNodes()),
					fmt.Sprintf("%d/%d", rep.GetLiveSandboxes(), rep.GetCapacitySandboxes()), fmt.Sprint(rep.GetWarmSandboxes()),
					dash(strings.Join(r.GetReasons(), "; ")),
				})
			}
			return a.printTable([]string{"REGION", "STATE", "WEIGHT", "SCORE", "NODES", "SANDBOXES", "WARM", "WHY"}, rows)
		},
	}
}

// nameOf marks the region that answers.
func nameOf(r *siroccov1.Region) string {
	if r.GetHere() {
		return r.GetName() + "*"
	}
	return r.GetName()
}

func stateOf(r *siroccov1.Region) string {
	switch {
	case !r.GetAlive():
		return "dead"
	case r.SetWeight != nil:
		return fmt.Sprintf("set to %s for %s", percent(r.GetSetWeight()), age(time.Until(r.GetSetUntil().AsTime())))
	case r.GetWeight() == 0:
		return "drained"
	}
	return "alive"
}

func percent(share float64) string { return strconv.FormatFloat(100*share, 'f', 1, 64) + "%" }

// pictureEvery is how often the live picture is drawn anew.
const pictureEvery = time.Second

func (a *app) regionWeightsCommand() *cobra.Command {
	var follow bool
	cmd := &cobra.Command{
		Use: "weights", Short: "Show the share of new sandboxes of each region, as bars", Args: checked(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			lines := 0
			for {
				regions, err := a.regions(cmd.Context())
				if err != nil {
					return err
				}
				if a.json {
					err = printMessages(a, regions)
				} else {
					lines = a.drawWeights(regions, lines)
				}
				if err != nil || !follow {
					return err
				}
				select {
				case <-time.After(pictureEvery):
				case <-cmd.Context().Done():
					return nil
				}
			}
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until Ctrl-C")
	return cmd
}

// barWidth is how long the bar of a region is that gets everything.
const barWidth = 50

// drawWeights draws one bar for each region over the lines drawn before, and returns how
// many lines it drew. What is no terminal gets one picture after the other.
func (a *app) drawWeights(regions []*siroccov1.Region, before int) int {
	if isTerminal(a.Out) {
		for range before {
			fmt.Fprint(a.Out, "\x1b[1A\x1b[2K")
		}
	}
	for _, r := range regions {
		full := int(r.GetWeight()*barWidth + 0.5)
		fmt.Fprintf(a.Out, "%-12s %s%s %6s  score %.2f  %s\n", nameOf(r),
			strings.Repeat("█", full), strings.Repeat("░", barWidth-full), percent(r.GetWeight()), r.GetScore(), stateOf(r))
	}
	return len(regions)
}

func (a *app) regionSetWeightCommand() *cobra.Command {
	var hold time.Duration
	var lift bool
	cmd := &cobra.Command{
		Use: "set-weight REGION [WEIGHT]", Short: "Let your word stand before the controller's for a while (needs an operator's key)", Args: checked(cobra.RangeArgs(1, 2)),
		Long: "set-weight says how much of what its capacity would get a region is to get, from 0 (nothing\n" +
			"new) to 1, whatever its health. After --for, or with --lift, the controller decides again.",
		Example: "  sirocco region set-weight eu 0 --for 30m\n  sirocco region set-weight eu --lift",
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &siroccov1.SetRegionWeightRequest{Region: args[0], Hold: durationpb.New(hold)}
			switch {
			case lift == (len(args) == 2):
				return usageError{cmd.CommandPath(), errors.New("name a weight from 0 to 1, or --lift")}
			case !lift:
				w, err := strconv.ParseFloat(args[1], 64)
				if err != nil {
					return usageError{cmd.CommandPath(), fmt.Errorf("%q is not a weight: want 0 to 1", args[1])}
				}
				req.Weight = proto.Float64(w)
			}
			client, err := a.connect()
			if err != nil {
				return err
			}
			resp, err := client.Regions().SetWeight(cmd.Context(), connect.NewRequest(req))
			if err != nil {
				return err
			}
			if missed := resp.Msg.GetUnreached(); len(missed) > 0 {
				fmt.Fprintf(a.Err, "sirocco: it does not hold in %s, which can't be reached\n", strings.Join(missed, ", "))
			}
			return nil
		},
	}
	cmd.Flags().DurationVar(&hold, "for", time.Hour, "how long it holds, at most 7 days")
	cmd.Flags().BoolVar(&lift, "lift", false, "let the controller decide again")
	return cmd
}
