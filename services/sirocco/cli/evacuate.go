package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	sirocco "github.com/sirocco-run/sirocco/sdk/go"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

const (
	// evacuationEvery is how often it is looked how far an evacuation is.
	evacuationEvery = 300 * time.Millisecond
	// evacuationLine is the time between two lines where there is no terminal, if
	// nothing else changes.
	evacuationLine = 5 * time.Second
	// evacuationPatience is how long the platform may be away meanwhile.
	evacuationPatience = 30 * time.Second
)

// evacuationFlags are those that emptying a region and emptying a node share.
type evacuationFlags struct {
	over, pause            time.Duration
	errors                 float64
	atOnce                 int32
	cancel, resume, noWait bool
	// status: only look.
	status bool
}

func (f *evacuationFlags) add(fs *pflag.FlagSet) {
	fs.DurationVar(&f.over, "over", 30*time.Second, "over which time, at most a day")
	fs.Float64Var(&f.errors, "max-errors", 2, "`percent` of the moves of a stage that may fail before it pauses")
	fs.DurationVar(&f.pause, "max-pause", 2*time.Second, "how long a move may stop a sandbox before it counts as slow; more than 1% slow ones pause it")
	fs.Int32Var(&f.atOnce, "at-once", 0, "`number` of moves under way at most (default 4 for each node that is emptied)")
	fs.BoolVar(&f.cancel, "cancel", false, "take the order back: nothing more is moved, and new sandboxes come again")
	fs.BoolVar(&f.resume, "resume", false, "end a pause now")
	fs.BoolVar(&f.status, "status", false, "order nothing: show how far the last order is")
	fs.BoolVar(&f.noWait, "no-wait", false, "do not wait until it is over")
}

func (f *evacuationFlags) check(cmd *cobra.Command) error {
	if f.cancel && f.resume || f.status && (f.cancel || f.resume) {
		return usageError{cmd.CommandPath(), errors.New("--cancel, --resume and --status exclude each other")}
	}
	return nil
}

const evacuationHelp = "It goes in stages, 20%, 60% and all of them, evenly over --over. Each stage begins only if the one\n" +
	"before went well: else it pauses, says why, and tries again by itself after 15 s, then 30 s, up to\n" +
	"4 min. A second order shows the one under way. Ctrl-C leaves it to itself. The exit code is 1 if it\n" +
	"was not done in the end."

func (a *app) regionEvacuateCommand() *cobra.Command {
	var f evacuationFlags
	cmd := &cobra.Command{
		Use: "evacuate REGION", Short: "Move all sandboxes of a region to others, and keep new ones away (needs an operator's key)", Args: exactArgs(1),
		Long: "evacuate moves the running sandboxes of a region, with their memory, to other regions by their\n" +
			"weights, and lets new ones slide away along with them. The region stays closed until --cancel.\n" + evacuationHelp,
		Example: "  sirocco region evacuate eu --over 30s\n  sirocco region evacuate eu --cancel",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.check(cmd); err != nil {
				return err
			}
			client, err := a.connect()
			if err != nil {
				return err
			}
			req := &siroccov1.EvacuateRegionRequest{
				Region: args[0], Over: durationpb.New(f.over), MaxErrorRate: proto.Float64(f.errors / 100), MaxPause: durationpb.New(f.pause),
				AtOnce: f.atOnce, Cancel: f.cancel, Resume: f.resume,
			}
			if !f.status {
				if _, err := client.Regions().Evacuate(cmd.Context(), connect.NewRequest(req)); err != nil {
					return err
				}
			}
			return a.followEvacuation(cmd.Context(), f, func(ctx context.Context) (*siroccov1.Evacuation, error) {
				resp, err := client.Regions().GetEvacuation(ctx, connect.NewRequest(&siroccov1.GetEvacuationRequest{Region: args[0]}))
				if err != nil {
					return nil, err
				}
				return resp.Msg, nil
			})
		},
	}
	f.add(cmd.Flags())
	return cmd
}

func (a *app) nodeDrainCommand() *cobra.Command {
	var f evacuationFlags
	var evictAfter time.Duration
	cmd := &cobra.Command{
		Use: "drain NODE", Short: "Cordon a node and move its sandboxes away, in stages", Args: exactArgs(1),
		Long: "drain keeps new sandboxes off a node and moves those that run there, with their memory, to other\n" +
			"nodes of its region, or to other regions where none of these has room. What is still there after\n" +
			"--evict-after gets its eviction notice.\n" + evacuationHelp,
		Example: "  sirocco node drain node-a\n  sirocco node drain node-a --over 5m --evict-after 1h\n  sirocco node drain node-a --cancel",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.check(cmd); err != nil {
				return err
			}
			client, err := a.connect()
			if err != nil {
				return err
			}
			req := &siroccov1.DrainNodeRequest{
				Name: args[0], Over: durationpb.New(f.over), MaxErrorRate: proto.Float64(f.errors / 100), MaxPause: durationpb.New(f.pause),
				AtOnce: f.atOnce, EvictAfter: durationpb.New(evictAfter), Cancel: f.cancel, Resume: f.resume,
			}
			if !f.status {
				if _, err := client.Nodes().Drain(cmd.Context(), connect.NewRequest(req)); err != nil {
					return err
				}
			}
			return a.followEvacuation(cmd.Context(), f, func(ctx context.Context) (*siroccov1.Evacuation, error) {
				resp, err := client.Nodes().GetDrain(ctx, connect.NewRequest(&siroccov1.GetDrainRequest{Name: args[0]}))
				if err != nil {
					return nil, err
				}
				return resp.Msg, nil
			})
		},
	}
	f.add(cmd.Flags())
	cmd.Flags().DurationVar(&evictAfter, "evict-after", 10*time.Minute, "when what could not be moved gets its eviction notice, at most 7 days; 0: at once, and nothing is moved")
	return cmd
}

