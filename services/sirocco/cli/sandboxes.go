package cli

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/spf13/cobra"
)

func (a *app) rmCommand() *cobra.Command {
	req := &siroccov1.TerminateSandboxRequest{}
	var all bool
	cmd := &cobra.Command{
		Use: "rm SANDBOX...", Aliases: []string{"terminate"}, Short: "End sandboxes",
		RunE: func(cmd *cobra.Command, args []string) error {
			if all == (len(args) > 0) {
				return usageError{cmd.CommandPath(), errors.New("name the sandboxes to end, or give --all")}
			}
			client, err := a.connect()
			if err != nil {
				return err
			}
			if all {
				for sb, err := range client.List(cmd.Context(), &siroccov1.ListSandboxesRequest{PageSize: 1000}) {
					if err != nil {
						return err
					}
					args = append(args, sb.GetId())
				}
			}
			// Each is tried; the first that fails decides the exit code.
			var first error
			for _, id := range args {
				sb, err := client.Sandbox(id).TerminateWith(cmd.Context(), req)
				if err != nil {
					if first == nil {
						first = err
					} else {
						fmt.Fprintf(a.Err, "sirocco: %s: %v\n", id, err)
					}
					continue
				}
				if err := a.printResult(sb, sb.GetId()); err != nil {
					return err
				}
			}
			return first
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "every sandbox of the tenant")
	cmd.Flags().StringVar(&req.Reason, "reason", "", "`text` that is kept in the record")
	cmd.Flags().BoolVar(&req.NoWait, "no-wait", false, "do not wait until they have ended")
	return cmd
}

// printResult prints the record as JSON, or a few words.
func (a *app) printResult(sb *siroccov1.Sandbox, text string) error {
	if a.json {
		return a.printLine(sb)
	}
	fmt.Fprintln(a.Out, text)
	return nil
}

func (a *app) extendCommand() *cobra.Command {
	return &cobra.Command{
		Use: "extend SANDBOX DURATION", Short: "Move the deadline to so long from now", Args: exactArgs(2),
		Example: "  sirocco extend sb-… 30m",
		RunE: func(cmd *cobra.Command, args []string) error {
			by, err := time.ParseDuration(args[1])
			if err != nil || by <= 0 {
				return usageError{cmd.CommandPath(), fmt.Errorf("%q is not a duration such as 30m", args[1])}
			}
			client, err := a.connect()
			if err != nil {
				return err
			}
			sb, err := client.Sandbox(args[0]).Extend(cmd.Context(), by)
			if err != nil {
				return err
			}
			return a.printResult(sb, clock(sb.GetDesired().GetDeadline()))
		},
	}
}

func (a *app) tagCommand() *cobra.Command {
	return &cobra.Command{
		Use: "tag SANDBOX [KEY=VALUE...]", Short: "Replace all tags of a sandbox", Args: minArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			tags, err := parsePairs("tag", args[1:], nil)
			if err != nil {
				return usageError{cmd.CommandPath(), err}
			}
			client, err := a.connect()
			if err != nil {
				return err
			}
			sb, err := client.Sandbox(args[0]).SetTags(cmd.Context(), tags)
			if err != nil {
				return err
			}
			return a.printResult(sb, pairsOf(sb.GetSpec().GetTags()))
		},
	}
}

func (a *app) tokenCommand() *cobra.Command {
	var ttl time.Duration
	cmd := &cobra.Command{
		Use: "token SANDBOX", Short: "Make a token for the exec, files and logs of one sandbox", Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := a.connect()
			if err != nil {
				return err
			}
			token, err := client.Sandbox(args[0]).Token(cmd.Context(), ttl)
			if err != nil {
				return err
			}
			if a.json {
				return a.printMessage(token)
			}
			fmt.Fprintf(a.Out, "token    %s\nurl      %s\nexpires  %s\n", token.GetToken(), token.GetDataUrl(), clock(token.GetExpiresAt()))
			return nil
		},
	}
	cmd.Flags().DurationVar(&ttl, "ttl", 0, "how long it is good (default 1h, at most 24h)")
	return cmd
}

// quiet is how long a replay waits for the next event before it counts as
// through.
const quiet = time.Second

func (a *app) eventsCommand() *cobra.Command {
	var follow bool
	var from string
	cmd := &cobra.Command{
		Use: "events [SANDBOX]", Short: "Print what has happened, and with -f what happens",
		Long: "events prints the events that are kept, from --from on. With -f it goes on with what\n" +
			"comes, and without --from prints only that. Where there are several regions, the second word\n" +
			"of a line is the position in all of them; --from takes it and goes on behind it.",
		Args: checked(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			id := ""
			if len(args) == 1 {
				id = args[0]
			}
			if from == "" && !follow {
				from = "1"
			}
			req := &siroccov1.WatchSandboxesRequest{Id: id, Cursor: from}
			if n, err := strconv.ParseUint(from, 10, 64); err == nil {
				req.FromSequence, req.Cursor = n, ""
			}
			client, err := a.connect()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithCancel(cmd.Context())
			defer cancel()
			if !follow {
				idle := time.AfterFunc(quiet, cancel)
				defer idle.Stop()
				for event, err := range client.WatchWith(ctx, req) {
					if err != nil {
						return err
					}
					idle.Reset(quiet)
					if err := a.printEvent(event); err != nil {
						return err
					}
				}
				return nil
			}
			for event, err := range client.WatchWith(ctx, req) {
				if err != nil {
					return err
				}
				if err := a.printEvent(event); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what comes, until Ctrl-C")
	cmd.Flags().StringVar(&from, "from", "", "first `sequence` to print, of the region that is asked; or the position behind which to begin")
	return cmd
}

func (a *app) printEvent(e *siroccov1.SandboxEvent) error {
	if a.json {
		return a.printLine(e)
	}
	subject, text := e.GetSandbox().GetId(), stateName(e.GetSandbox().GetState())
	switch sb, r := e.GetSandbox(), e.GetRejected(); {
	case e.GetAway() != nil:
		subject, text = "region "+e.GetRegion(), "away: "+e.GetAway().GetNote()
	case e.GetBack() != "":
		subject, text = "region "+e.GetRegion(), "back"
	case r != nil:
		subject, text = "command "+r.GetKey(), fmt.Sprintf("rejected %s: %s: %s", r.GetVerb(), r.GetCode(), r.GetMessage())
	case sb.GetEnd() != nil:
		text += " " + endText(sb.GetEnd())
	case sb.GetPlacement() != nil:
		text += " on " + sb.GetPlacement().GetNode()
	}
	at := e.GetCursor()
	if !strings.Contains(at, ",") {
		at = strconv.FormatUint(e.GetSequence(), 10)
	}
	fmt.Fprintf(a.Out, "%s %s %s %s\n", clock(e.GetAt()), at, subject, text)
	return nil
}
