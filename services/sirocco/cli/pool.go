package cli

import (
	"errors"
	"fmt"
	"strings"

	"connectrpc.com/connect"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/spf13/cobra"
)

func (a *app) poolCommand() *cobra.Command {
	cmd := group("pool", "Declare and show warm pools (needs an operator's key)")
	cmd.AddCommand(a.poolListCommand(), a.poolSetCommand(), &cobra.Command{
		Use: "rm NAME", Short: "Withdraw a warm pool; what nodes have learned stays", Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := a.connect()
			if err != nil {
				return err
			}
			_, err = client.Pools().Remove(cmd.Context(), connect.NewRequest(&siroccov1.RemovePoolRequest{Name: args[0]}))
			return err
		},
	})
	return cmd
}

func (a *app) poolListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "ls", Short: "List warm pools, declared and learned, and what nodes hold of them", Args: checked(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := a.connect()
			if err != nil {
				return err
			}
			resp, err := client.Pools().List(cmd.Context(), connect.NewRequest(&siroccov1.ListPoolsRequest{}))
			if err != nil {
				return err
			}
			return a.printPools(resp.Msg.GetPools())
		},
	}
}

func (a *app) poolSetCommand() *cobra.Command {
	var template templateFlags
	req := &siroccov1.SetPoolRequest{}
	cmd := &cobra.Command{
		Use: "set NAME --warm N [flags]", Short: "Declare a warm pool, or replace the one of that name", Args: exactArgs(1),
		Long: "set tells every node of the region to keep sandboxes started ahead. A warm one serves\n" +
			"a create that asks for the same image, resources and network policy, and nothing else:\n" +
			"give the flags that `run` is given. Sandboxes that are in use stay as they are.",
		Example: "  sirocco pool set python --image host --memory 1Gi --warm 8 --max 64\n" +
			"  sirocco pool set plain --warm 16",
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if !cmd.Flags().Changed("warm") {
				return usageError{cmd.CommandPath(), errors.New("say with --warm how many each node keeps")}
			}
			req.Name = args[0]
			if req.Template, err = template.template(); err != nil {
				return usageError{cmd.CommandPath(), err}
			}
			client, err := a.connect()
			if err != nil {
				return err
			}
			resp, err := client.Pools().Set(cmd.Context(), connect.NewRequest(req))
			if err != nil {
				return err
			}
			return a.printPools([]*siroccov1.Pool{resp.Msg})
		},
	}
	fs := cmd.Flags()
	template.add(fs)
	fs.Int32Var(&req.Warm, "warm", 0, "how `many` each node keeps at least")
	fs.Int32Var(&req.Max, "max", 0, "how `many` each node keeps at most (default: as demand and the node's budget want)")
	return cmd
}

func (a *app) printPools(pools []*siroccov1.Pool) error {
	if a.json {
		return printMessages(a, pools)
	}
	var rows [][]string
	for _, p := range pools {
		var ready int32
		for _, n := range p.GetNodes() {
			ready += n.GetReady()
		}
		row := []string{"(learned)", "-", "-", "-", "-", "-", "-"}
		if t, r := p.GetTemplate(), p.GetTemplate().GetResources(); t != nil {
			most := "-"
			if p.GetMax() > 0 {
				most = fmt.Sprint(p.GetMax())
			}
			row = []string{
				p.GetName(), t.GetImage(), fmt.Sprintf("%dm", r.GetCpuLimitMillis()), size(r.GetMemoryLimitBytes()),
				networkText(t.GetNetwork()), fmt.Sprint(p.GetWarm()), most,
			}
		}
		rows = append(rows, append(row, fmt.Sprint(ready), fmt.Sprint(len(p.GetNodes())), p.GetKey()))
	}
	return a.printTable([]string{"POOL", "IMAGE", "CPU", "MEMORY", "NETWORK", "WARM", "MAX", "READY", "NODES", "KEY"}, rows)
}

// networkText is the inverse of parseNetwork.
func networkText(p *siroccov1.NetworkPolicy) string {
	switch p.GetMode() {
	case siroccov1.NetworkMode_NETWORK_MODE_BLOCKED:
		return "blocked"
	case siroccov1.NetworkMode_NETWORK_MODE_ALLOWED:
		return "allow=" + strings.Join(p.GetAllowedCidrs(), ",")
	default:
		return "open"
	}
}