// followEvacuation shows how far an evacuation is until it is over, and then says how it
// ended.
func (a *app) followEvacuation(ctx context.Context, f evacuationFlags, get func(context.Context) (*siroccov1.Evacuation, error)) error {
	e, err := get(ctx)
	if err != nil {
		return err
	}
	if f.noWait || f.status {
		return a.concludeEvacuation(e, f.cancel)
	}
	p := &evacuationPicture{app: a}
	var away time.Time
	for {
		if !a.json {
			p.show(e, time.Now())
		}
		if overNow(e) {
			p.end()
			return a.concludeEvacuation(e, f.cancel)
		}
		select {
		case <-time.After(evacuationEvery):
		case <-ctx.Done():
			p.end()
			fmt.Fprintln(a.Err, "sirocco: it goes on by itself; --cancel takes it back")
			return ctx.Err()
		}
		next, err := get(ctx)
		switch {
		case err == nil:
			e, away = next, time.Time{}
		case sirocco.CodeOf(err) != sirocco.Unavailable || !away.IsZero() && time.Since(away) > evacuationPatience:
			p.end()
			return err
		case away.IsZero():
			away = time.Now()
		}
	}
}

// overNow says whether there is nothing more to wait for. One that was cancelled after
// it was over ends anew.
func overNow(e *siroccov1.Evacuation) bool {
	switch e.GetState() {
	case siroccov1.EvacuationState_EVACUATION_STATE_CANCELLED:
		return true
	case siroccov1.EvacuationState_EVACUATION_STATE_DONE, siroccov1.EvacuationState_EVACUATION_STATE_INCOMPLETE:
		return e.GetCancelled() == nil
	}
	return false
}

// concludeEvacuation prints how far it is; the error is that it is over and has not become
// what was asked for.
func (a *app) concludeEvacuation(e *siroccov1.Evacuation, cancel bool) error {
	if a.json {
		if err := a.printMessage(e); err != nil {
			return err
		}
	} else {
		fmt.Fprintf(a.Out, "%s: %s: %s\n", evacuated(e), evacuationState(e), dash(e.GetWhy()))
	}
	wanted := siroccov1.EvacuationState_EVACUATION_STATE_DONE
	if cancel {
		wanted = siroccov1.EvacuationState_EVACUATION_STATE_CANCELLED
	}
	if overNow(e) && e.GetState() != wanted {
		return errSilent
	}
	return nil
}

func evacuated(e *siroccov1.Evacuation) string {
	if e.GetNode() != "" {
		return e.GetNode()
	}
	return e.GetRegion()
}

// evacuationState is a state as people write it.
func evacuationState(e *siroccov1.Evacuation) string {
	return strings.ToLower(strings.TrimPrefix(e.GetState().String(), "EVACUATION_STATE_"))
}

// evacuationPicture shows how far an evacuation is: on a terminal as a bar that is drawn
// over and over, elsewhere as a line when something changes, and now and then.
type evacuationPicture struct {
	*app
	// said is the last state, stage and reason, at.
	said  string
	at    time.Time
	drawn bool
}

// evacuationBar is how long the bar is.
const evacuationBar = 30

func (p *evacuationPicture) show(e *siroccov1.Evacuation, now time.Time) {
	total := e.GetMoved() + e.GetHere()
	share := 1.0
	if total > 0 {
		share = float64(e.GetMoved()) / float64(total)
	}
	text := fmt.Sprintf("stage %d/%d  %d/%d moved  %d under way  %d failed  p99 %s  %s", e.GetStage()+1, len(e.GetStages()),
		e.GetMoved(), total, e.GetUnderWay(), e.GetFailed(), pauseOf(e), evacuationState(e))
	key := fmt.Sprint(e.GetState(), e.GetStage(), e.GetPauses(), e.GetWhy() == "")
	changed := key != p.said
	p.said = key
	if !isTerminal(p.Err) {
		if changed || now.Sub(p.at) >= evacuationLine {
			p.at = now
			if e.GetWhy() != "" {
				text += ": " + e.GetWhy()
			}
			fmt.Fprintln(p.Err, evacuated(e)+"  "+text)
		}
		return
	}
	if changed && e.GetWhy() != "" {
		p.clear()
		fmt.Fprintf(p.Err, "%s: %s\n", evacuationState(e), e.GetWhy()) // stays above the bar
	}
	full := int(share*evacuationBar + 0.5)
	p.clear()
	fmt.Fprintf(p.Err, "%s %s%s %s  %s", evacuated(e), strings.Repeat("█", full), strings.Repeat("░", evacuationBar-full), percent(share), text)
	p.drawn = true
}

func (p *evacuationPicture) clear() {
	if p.drawn {
		fmt.Fprint(p.Err, "\r\x1b[2K")
	}
	p.drawn = false
}

func (p *evacuationPicture) end() {
	if p.drawn {
		fmt.Fprintln(p.Err)
	}
	p.drawn = false
}

// pauseOf is how long the slowest moves stopped their sandbox.
func pauseOf(e *siroccov1.Evacuation) string {
	if e.GetPauseP99() == nil {
		return "-"
	}
	return e.GetPauseP99().AsDuration().Round(time.Millisecond).String()
}
