package cli

import (
	"context"
	"fmt"
	"sync"
	"time"

	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	sirocco "github.com/sirocco-run/sirocco/sdk/go"
)

// Exit codes that tell what happened to a process or its sandbox, as those of
// shells and of timeout(1) do.
const (
	exitTimeout = 124
	// exitNoStart is for a command that may not be executed, and for a user or
	// folder that is not there; exitNoCommand for a command that is not.
	exitNoStart   = 126
	exitNoCommand = 127
	exitKilled    = 137
)

// interruptGrace is how long a process may take to end after a Ctrl-C.
const interruptGrace = 10 * time.Second

// session connects the user with one process.
type session struct {
	app     *app
	sandbox *sirocco.Sandbox
	tty     bool
	stdin   bool
}

// run starts the command, and returns an exitError unless it ended with 0. A
// Ctrl-C goes to the process (through the terminal, if it has one); the process
// has a while to end.
func (s session) run(ctx context.Context, cmd sirocco.Command) error {
	cmd.Stdout, cmd.Stderr = s.app.Out, s.app.Err
	if s.stdin {
		cmd.Stdin = s.app.In
	}
	term, real := terminalOf(s.app.In)
	if s.tty {
		cmd.TTY = defaultSize()
		if real {
			cmd.TTY = term.size()
		}
		if name := s.app.Getenv("TERM"); name != "" && cmd.Env["TERM"] == "" {
			if cmd.Env == nil {
				cmd.Env = map[string]string{}
			}
			cmd.Env["TERM"] = name
		}
	}
	p, err := s.sandbox.Start(ctx, cmd)
	if err != nil {
		return startError(s.explain(ctx, err))
	}
	// The process outlives the first Ctrl-C.
	wctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { interrupt(ctx, wctx, p, cancel) })
	if s.tty && s.stdin && real {
		restore, err := term.raw()
		if err != nil {
			return fmt.Errorf("switch the terminal to raw mode: %w", err)
		}
		defer restore()
		wg.Go(func() { term.watch(wctx, func(size *siroccov1.TerminalSize) { _ = p.Resize(wctx, size) }) })
	}
	if cmd.Stdin != nil {
		// Not waited for: a read from a terminal can't be called back.
		go func() { _ = p.Input(wctx, cmd.Stdin) }()
	}
	return s.follow(wctx, p, 0, 0)
}

// follow copies output until the process ends.
func (s session) follow(ctx context.Context, p *sirocco.Process, stdout, stderr int64) error {
	end, err := p.AttachFrom(ctx, s.app.Out, s.app.Err, stdout, stderr)
	if err != nil {
		return s.explain(ctx, err)
	}
	if end.GetLostBytes() > 0 {
		fmt.Fprintf(s.app.Err, "sirocco: %d bytes of output are lost, because the sandbox's disk was full\n", end.GetLostBytes())
	}
	if end.GetExitCode() == 0 {
		return nil
	}
	if end.GetExitCode() == exitKilled {
		// Killed by whom? The record may know, in a moment: a process that took
		// its sandbox with it is seen first.
		if end := s.endSoon(ctx); end != nil {
			fmt.Fprintf(s.app.Err, "sirocco: the sandbox ended: %s\n", endText(end))
		}
	}
	return exitError{int(end.GetExitCode())}
}

// interrupt passes a Ctrl-C on, and gives up on a process that does not end.
func interrupt(user, wctx context.Context, p *sirocco.Process, giveUp func()) {
	select {
	case <-wctx.Done():
		return
	case <-user.Done():
	}
	_ = p.Signal(wctx, "INT")
	timer := time.NewTimer(interruptGrace)
	defer timer.Stop()
	select {
	case <-timer.C:
		giveUp()
	case <-wctx.Done():
	}
}

