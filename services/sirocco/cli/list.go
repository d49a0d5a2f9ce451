package cli

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"
)

func (a *app) lsCommand() *cobra.Command {
	req := &siroccov1.ListSandboxesRequest{PageSize: 1000}
	var states []string
	var quiet bool
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List sandboxes, newest first", Args: checked(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, name := range states {
				state, err := parseState(name)
				if err != nil {
					return usageError{cmd.CommandPath(), fmt.Errorf("--state %w", err)}
				}
				req.States = append(req.States, state)
			}
			client, err := a.connect()
			if err != nil {
				return err
			}
			var list []*siroccov1.Sandbox
			for sb, err := range client.List(cmd.Context(), req) {
				if err != nil {
					return err
				}
				list = append(list, sb)
			}
			switch {
			case a.json:
				return printMessages(a, list)
			case quiet:
				for _, sb := range list {
					fmt.Fprintln(a.Out, sb.GetId())
				}
				return nil
			}
			a.warnOfLost(list)
			return a.printSandboxes(list, time.Now())
		},
	}
	fs := cmd.Flags()
	fs.BoolVarP(&req.All, "all", "a", false, "also those that have ended")
	fs.StringSliceVar(&states, "state", nil, "only those in this `state`; may be repeated")
	fs.StringArrayVar(&req.Tags, "tag", nil, "only those with this `key=value`; may be repeated")
	fs.StringVar(&req.Name, "name", "", "only the one of this `name`")
	fs.BoolVarP(&quiet, "quiet", "q", false, "print ids only")
	return cmd
}

func (a *app) printSandboxes(list []*siroccov1.Sandbox, now time.Time) error {
	var rows [][]string
	for _, sb := range list {
		state := stateName(sb.GetState())
		if sb.GetEnd() != nil {
			state += " (" + causeName(sb.GetEnd().GetCause()) + ")"
		} else if sb.GetLost() != nil {
			state += " (" + lostName(sb.GetLost()) + ")"
		}
		began := now
		if h := sb.GetHistory(); len(h) > 0 {
			began = h[0].GetAt().AsTime()
		}
		left := "-"
		if sb.GetEnd() == nil && sb.GetDesired().GetDeadline() != nil {
			left = age(sb.GetDesired().GetDeadline().AsTime().Sub(now))
		}
		rows = append(rows, []string{
			sb.GetId(), dash(sb.GetSpec().GetName()), state, sb.GetSpec().GetImage(), dash(sb.GetPlacement().GetNode()),
			age(now.Sub(began)), left, pairsOf(sb.GetSpec().GetTags()),
		})
	}
	return a.printTable([]string{"ID", "NAME", "STATE", "IMAGE", "NODE", "AGE", "LEFT", "TAGS"}, rows)
}

func (a *app) getCommand() *cobra.Command {
	return &cobra.Command{
		Use: "get SANDBOX", Aliases: []string{"inspect"}, Short: "Show all that is known of a sandbox", Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := a.connect()
			if err != nil {
				return err
			}
			sb, err := client.Get(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if a.json {
				return a.printMessage(sb)
			}
			a.describe(sb, time.Now())
			return nil
		},
	}
}

// lostName says in a word how sure it is that a region is gone.
func lostName(l *siroccov1.RegionLoss) string {
	if l.GetDead() {
		return "lost"
	}
	return "lost?"
}

// warnOfLost says which regions of a list are only remembered.
func (a *app) warnOfLost(list []*siroccov1.Sandbox) {
	count, of := map[string]int{}, map[string]*siroccov1.RegionLoss{}
	for _, sb := range list {
		if l := sb.GetLost(); l != nil {
			count[l.GetRegion()]++
			of[l.GetRegion()] = l
		}
	}
	for _, region := range slices.Sorted(maps.Keys(of)) {
		fmt.Fprintf(a.Err, "sirocco: region %s has been silent since %s; %d sandboxes are shown as they were last known\n", region, clock(of[region].GetSince()), count[region])
	}
}

// describe prints a record for people; --json has every field.
func (a *app) describe(sb *siroccov1.Sandbox, now time.Time) {
	line := func(name, format string, args ...any) {
		fmt.Fprintf(a.Out, "%-10s %s\n", name, fmt.Sprintf(format, args...))
	}
	spec, r := sb.GetSpec(), sb.GetSpec().GetResources()
	line("id", "%s", sb.GetId())
	if spec.GetName() != "" {
		line("name", "%s", spec.GetName())
	}
	line("tenant", "%s", sb.GetTenant())
	line("state", "%s", stateName(sb.GetState()))
	if sb.GetEnd() != nil {
		line("ended", "%s", endText(sb.GetEnd()))
	}
	if l := sb.GetLost(); l != nil {
		line(lostName(l), "%s", l.GetNote())
	}
	line("image", "%s", spec.GetImage())
	if d := sb.GetObserved().GetImageDigest(); d != "" {
		line("digest", "%s", d)
	}
	if len(spec.GetCommand()) > 0 {
		line("command", "%s", strings.Join(spec.GetCommand(), " "))
	}
	line("limits", "cpu %dm, memory %s, disk %s, %d processes", r.GetCpuLimitMillis(), size(r.GetMemoryLimitBytes()), size(r.GetDiskLimitBytes()), r.GetPidsLimit())
	if p := sb.GetPlacement(); p != nil {
		line("placed", "node %s, region %s, epoch %d", p.GetNode(), p.GetRegion(), p.GetEpoch())
	}
	for _, t := range sb.GetTunnels() {
		line("tunnel", "%d -> %s", t.GetPort(), t.GetUrl())
	}
	if len(spec.GetTags()) > 0 {
		line("tags", "%s", pairsOf(spec.GetTags()))
	}
	if sb.GetEnd() == nil {
		line("deadline", "%s", moment(sb.GetDesired().GetDeadline(), now))
		if at := sb.GetDesired().GetEvictAt(); at != nil {
			line("eviction", "%s: its node is to be emptied", moment(at, now))
		}
	}
	for _, t := range sb.GetHistory() {
		line("", "%s %s", clock(t.GetAt()), stateName(t.GetState()))
	}
}

// moment is a time to come, with how far away it is.
func moment(t *timestamppb.Timestamp, now time.Time) string {
	if t == nil {
		return "-"
	}
	return clock(t) + " (in " + age(t.AsTime().Sub(now)) + ")"
}

func clock(t *timestamppb.Timestamp) string {
	if t == nil {
		return "-"
	}
	return t.AsTime().UTC().Format("2006-01-02T15:04:05.000Z")
}
