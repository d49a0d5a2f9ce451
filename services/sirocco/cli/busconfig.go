package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/sirocco-run/sirocco/pkg/busauth"
	"github.com/sirocco-run/sirocco/pkg/pki"
	"github.com/sirocco-run/sirocco/pkg/program"
	"github.com/sirocco-run/sirocco/services/sirocco/up"
	"github.com/spf13/cobra"
)

// busConfigCommand prints what NATS servers of one's own need. It speaks to
// nobody: a fleet has keys before it has a bus.
func (a *app) busConfigCommand(b *busFlags) *cobra.Command {
	var keys, folder string
	cmd := &cobra.Command{
		Use: "bus-config", Short: "Print the nats-server configuration for a fleet's own bus, making all keys on first use", Args: checked(cobra.NoArgs),
		Long: "bus-config prints the part of a nats-server configuration that Sirocco needs: accounts,\n" +
			"passwords, and the api as the one who knows API keys. It comes from a key folder, and is\n" +
			"the same each time; a folder that is not there, or lacks some keys, gets all that a fleet\n" +
			"needs. What it prints holds passwords: keep it as secret as the folder.\n" +
			"With --write it prints nothing: sirocco-bus.conf and bus-password, for the servers and\n" +
			"for the services (--nats-password-file), are written into a folder.",
		Example: "  sirocco key bus-config --keys ./keys > sirocco-bus.conf\n  # in nats-server.conf: include ./sirocco-bus.conf",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := program.FromEnv(cmd.Flags(), a.Getenv); err != nil {
				return usageError{cmd.CommandPath(), err}
			}
			dir := keys
			if dir == "" {
				dir = filepath.Join(b.data, "keys")
			}
			secrets, err := makeKeys(dir)
			if errors.Is(err, fs.ErrPermission) {
				return failed("run it as the owner of the folder (root, for one of `sirocco up`), or name another with --keys.", "%w", err)
			}
			if err != nil {
				return err
			}
			text, err := secrets.ServerConfig()
			if err != nil {
				return err
			}
			if folder != "" {
				return errors.Join(
					up.WriteSecret(filepath.Join(folder, "sirocco-bus.conf"), text),
					up.WriteSecret(filepath.Join(folder, "bus-password"), secrets.ServicePassword+"\n"),
				)
			}
			if a.json {
				return a.printJSON(map[string]string{"config": text, "user": busauth.UserService, "password": secrets.ServicePassword})
			}
			fmt.Fprint(a.Out, text)
			return nil
		},
	}
	cmd.Flags().StringVar(&keys, "keys", "", "key `folder`, made on first use (default: keys in --data)")
	cmd.Flags().StringVar(&folder, "write", "", "existing `folder` to write to, instead of printing")
	program.Document(cmd.Flags())
	return cmd
}

// makeKeys makes each key of a fleet that the folder does not have yet, and
// returns those of the bus.
func makeKeys(dir string) (busauth.Secrets, error) {
	folder, err := pki.Open(dir)
	if err != nil {
		return busauth.Secrets{}, err
	}
	for _, ensure := range []func() error{
		func() error { _, err := folder.ServerTLS(); return err },
		func() error { _, err := folder.PublicTLS([]string{"localhost"}, nil); return err },
		func() error { _, err := folder.TokenKey(); return err },
		func() error { _, err := folder.TokenPublic(); return err },
	} {
		if err := ensure(); err != nil {
			return busauth.Secrets{}, fmt.Errorf("make the keys of a fleet: %w", err)
		}
	}
	return busauth.Load(dir)
}