// explain turns an error into what happened to the sandbox, if it has ended.
func (s session) explain(ctx context.Context, err error) error {
	sb := s.record(ctx)
	switch {
	case sb.GetEnd() == nil:
		return err
	case sb.GetEnd().GetCause() == siroccov1.Cause_CAUSE_EXITED:
		// The exit code is another process's, not that of the one asked for.
		return &sirocco.Error{Code: sirocco.FailedPrecondition, Message: "the sandbox ended: " + endText(sb.GetEnd())}
	}
	return endError(sb)
}

// record reads the record, or nil when that is not quick.
func (s session) record(ctx context.Context) *siroccov1.Sandbox {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	sb, err := s.app.client.Get(ctx, s.sandbox.ID)
	if err != nil {
		return nil
	}
	return sb
}

// endSoon returns how the sandbox ended, if it does within a second.
func (s session) endSoon(ctx context.Context) *siroccov1.End {
	const patience, step = time.Second, 100 * time.Millisecond
	tick := time.NewTicker(step)
	defer tick.Stop()
	for began := time.Now(); time.Since(began) < patience; <-tick.C {
		if end := s.record(ctx).GetEnd(); end != nil {
			return end
		}
		if ctx.Err() != nil {
			return nil
		}
	}
	return nil
}

// endCodes are the platform's errors that causes stand for.
var endCodes = map[siroccov1.Cause]sirocco.Code{
	siroccov1.Cause_CAUSE_IMAGE_ERROR:  sirocco.ImageNotFound,
	siroccov1.Cause_CAUSE_NO_CAPACITY:  sirocco.NoCapacity,
	siroccov1.Cause_CAUSE_QUOTA:        sirocco.Quota,
	siroccov1.Cause_CAUSE_DEADLINE:     sirocco.Deadline,
	siroccov1.Cause_CAUSE_PROBE_FAILED: sirocco.FailedPrecondition,
	siroccov1.Cause_CAUSE_START_ERROR:  sirocco.FailedPrecondition,
	siroccov1.Cause_CAUSE_EVICTED:      sirocco.Unavailable,
	siroccov1.Cause_CAUSE_NODE_LOST:    sirocco.Unavailable,
	siroccov1.Cause_CAUSE_INTERNAL:     sirocco.Internal,
}

// ended is an exit code with a reason, for a sandbox that ended by itself.
type ended struct {
	exitError
	text string
}

func (e ended) Unwrap() error { return e.exitError }

// endError is the end of a sandbox as an error: nil if its command ended well.
func endError(sb *siroccov1.Sandbox) error {
	end := sb.GetEnd()
	if end == nil {
		return nil
	}
	text := "the sandbox ended: " + endText(end)
	code := 0
	switch end.GetCause() {
	case siroccov1.Cause_CAUSE_EXITED:
		if end.GetExitCode() == 0 {
			return nil
		}
		return exitError{int(end.GetExitCode())}
	case siroccov1.Cause_CAUSE_MAX_LIFETIME, siroccov1.Cause_CAUSE_IDLE:
		code = exitTimeout
	case siroccov1.Cause_CAUSE_OOM, siroccov1.Cause_CAUSE_USER:
		code = exitKilled
	case siroccov1.Cause_CAUSE_START_ERROR:
		code = int(end.GetExitCode())
	}
	if code != 0 {
		return ended{exitError{code}, text}
	}
	e := &sirocco.Error{Code: sirocco.Internal, Message: text, ErrorID: end.GetErrorId()}
	if known, ok := endCodes[end.GetCause()]; ok {
		e.Code = known
	}
	return e
}

// endText is an end in a few words.
func endText(end *siroccov1.End) string {
	text := causeName(end.GetCause())
	if end.ExitCode != nil {
		text += fmt.Sprintf(" (exit code %d)", end.GetExitCode())
	}
	if end.GetSignal() != "" {
		text += " (" + end.GetSignal() + ")"
	}
	if end.GetMessage() != "" {
		text += ": " + end.GetMessage()
	}
	if end.GetLimit() != "" {
		text += " [limit " + end.GetLimit() + "]"
	}
	return text
}
