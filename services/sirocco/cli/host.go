package cli

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"

	"github.com/sirocco-run/sirocco/pkg/doctor"
	"github.com/sirocco-run/sirocco/pkg/program"
	"github.com/sirocco-run/sirocco/pkg/runtime/gvisor/pin"
	"github.com/sirocco-run/sirocco/services/sirocco/up"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func (a *app) doctorCommand() *cobra.Command {
	var cfg up.Config
	cmd := &cobra.Command{
		Use: "doctor", Short: "Say whether this machine can run sandboxes, and what to do if not", Args: checked(cobra.NoArgs),
		Long: "doctor looks at everything that `sirocco up` needs and says OK, WARN or FAIL, and what to\ndo. It exits with 1 if anything fails. Give it the flags that you give to up.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := program.FromEnv(cmd.Flags(), a.Getenv); err != nil {
				return usageError{cmd.CommandPath(), err}
			}
			want, err := cfg.Want(pin.Version)
			if err != nil {
				return usageError{cmd.CommandPath(), err}
			}
			return a.diagnose(doctor.Here(), want)
		},
	}
	cfg.Flags(cmd.Flags())
	program.Document(cmd.Flags())
	return cmd
}

func (a *app) diagnose(h doctor.Host, want doctor.Want) error {
	findings := doctor.Run(h, want)
	if a.json {
		if err := a.printJSON(findings); err != nil {
			return err
		}
	} else {
		for _, f := range findings {
			fmt.Fprintf(a.Out, "%-4s  %-14s  %s\n", f.Status, f.Check, f.Text)
			if f.Fix != "" {
				fmt.Fprintf(a.Out, "%22s-> %s\n", "", f.Fix)
			}
		}
	}
	if doctor.Worst(findings) == doctor.Fail {
		return errSilent
	}
	return nil
}

func (a *app) upCommand() *cobra.Command {
	var cfg up.Config
	cmd := &cobra.Command{
		Use: "up", Short: "Run the whole platform on this machine", Args: checked(cobra.NoArgs),
		Long: "up runs the bus and all five services in this one process, with the same code as each\n" +
			"alone. Ctrl-C ends the services; the sandboxes go on, and the next up finds them again.\n" +
			"`sirocco down`, or up --stop-sandboxes, ends them too.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := program.FromEnv(cmd.Flags(), a.Getenv); err != nil {
				return usageError{cmd.CommandPath(), err}
			}
			if len(cfg.Regions) > 0 {
				return a.upRegions(cmd, cfg)
			}
			want, err := cfg.Want(pin.Version)
			if err != nil {
				return usageError{cmd.CommandPath(), err}
			}
			want.Alone = true
			cfg.Check = func() error {
				if bad := doctor.Failures(doctor.Run(doctor.Here(), want)); len(bad) > 0 {
					return failed("`sirocco doctor` checks everything.", "%s", bad[0].Sentence())
				}
				return nil
			}
			cfg.Ready = func(r up.Ready) error {
				if cfg.MachineShare > 1 { // one region of several, for which another process speaks
					return a.printJSON(r)
				}
				path, err := a.remember(r)
				if err == nil {
					a.banner(r, path)
				}
				return err
			}
			platform, err := up.New(cfg, a.Err)
			if err != nil {
				return err
			}
			return platform.Run(cmd.Context())
		},
	}
	cfg.Flags(cmd.Flags())
	program.Document(cmd.Flags())
	return cmd
}

// remember sets the command line up for a platform, and says in which file.
func (a *app) remember(r up.Ready) (path string, err error) {
	path = ConfigPath(a.Home, a.Getenv)
	mine := Config{API: r.API, Key: r.Key, CA: r.CA}
	if err := mine.Save(path); err != nil {
		return "", err
	}
	if err := mine.saveForSudo(a.Getenv); err != nil {
		fmt.Fprintln(a.Err, "sirocco: the command line is set up for root only:", err)
	}
	return path, nil
}

// regional are the flags of up that each region is given with a value of its own, or
// not at all.
var regional = []string{"regions", "region", "data", "keys", "peers", "node-name", "machine-share", "listen", "nats-port", "node-port", "tunnel-port", "domain", "tcp-ports", "metrics-listen"}

