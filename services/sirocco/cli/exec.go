package cli

import (
	"fmt"
	"io"
	"strings"
	"time"

	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	sirocco "github.com/sirocco-run/sirocco/sdk/go"
	"github.com/spf13/cobra"
)

func (a *app) execCommand() *cobra.Command {
	var env []string
	var command sirocco.Command
	var interactive, tty, detach bool
	cmd := &cobra.Command{
		Use:     "exec [flags] SANDBOX [--] COMMAND...",
		Short:   "Run a command in a sandbox",
		Long:    "exec runs a command in a sandbox and exits as the command did. When the connection\nbreaks, output goes on at the byte where it stopped; `sirocco attach` comes back later.",
		Example: "  sirocco exec -it sb-… -- sh\n  echo data | sirocco exec -i sb-… -- wc -c",
		Args:    minArgs(2),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			a.passes = true
			if command.Env, err = parsePairs("env", env, a.Getenv); err != nil {
				return usageError{cmd.CommandPath(), err}
			}
			s, err := a.open(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			command.Args = args[1:]
			if command.Args[0] == "--" {
				command.Args = command.Args[1:]
			}
			if !detach {
				return session{app: a, sandbox: s, tty: tty, stdin: interactive}.run(cmd.Context(), command)
			}
			if tty {
				command.TTY = defaultSize()
			}
			p, err := s.Start(cmd.Context(), command)
			if err != nil {
				return startError(err)
			}
			fmt.Fprintln(a.Out, p.ID)
			return nil
		},
	}
	fs := cmd.Flags()
	fs.SetInterspersed(false)
	fs.StringArrayVarP(&env, "env", "e", nil, "`NAME=value`, or NAME to take it from here; may be repeated")
	fs.StringVarP(&command.Workdir, "workdir", "w", "", "`folder` to start in")
	fs.StringVarP(&command.User, "user", "u", "", "`user`: name, uid or uid:gid")
	fs.DurationVar(&command.Timeout, "timeout", 0, "end the command after so long, with exit code 124")
	fs.StringVar(&command.ID, "id", "", "`id` of the exec: starting the same again finds the process that exists")
	fs.BoolVarP(&interactive, "interactive", "i", false, "pass standard input on")
	fs.BoolVarP(&tty, "tty", "t", false, "give the command a terminal")
	fs.BoolVarP(&detach, "detach", "d", false, "print the exec's id and leave it running")
	return cmd
}

func (a *app) attachCommand() *cobra.Command {
	var stdout, stderr int64
	cmd := &cobra.Command{
		Use:   "attach [flags] SANDBOX [EXEC]",
		Short: "Follow the output of an exec, from its first byte, and exit as it did",
		Long:  "attach follows an exec that runs or has ended (`sirocco ps`); without EXEC, the sandbox's\nown command. Ctrl-C leaves; the process goes on.",
		Args:  checked(cobra.RangeArgs(1, 2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			a.passes = true
			s, err := a.open(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			id := sirocco.MainProcess
			if len(args) == 2 {
				id = args[1]
			}
			return session{app: a, sandbox: s}.follow(cmd.Context(), s.Process(id), stdout, stderr)
		},
	}
	cmd.Flags().Int64Var(&stdout, "stdout-offset", 0, "first `byte` of standard output")
	cmd.Flags().Int64Var(&stderr, "stderr-offset", 0, "first `byte` of standard error")
	return cmd
}

func (a *app) psCommand() *cobra.Command {
	return &cobra.Command{
		Use: "ps SANDBOX", Short: "List the execs of a sandbox", Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.open(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			execs, err := s.Processes(cmd.Context())
			if err != nil {
				return err
			}
			if a.json {
				return printMessages(a, execs)
			}
			var rows [][]string
			for _, e := range execs {
				rows = append(rows, []string{
					e.GetId(), fmt.Sprint(e.GetPid()), execState(e), age(time.Since(e.GetStartedAt().AsTime())),
					size(e.GetStdoutBytes() + e.GetStderrBytes()), strings.Join(e.GetCommand(), " "),
				})
			}
			return a.printTable([]string{"EXEC", "PID", "STATE", "AGE", "OUTPUT", "COMMAND"}, rows)
		},
	}
}

func execState(e *siroccov1.Exec) string {
	switch end := e.GetEnd(); {
	case end == nil:
		return "running"
	case end.GetTimedOut():
		return "timed out"
	case end.GetSignal() != "":
		return end.GetSignal()
	default:
		return fmt.Sprintf("exited %d", end.GetExitCode())
	}
}

func (a *app) logsCommand() *cobra.Command {
	var follow bool
	cmd := &cobra.Command{
		Use: "logs [-f] SANDBOX", Short: "Print what a sandbox's own command wrote", Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.open(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			logs, err := s.Logs(cmd.Context(), follow)
			if err != nil {
				return err
			}
			defer logs.Close()
			_, err = io.Copy(a.Out, logs)
			if cmd.Context().Err() != nil {
				return nil
			}
			return err
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the command ends")
	return cmd
}
