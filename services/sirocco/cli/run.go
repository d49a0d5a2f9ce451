package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	sirocco "github.com/sirocco-run/sirocco/sdk/go"
	"github.com/spf13/cobra"
)

func (a *app) runCommand() *cobra.Command {
	var create createFlags
	var detach, keep, interactive, tty bool
	cmd := &cobra.Command{
		Use:   "run [flags] [--] COMMAND...",
		Short: "Create a sandbox and run a command in it",
		Long: "run creates a sandbox, runs a command in it with this terminal's input and output,\n" +
			"ends the sandbox and exits as the command did. With --detach the command is the\n" +
			"sandbox's own: the id and the addresses are printed, and it lives until its command\n" +
			"ends or its time is up. Without a command (and with --detach) it waits for execs.",
		Example: "  sirocco run -- sh -c 'echo hello from $(uname -n)'\n" +
			"  sirocco run -it -- sh\n" +
			"  sirocco run --image host --detach --port 8000 -- python3 -m http.server 8000",
		RunE: func(cmd *cobra.Command, args []string) error {
			a.passes = true
			req, err := create.request(a.Getenv, time.Now())
			if err != nil {
				return usageError{cmd.CommandPath(), err}
			}
			if detach {
				if interactive || tty || keep {
					return usageError{cmd.CommandPath(), errors.New("--detach goes with none of -i, -t and --keep")}
				}
				req.Command = args
				return a.runDetached(cmd.Context(), req)
			}
			if len(args) == 0 {
				return usageError{cmd.CommandPath(), errors.New("name a command, or let the sandbox wait for execs with --detach")}
			}
			return a.runAttached(cmd.Context(), req, args, keep, interactive, tty)
		},
	}
	cmd.Flags().SetInterspersed(false)
	create.add(cmd.Flags())
	cmd.Flags().BoolVarP(&detach, "detach", "d", false, "print the id and leave the sandbox running")
	cmd.Flags().BoolVar(&keep, "keep", false, "leave the sandbox running when the command has ended")
	cmd.Flags().BoolVarP(&interactive, "interactive", "i", false, "pass standard input on")
	cmd.Flags().BoolVarP(&tty, "tty", "t", false, "give the command a terminal")
	return cmd
}

// create makes the sandbox; one that has failed is an error.
func (a *app) create(ctx context.Context, req *siroccov1.CreateSandboxRequest) (*sirocco.Sandbox, error) {
	client, err := a.connect()
	if err != nil {
		return nil, err
	}
	s, err := client.Create(ctx, req)
	if err != nil {
		return nil, err
	}
	if s.Record.GetState() == siroccov1.State_STATE_FAILED {
		return nil, endError(s.Record)
	}
	return s, nil
}

func (a *app) runDetached(ctx context.Context, req *siroccov1.CreateSandboxRequest) error {
	s, err := a.create(ctx, req)
	if err != nil {
		return err
	}
	if a.json {
		return a.printMessage(s.Record)
	}
	fmt.Fprintln(a.Out, s.ID)
	for _, t := range s.Record.GetTunnels() {
		fmt.Fprintln(a.Out, t.GetUrl())
	}
	return nil
}

func (a *app) runAttached(ctx context.Context, req *siroccov1.CreateSandboxRequest, command []string, keep, interactive, tty bool) error {
	s, err := a.create(ctx, req)
	if err != nil {
		return err
	}
	if !keep {
		defer a.end(ctx, s)
	} else {
		fmt.Fprintln(a.Err, s.ID)
	}
	for _, t := range s.Record.GetTunnels() {
		fmt.Fprintln(a.Err, t.GetUrl())
	}
	// The command is an exec and not the sandbox's own, so that the sandbox is
	// there until all output has been read.
	return session{app: a, sandbox: s, tty: tty, stdin: interactive}.run(ctx, sirocco.Command{ID: "run", Args: command})
}

// end ends a sandbox that nobody needs any more, after a Ctrl-C too.
func (a *app) end(ctx context.Context, s *sirocco.Sandbox) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	_, err := s.TerminateWith(ctx, &siroccov1.TerminateSandboxRequest{Reason: "its run has ended", NoWait: true})
	if err != nil && sirocco.CodeOf(err) != sirocco.NotFound {
		fmt.Fprintf(a.Err, "sirocco: the sandbox %s could not be ended (%v); it ends with its lifetime, or by `sirocco rm`\n", s.ID, err)
	}
}
