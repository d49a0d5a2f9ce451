package cli

import (
	"errors"
	"fmt"
	"strings"
	"time"

	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/spf13/cobra"
)

func (a *app) migrateCommand() *cobra.Command {
	var to string
	cmd := &cobra.Command{
		Use: "migrate SANDBOX", Short: "Move a running sandbox, with its memory, to another node or region", Args: exactArgs(1),
		Long: `Move a running sandbox, with its memory, files and processes, to another node of
its region or to another region. Requests through its tunnels are held meanwhile
and answered; its addresses stay. If it can't be moved it goes on where it is.

Only for operators.`,
		Example: "  sirocco migrate sb-… --to us\n  sirocco migrate sb-… --to us/node-2\n  sirocco migrate sb-…           # to another node of its region",
		RunE: func(cmd *cobra.Command, args []string) error {
			region, node, named := strings.Cut(to, "/")
			if named && node == "" || strings.Contains(node, "/") {
				return usageError{cmd.CommandPath(), errors.New("--to is REGION, REGION/NODE or /NODE")}
			}
			client, err := a.connect()
			if err != nil {
				return err
			}
			sb, err := client.Sandbox(args[0]).Migrate(cmd.Context(), region, node)
			if err != nil {
				return err
			}
			return a.printResult(sb, movedText(sb))
		},
	}
	cmd.Flags().StringVar(&to, "to", "", "`region`, region/node or /node (default: another node of its region)")
	return cmd
}

// movedText says in a line how a move went.
func movedText(sb *siroccov1.Sandbox) string {
	where := sb.GetPlacement().GetRegion() + "/" + sb.GetPlacement().GetNode()
	move := sb.GetMove()
	if move.GetEnded() == nil {
		return "it is on " + where
	}
	return fmt.Sprintf("moved to %s in %v: paused for %v, %.1f MB sent", where,
		move.GetEnded().AsTime().Sub(move.GetBegun().AsTime()).Round(time.Millisecond),
		move.GetPause().AsDuration().Round(time.Millisecond), float64(move.GetBytes())/1e6)
}
