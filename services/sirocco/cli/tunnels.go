package cli

import (
	"fmt"
	"strconv"
	"strings"

	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/spf13/cobra"
)

func (a *app) tunnelCommand() *cobra.Command {
	cmd := group("tunnel", "Publish and withdraw ports of a sandbox")
	var token string
	open := &cobra.Command{
		Use: "open SANDBOX PORT[/tcp|/tls]", Short: "Publish a port and print its address", Args: exactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			port, err := parsePort(args[1])
			if err != nil {
				return usageError{cmd.CommandPath(), err}
			}
			port.BearerToken = token
			client, err := a.connect()
			if err != nil {
				return err
			}
			tunnel, err := client.Sandbox(args[0]).OpenTunnel(cmd.Context(), port)
			if err != nil {
				return err
			}
			if a.json {
				return a.printMessage(tunnel)
			}
			fmt.Fprintln(a.Out, tunnel.GetUrl())
			return nil
		},
	}
	open.Flags().StringVar(&token, "token", "", "bearer `token` that requests must carry (HTTPS)")
	cmd.AddCommand(open, &cobra.Command{
		Use: "close SANDBOX PORT", Short: "Withdraw a port", Args: exactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			port, err := strconv.ParseUint(args[1], 10, 16)
			if err != nil || port == 0 {
				return usageError{cmd.CommandPath(), fmt.Errorf("%q is not a port", args[1])}
			}
			client, err := a.connect()
			if err != nil {
				return err
			}
			return client.Sandbox(args[0]).CloseTunnel(cmd.Context(), uint32(port))
		},
	}, &cobra.Command{
		Use: "ls SANDBOX", Short: "List the ports that are published", Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := a.connect()
			if err != nil {
				return err
			}
			tunnels, err := client.Sandbox(args[0]).Tunnels(cmd.Context())
			if err != nil {
				return err
			}
			if a.json {
				return printMessages(a, tunnels)
			}
			var rows [][]string
			for _, t := range tunnels {
				rows = append(rows, []string{fmt.Sprint(t.GetPort()), protocolName(t.GetProtocol()), t.GetUrl(), yes(t.GetAuthenticated())})
			}
			return a.printTable([]string{"PORT", "PROTOCOL", "URL", "TOKEN"}, rows)
		},
	})
	return cmd
}

func protocolName(p siroccov1.Protocol) string {
	return strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(p.String(), "PROTOCOL_"), "_", "-"))
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