// upRegions runs a platform of several regions.
func (a *app) upRegions(cmd *cobra.Command, cfg up.Config) error {
	var args []string
	cmd.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
		if !f.Changed || slices.Contains(regional, f.Name) {
			return
		}
		values := []string{f.Value.String()}
		if list, ok := f.Value.(pflag.SliceValue); ok {
			values = list.GetSlice()
		}
		for _, v := range values {
			args = append(args, "--"+f.Name+"="+v)
		}
	})
	program, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	cfg.ReadyRegions = func(all []up.Ready) error {
		path, err := a.remember(all[0])
		if err == nil {
			a.bannerOfRegions(all, path)
		}
		return err
	}
	regions, err := up.NewRegions(cfg, program, args, a.Err)
	if err != nil {
		return usageError{cmd.CommandPath(), err}
	}
	return regions.Run(cmd.Context())
}

// bannerOfRegions says where everything of several regions is.
func (a *app) bannerOfRegions(all []up.Ready, config string) {
	if a.json {
		_ = a.printJSON(all)
		return
	}
	for _, r := range all {
		fmt.Fprintf(a.Out, "\n  %-8s %-8s %-36s %-4s %s\n", r.Region, "api", r.API, "bus", r.Bus)
		fmt.Fprintf(a.Out, "  %-8s %-8s %-36s %-4s %s\n", "", "tunnels", r.Tunnels, "key", r.Key)
	}
	fmt.Fprintf(a.Out, "\n  The command line is set up for %s in %s.\n", all[0].Region, config)
	fmt.Fprintf(a.Out, "  Try:    sirocco region ls\n")
	fmt.Fprintf(a.Out, "  Ctrl-C ends the services; sandboxes go on and are found again (`sirocco down` ends them).\n\n")
}

// banner says where everything is.
func (a *app) banner(r up.Ready, config string) {
	if a.json {
		_ = a.printJSON(r)
		return
	}
	fmt.Fprintf(a.Out, "\n  %-8s %-36s %-4s %s\n", "api", r.API, "bus", r.Bus)
	fmt.Fprintf(a.Out, "  %-8s %-36s %-4s %s\n", "tunnels", r.Tunnels, "key", r.Key)
	fmt.Fprintf(a.Out, "  %-8s %-36s\n\n", "ca", r.CA)
	fmt.Fprintf(a.Out, "  %d node(s) ready, %d sandbox(es) found again. The command line is set up in %s.\n", r.Nodes, r.Adopted, config)
	fmt.Fprintf(a.Out, "  Try:    sirocco run -- sh -c 'echo hello from $(uname -n)'\n")
	fmt.Fprintf(a.Out, "  Ctrl-C ends the services; sandboxes go on and are found again (`sirocco down` ends them).\n\n")
}

func (a *app) downCommand() *cobra.Command {
	var flags busFlags
	var fleet bool
	cmd := &cobra.Command{
		Use: "down", Short: "End every sandbox, and the `sirocco up` of this machine", Args: checked(cobra.NoArgs),
		Long: "down ends every sandbox of every tenant and then the `sirocco up` of this machine. With\n" +
			"--fleet it ends the sandboxes of the region whose bus the other flags name, and leaves the\n" +
			"services, which whoever started them stops.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := program.FromEnv(cmd.Flags(), a.Getenv); err != nil {
				return usageError{cmd.CommandPath(), err}
			}
			end := func() (string, error) { return up.Down(cmd.Context(), flags.data) }
			if fleet {
				end = func() (string, error) { return endFleet(cmd.Context(), &flags) }
			}
			said, err := end()
			if err != nil {
				return err
			}
			fmt.Fprintln(a.Out, said)
			return nil
		},
	}
	cmd.Flags().BoolVar(&fleet, "fleet", false, "only end every sandbox, over the bus of --nats-url")
	flags.add(cmd.Flags())
	return cmd
}

// endFleet ends every sandbox of a region.
func endFleet(ctx context.Context, b *busFlags) (string, error) {
	cctx, cancel := context.WithTimeout(ctx, busTimeout)
	defer cancel()
	nc, err := b.settings.Connect(cctx, "cli", slog.New(slog.DiscardHandler))
	if err != nil {
		return "", failed("name the bus with --nats-url, --nats-user and --nats-password-file.", "%w", err)
	}
	defer nc.Close()
	count, err := up.StopSandboxes(ctx, nc)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d sandboxes ended", count), nil
}
