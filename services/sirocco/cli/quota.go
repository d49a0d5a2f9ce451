package cli

import (
	"errors"
	"fmt"
	"strconv"

	"connectrpc.com/connect"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
)

func (a *app) quotaCommand() *cobra.Command {
	cmd := group("quota", "Set and show what tenants may have (needs an operator's key)")
	cmd.AddCommand(a.quotaListCommand(), a.quotaSetCommand(), &cobra.Command{
		Use: "rm TENANT", Short: "Take a tenant's own quota away; the defaults of the api hold for it", Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := a.connect()
			if err != nil {
				return err
			}
			_, err = client.Quotas().Remove(cmd.Context(), connect.NewRequest(&siroccov1.RemoveQuotaRequest{Tenant: args[0]}))
			return err
		},
	})
	return cmd
}

func (a *app) quotaListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "ls", Short: "List tenants, what they have and what they may have", Args: checked(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := a.connect()
			if err != nil {
				return err
			}
			resp, err := client.Quotas().List(cmd.Context(), connect.NewRequest(&siroccov1.ListQuotasRequest{}))
			if err != nil {
				return err
			}
			return a.printQuotas(resp.Msg.GetQuotas())
		},
	}
}

func (a *app) quotaSetCommand() *cobra.Command {
	var live, burst int32
	var rate float64
	var memory string
	cmd := &cobra.Command{
		Use: "set TENANT [flags]", Short: "Give a tenant a quota of its own, or replace it", Args: exactArgs(1),
		Long: "set says what a tenant may have, whatever the api's --max-live, --create-rate,\n" +
			"--create-burst and --max-live-memory say. What is left out follows those; 0 is no limit.\n" +
			"Sandboxes that the tenant has stay as they are.",
		Example: "  sirocco quota set acme --live 2000 --rate 100 --memory 256Gi\n" +
			"  sirocco quota set trial --live 5 --rate 0.5 --burst 5",
		RunE: func(cmd *cobra.Command, args []string) error {
			limits, given := &siroccov1.QuotaLimits{}, cmd.Flags().Changed
			if given("live") {
				limits.Live = proto.Int32(live)
			}
			if given("rate") {
				limits.CreateRate = proto.Float64(rate)
			}
			if given("burst") {
				limits.CreateBurst = proto.Int32(burst)
			}
			if given("memory") {
				bytes, err := parseSize(memory)
				if err != nil {
					return usageError{cmd.CommandPath(), fmt.Errorf("--memory %w", err)}
				}
				limits.MemoryBytes = proto.Int64(bytes)
			}
			if proto.Size(limits) == 0 {
				return usageError{cmd.CommandPath(), errors.New("say what it may have: --live, --rate, --burst, --memory")}
			}
			client, err := a.connect()
			if err != nil {
				return err
			}
			resp, err := client.Quotas().Set(cmd.Context(), connect.NewRequest(&siroccov1.SetQuotaRequest{Tenant: args[0], Limits: limits}))
			if err != nil {
				return err
			}
			return a.printQuotas([]*siroccov1.Quota{resp.Msg})
		},
	}
	fs := cmd.Flags()
	fs.Int32Var(&live, "live", 0, "how `many` sandboxes that have not ended")
	fs.Float64Var(&rate, "rate", 0, "how `many` creates a second, in the long run")
	fs.Int32Var(&burst, "burst", 0, "how `many` creates at once (default: ten seconds of the rate)")
	fs.StringVar(&memory, "memory", "", "how much memory its sandboxes may request together, as `size` such as 64Gi")
	return cmd
}

// printQuotas prints what tenants have, each followed by its limit.
func (a *app) printQuotas(quotas []*siroccov1.Quota) error {
	if a.json {
		return printMessages(a, quotas)
	}
	var rows [][]string
	for _, q := range quotas {
		l, own := q.GetLimits(), q.GetOwn()
		if own == nil {
			own = &siroccov1.QuotaLimits{}
		}
		rows = append(rows, []string{
			q.GetTenant(), fmt.Sprint(q.GetLive()), limitText(fmt.Sprint(l.GetLive()), own.Live != nil),
			size(q.GetMemoryBytes()), limitText(size(l.GetMemoryBytes()), own.MemoryBytes != nil),
			limitText(strconv.FormatFloat(l.GetCreateRate(), 'g', -1, 64), own.CreateRate != nil),
			limitText(fmt.Sprint(l.GetCreateBurst()), own.CreateBurst != nil),
		})
	}
	return a.printTable([]string{"TENANT", "LIVE", "OF", "MEMORY", "OF", "RATE", "BURST"}, rows)
}

// limitText marks a limit that is the tenant's own.
func limitText(limit string, own bool) string {
	if limit == "0" {
		limit = "-"
	}
	if own {
		limit += "*"
	}
	return limit
}
