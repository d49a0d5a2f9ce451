package cli

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/apikey"
	"github.com/sirocco-run/sirocco/pkg/program"
	"github.com/sirocco-run/sirocco/services/sirocco/up"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// busTimeout bounds the commands that speak to the bus themselves.
const busTimeout = 5 * time.Second

// busFlags say how to reach the bus as a service. Keys have no other door: who
// may make them is who holds the services' password.
type busFlags struct {
	settings program.Settings
	data     string
}

func (b *busFlags) add(fs *pflag.FlagSet) {
	fs.StringVar(&b.data, "data", up.DefaultData, "`folder` of the state, as given to up: where the bus is, and its password")
	b.settings.BusFlags(fs)
	program.Document(fs)
}

// keys opens the store of API keys.
func (a *app) keys(cmd *cobra.Command, b *busFlags) (*apikey.Store, context.Context, func(), error) {
	if err := program.FromEnv(cmd.Flags(), a.Getenv); err != nil {
		return nil, nil, nil, usageError{cmd.CommandPath(), err}
	}
	s := &b.settings
	if s.NATSUser == "" && s.NATSPassword == "" && s.NATSPassFile == "" {
		named := cmd.Flags().Changed("nats-url")
		access, err := up.BusAccess(b.data)
		switch {
		case err == nil:
			s.NATSUser, s.NATSPassword = access.User, access.Password
			if !named {
				s.NATSURL = access.URL
			}
		case !named:
			return nil, nil, nil, failed("keys are made over the bus, with the services' password: name the folder that up was given with --data, as its owner (root), or another bus with --nats-url, --nats-user and --nats-password-file.", "%w", err)
		}
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), busTimeout)
	nc, err := s.Connect(ctx, "cli", slog.New(slog.DiscardHandler))
	if err != nil {
		cancel()
		return nil, nil, nil, failed("is `sirocco up` running, and may you read "+b.data+"? Keys are made over the bus, as a service: see --data, --nats-url, --nats-user and --nats-password-file.", "%w", err)
	}
	done := func() {
		nc.Close()
		cancel()
	}
	js, err := jetstream.New(nc)
	if err != nil {
		done()
		return nil, nil, nil, err
	}
	store, err := apikey.Open(ctx, js)
	if err != nil {
		done()
		return nil, nil, nil, failed("has an api ever run on this bus?", "%w", err)
	}
	return store, ctx, done, nil
}

func (a *app) keyCommand() *cobra.Command {
	cmd := group("key", "Make, list and revoke API keys (on the machine of the bus)")
	cmd.Long = "key speaks to the bus itself, with the services' password, which `sirocco up` keeps in\n" + up.DefaultData + "/keys."
	var flags busFlags
	flags.add(cmd.PersistentFlags())
	var tenant, note string
	var operator bool
	create := &cobra.Command{
		Use: "create", Short: "Make a key and print it, this once", Args: checked(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			store, ctx, done, err := a.keys(cmd, &flags)
			if err != nil {
				return err
			}
			defer done()
			role := apikey.RoleTenant
			if operator {
				role = apikey.RoleOperator
			}
			secret, key, err := store.Create(ctx, tenant, role, note)
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(map[string]any{"secret": secret, "id": key.ID, "tenant": key.Tenant, "role": key.Role, "note": key.Note})
			}
			fmt.Fprintln(a.Out, secret)
			return nil
		},
	}
	create.Flags().StringVar(&tenant, "tenant", up.Tenant, "`tenant` whose sandboxes it opens")
	create.Flags().BoolVar(&operator, "operator", false, "it also opens nodes, warm pools and images")
	create.Flags().StringVar(&note, "note", "", "`text` that lists show")
	var of string
	list := &cobra.Command{
		Use: "ls", Short: "List keys; the keys themselves are not stored", Args: checked(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			store, ctx, done, err := a.keys(cmd, &flags)
			if err != nil {
				return err
			}
			defer done()
			keys, err := store.List(ctx, of)
			if err != nil {
				return err
			}
			if a.json {
				return a.printKeys(keys)
			}
			var rows [][]string
			for _, k := range keys {
				rows = append(rows, []string{k.ID, k.Tenant, string(k.Role), age(time.Since(k.Created)), dash(k.Note)})
			}
			return a.printTable([]string{"ID", "TENANT", "ROLE", "AGE", "NOTE"}, rows)
		},
	}
	list.Flags().StringVar(&of, "tenant", "", "only those of this `tenant`")
	cmd.AddCommand(create, list, a.busConfigCommand(&flags), &cobra.Command{
		Use: "revoke ID", Short: "End a key for good", Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			store, ctx, done, err := a.keys(cmd, &flags)
			if err != nil {
				return err
			}
			defer done()
			return store.Revoke(ctx, args[0])
		},
	})
	return cmd
}

// printKeys prints keys with their ids, which their own encoding leaves out.
func (a *app) printKeys(keys []apikey.Key) error {
	type row struct {
		ID string `json:"id"`
		apikey.Key
	}
	rows := make([]row, 0, len(keys))
	for _, k := range keys {
		rows = append(rows, row{k.ID, k})
	}
	return a.printJSON(rows)
}
