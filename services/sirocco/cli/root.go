// Package cli is the command line of Sirocco.
//
// Exit codes: 0 for success; 1 for what goes wrong here (a file, this machine),
// and for a check or a measurement that did not pass; 130 for a Ctrl-C; 2 to 13
// for the platform's errors (package fault, docs/errors.md; wrong flags are 2).
// The commands that pass on how a program ended (run, exec, attach) add 100 to
// all of these, so that 101 to 113 are the platform's and everything else the
// program's, but for those that say why there is none: 127 (no such command) and
// 126 (it may not be executed, or no such user or folder), and what became of it:
// 124 (out of time) and 137 (killed). A program that itself exits with such a
// number can be told apart by the last line on standard error, which begins with
// "sirocco: " only for the platform's errors.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"connectrpc.com/connect"
	"github.com/sirocco-run/sirocco/pkg/program"
	"github.com/sirocco-run/sirocco/pkg/runtime/gvisor/pin"
	sirocco "github.com/sirocco-run/sirocco/sdk/go"
	"github.com/spf13/cobra"
)

// Shell is where a command line runs.
type Shell struct {
	In       io.Reader
	Out, Err io.Writer
	Getenv   func(string) string
	// Home is the user's home folder.
	Home string
}

// Environment variables of every command.
const (
	EnvAPI    = "SIROCCO_API"
	EnvAPIKey = "SIROCCO_API_KEY"
	EnvCA     = "SIROCCO_CA"
)

// app is one run of the command line.
type app struct {
	Shell
	api, apiKey, ca string
	json            bool
	client          *sirocco.Client
	// apiURL is where client speaks to, for messages; caFile whom it trusts.
	apiURL, caFile string
	// options are added to those of client.
	options []connect.ClientOption
	// passes is true for a command that passes on a program's exit code.
	passes bool
}

// Main runs one command line and returns its exit code.
func Main(ctx context.Context, sh Shell, args []string) int {
	a := &app{Shell: sh}
	cmd := a.root()
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(ctx)
	if a.client != nil {
		a.client.Close()
	}
	return a.finish(ctx, err)
}

func (a *app) root() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "sirocco",
		Short: "Run untrusted code in isolated sandboxes",
		Long: "sirocco runs sandboxes: `sirocco up` starts the whole platform on this machine,\n" +
			"the other commands use it, here or elsewhere.\n\n" +
			"Exit codes: 0 success, 1 errors of this machine, 2-13 errors of the platform (docs/errors.md). run, exec and\n" +
			"attach pass on the program's exit code, and add 100 to all others, but for four that shells have too: 124 out\n" +
			"of time, 126 the command may not be executed (or no such user or folder), 127 no such command, 137 killed.",
		SilenceErrors: true, SilenceUsage: true, Version: program.Version,
		Args: checked(noCommand),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.SetIn(a.In)
	cmd.SetOut(a.Out)
	cmd.SetErr(a.Err)
	cmd.SetVersionTemplate("sirocco {{.Version}}\n")
	cmd.SetFlagErrorFunc(func(c *cobra.Command, err error) error { return usageError{c.CommandPath(), err} })
	flags := cmd.PersistentFlags()
	flags.StringVar(&a.api, "api", "", "`URL` of the api ["+EnvAPI+"] (default: the CLI's config, else "+sirocco.DefaultAPI+")")
	flags.StringVar(&a.apiKey, "api-key", "", "API `key` ["+EnvAPIKey+"] (default: the CLI's config)")
	flags.StringVar(&a.ca, "ca", "", "PEM `file` of the relay's authority ["+EnvCA+"] (default: the CLI's config)")
	flags.BoolVar(&a.json, "json", false, "print JSON, errors too")
	cmd.AddGroup(
		&cobra.Group{ID: groupSandbox, Title: "Sandboxes:"},
		&cobra.Group{ID: groupPlatform, Title: "The platform:"},
	)
	add(cmd, groupSandbox, a.runCommand(), a.execCommand(), a.attachCommand(), a.lsCommand(), a.getCommand(), a.logsCommand(),
		a.eventsCommand(), a.rmCommand(), a.extendCommand(), a.migrateCommand(), a.tagCommand(), a.cpCommand(), a.psCommand(), a.tokenCommand(), a.tunnelCommand())
	add(cmd, groupPlatform, a.upCommand(), a.downCommand(), a.doctorCommand(), a.benchCommand(), a.nodeCommand(), a.regionCommand(), a.faultCommand(), a.poolCommand(), a.quotaCommand(), a.imageCommand(), a.keyCommand(), a.versionCommand())
	return cmd
}

const (
	groupSandbox  = "sandbox"
	groupPlatform = "platform"
)

func add(root *cobra.Command, group string, cmds ...*cobra.Command) {
	for _, c := range cmds {
		c.GroupID = group
		root.AddCommand(c)
	}
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: checked(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			if a.json {
				return a.printJSON(map[string]string{"version": program.Version, "gvisor": pin.Version})
			}
			fmt.Fprintf(a.Out, "sirocco %s\ngVisor  %s\n", program.Version, pin.Version)
			return nil
		},
	}
}

// connect makes the client from flags, environment and config file, in that
// order.
func (a *app) connect() (*sirocco.Client, error) {
	if a.client != nil {
		return a.client, nil
	}
	cfg, err := LoadConfig(ConfigPath(a.Home, a.Getenv))
	if err != nil {
		return nil, err
	}
	first := func(values ...string) string {
		for _, v := range values {
			if v != "" {
				return v
			}
		}
		return ""
	}
	a.apiURL = first(a.api, a.Getenv(EnvAPI), cfg.API, sirocco.DefaultAPI)
	a.caFile = first(a.ca, a.Getenv(EnvCA), cfg.CA)
	a.client, err = sirocco.New(sirocco.Config{
		API: strings.TrimRight(a.apiURL, "/"), Key: first(a.apiKey, a.Getenv(EnvAPIKey), cfg.Key),
		CAFile: a.caFile, Options: a.options,
	})
	return a.client, err
}

// open returns a handle on a sandbox; a name is looked up first.
func (a *app) open(ctx context.Context, id string) (*sirocco.Sandbox, error) {
	client, err := a.connect()
	if err != nil {
		return nil, err
	}
	if isID(id) {
		return client.Sandbox(id), nil
	}
	return client.Open(ctx, id)
}

// exactArgs is cobra.ExactArgs with the usage in the error.
func exactArgs(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != n {
			return usageError{cmd.CommandPath(), fmt.Errorf("want %s", cmd.UseLine())}
		}
		return nil
	}
}

// minArgs is cobra.MinimumNArgs with the usage in the error.
func minArgs(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < n {
			return usageError{cmd.CommandPath(), fmt.Errorf("want %s", cmd.UseLine())}
		}
		return nil
	}
}

// checked makes the errors of a check those of a command line.
func checked(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return usageError{cmd.CommandPath(), err}
		}
		return nil
	}
}

// noCommand refuses what is no command of one that only holds others, and names those that
// may be meant.
func noCommand(cmd *cobra.Command, args []string) error {
	err := cobra.NoArgs(cmd, args)
	if err == nil {
		return nil
	}
	cmd.SuggestionsMinimumDistance = 2
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		return fmt.Errorf("%w: did you mean %s?", err, strings.Join(near, " or "))
	}
	return err
}

// group is a command that only holds others.
func group(use, short string) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Args: checked(noCommand),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
}

// errSilent ends with exit code 1 and has said everything already.
var errSilent = errors.New("failed")
