package sirocco

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"time"

	"connectrpc.com/connect"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/types/known/durationpb"
)

// MainProcess is the id of the sandbox's own command.
const MainProcess = "main"

// Command describes a process to run in a sandbox.
type Command struct {
	// ID, 1 to 64 of [A-Za-z0-9_-]; empty: one is made up. Starting the same
	// id again finds the process that exists.
	ID   string
	Args []string
	// Env is added to the sandbox's environment.
	Env     map[string]string
	Workdir string
	User    string
	// Timeout ends the process with exit code 124; zero means none.
	Timeout time.Duration
	// TTY gives it a terminal of that size; its stderr is then part of stdout.
	TTY *siroccov1.TerminalSize
	// Stdin is copied to the process; nil means that it has none.
	Stdin io.Reader
	// Stdout and Stderr take the output; nil drops it.
	Stdout, Stderr io.Writer
}

// Process is a process in a sandbox, running or ended.
type Process struct {
	ID string

	sandbox *Sandbox
	// stdin is how much of the input has been taken.
	stdin int64
}

// Run runs a command and returns how it ended. It starts it, copies its input
// and its output, and survives broken connections: output goes on at the byte
// where it stopped. When ctx ends, Run returns and the process goes on.
//
// A Read of Stdin that blocks when the process has ended is not waited for.
func (s *Sandbox) Run(ctx context.Context, cmd Command) (*siroccov1.ExecEnd, error) {
	if cmd.Stdin == nil {
		// One call starts it and brings its output; made again, it finds the process.
		req := s.startRequest(&cmd)
		return s.Process(cmd.ID).attach(ctx, cmd.Stdout, cmd.Stderr, &siroccov1.AttachExecRequest{Start: req})
	}
	p, err := s.Start(ctx, cmd)
	if err != nil {
		return nil, err
	}
	ictx, cancel := context.WithCancel(ctx)
	defer cancel()
	// What is left to write when the process has ended interests nobody.
	go func() { _ = p.Input(ictx, cmd.Stdin) }()
	return p.Attach(ctx, cmd.Stdout, cmd.Stderr)
}

// Start starts a process and returns at once. Errors: NotFound (no such
// sandbox), FailedPrecondition (it does not run), InvalidArgument.
func (s *Sandbox) Start(ctx context.Context, cmd Command) (*Process, error) {
	if err := s.data(ctx); err != nil {
		return nil, err
	}
	started, err := dataCall(ctx, s, s.exec.Start, s.startRequest(&cmd))
	if err != nil {
		return nil, err
	}
	return s.Process(started.GetId()), nil
}

// startRequest is what a command asks for. It gives the command an id if it has
// none.
func (s *Sandbox) startRequest(cmd *Command) *siroccov1.StartExecRequest {
	if cmd.ID == "" {
		cmd.ID = rand.Text()
	}
	req := &siroccov1.StartExecRequest{
		SandboxId: s.ID, ExecId: cmd.ID, Command: cmd.Args, Env: cmd.Env,
		Workdir: cmd.Workdir, User: cmd.User, Tty: cmd.TTY, Stdin: cmd.Stdin != nil,
	}
	if cmd.Timeout > 0 {
		req.Timeout = durationpb.New(cmd.Timeout)
	}
	return req
}

// Process returns a handle on a process that was started before.
func (s *Sandbox) Process(id string) *Process { return &Process{ID: id, sandbox: s} }

// Processes returns every process that was started in the sandbox, oldest
// first.
func (s *Sandbox) Processes(ctx context.Context) ([]*siroccov1.Exec, error) {
	if err := s.data(ctx); err != nil {
		return nil, err
	}
	resp, err := dataCall(ctx, s, s.exec.List, &siroccov1.ListExecsRequest{SandboxId: s.ID})
	return resp.GetExecs(), err
}

// Attach copies the whole output, from its first byte, until the process ends,
// and returns how it ended.
func (p *Process) Attach(ctx context.Context, stdout, stderr io.Writer) (*siroccov1.ExecEnd, error) {
	return p.AttachFrom(ctx, stdout, stderr, 0, 0)
}

// AttachFrom is Attach from byte offsets of the two outputs. A connection that
// breaks is made again and goes on behind the last byte that was written. An
// error of a writer is returned as it is.
func (p *Process) AttachFrom(ctx context.Context, stdout, stderr io.Writer, stdoutOffset, stderrOffset int64) (*siroccov1.ExecEnd, error) {
	return p.attach(ctx, stdout, stderr, &siroccov1.AttachExecRequest{StdoutOffset: stdoutOffset, StderrOffset: stderrOffset})
}

// attach makes a call of Attach until there is an end, from where the one before
// has come to.
func (p *Process) attach(ctx context.Context, stdout, stderr io.Writer, req *siroccov1.AttachExecRequest) (*siroccov1.ExecEnd, error) {
	req.SandboxId, req.ExecId = p.sandbox.ID, p.ID
	if err := p.sandbox.data(ctx); err != nil {
		return nil, err
	}
	client := p.sandbox.client
	out := [2]*sink{{w: stdout, at: req.GetStdoutOffset()}, {w: stderr, at: req.GetStderrOffset()}}
	until := time.Now().Add(client.cfg.Resume)
	for n := 0; ; n++ {
		before := out[0].at + out[1].at
		req.StdoutOffset, req.StderrOffset = out[0].at, out[1].at
		end, err := p.follow(ctx, req, out)
		if end != nil || err == nil {
			return end, err
		}
		var we *writerError
		if errors.As(err, &we) {
			return nil, we.err
		}
		if ctx.Err() != nil {
			return nil, typed(ctx.Err())
		}
		if out[0].at+out[1].at > before {
			n, until = 0, time.Now().Add(client.cfg.Resume)
		}
		if p.sandbox.forget(err) {
			continue
		}
		if !passing(err) || !client.reached.Load() || !pause(ctx, n, err, until) {
			return nil, err
		}
	}
}

// follow is one connection of attach. It returns an end or an error.
func (p *Process) follow(ctx context.Context, req *siroccov1.AttachExecRequest, out [2]*sink) (*siroccov1.ExecEnd, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := p.sandbox.exec.Attach(ctx, connect.NewRequest(req))
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	for stream.Receive() {
		switch item := stream.Msg().GetItem().(type) {
		case *siroccov1.ExecOutput_Stdout:
			err = out[0].take(item.Stdout)
		case *siroccov1.ExecOutput_Stderr:
			err = out[1].take(item.Stderr)
		case *siroccov1.ExecOutput_End:
			return item.End, nil
		}
		if err != nil {
			return nil, err
		}
	}
	if err := stream.Err(); err != nil {
		return nil, err
	}
	return nil, &Error{Code: Unavailable, Message: "the output ended before the process did"}
}

// sink is where one of the outputs goes, and how far it has come.
type sink struct {
	w  io.Writer
	at int64
}

type writerError struct{ err error }

func (e *writerError) Error() string { return e.err.Error() }

// take writes what is new of a chunk.
func (s *sink) take(c *siroccov1.OutputChunk) error {
	data := c.GetData()
	switch skip := s.at - c.GetOffset(); {
	case skip < 0:
		return &Error{Code: Internal, Message: fmt.Sprintf("output from byte %d is missing", s.at)}
	case skip >= int64(len(data)):
		return nil
	default:
		data = data[skip:]
	}
	if s.w != nil {
		if _, err := s.w.Write(data); err != nil {
			return &writerError{err}
		}
	}
	s.at += int64(len(data))
	return nil
}

// Wait returns the process once it has ended, or as it is when timeout has
// passed; zero means at once.
func (p *Process) Wait(ctx context.Context, timeout time.Duration) (*siroccov1.Exec, error) {
	if err := p.sandbox.data(ctx); err != nil {
		return nil, err
	}
	return dataCall(ctx, p.sandbox, p.sandbox.exec.Wait, &siroccov1.WaitExecRequest{
		SandboxId: p.sandbox.ID, ExecId: p.ID, Timeout: durationpb.New(timeout),
	})
}

// Resize changes the size of the process's terminal.
func (p *Process) Resize(ctx context.Context, size *siroccov1.TerminalSize) error {
	if err := p.sandbox.data(ctx); err != nil {
		return err
	}
	_, err := dataCall(ctx, p.sandbox, p.sandbox.exec.Resize, &siroccov1.ResizeExecRequest{
		SandboxId: p.sandbox.ID, ExecId: p.ID, Size: size,
	})
	return err
}

// Signal sends a signal, such as "TERM", to the process's group. It is not sent
// again when the connection breaks, because it may have arrived.
func (p *Process) Signal(ctx context.Context, name string) error {
	if err := p.sandbox.data(ctx); err != nil {
		return err
	}
	_, err := once(ctx, p.sandbox.exec.Signal, &siroccov1.SignalExecRequest{
		SandboxId: p.sandbox.ID, ExecId: p.ID, Signal: name,
	})
	return err
}

// Input copies r to standard input and closes it at the end of r. What a broken
// connection may have lost is sent again; the platform knows by the offset what
// it has. One Input at a time.
func (p *Process) Input(ctx context.Context, r io.Reader) error {
	buf := make([]byte, 32<<10)
	for {
		n, rerr := r.Read(buf)
		if ctx.Err() != nil {
			return typed(ctx.Err())
		}
		if n > 0 || rerr == io.EOF {
			if err := p.write(ctx, buf[:n], rerr == io.EOF); err != nil {
				return err
			}
		}
		if rerr == io.EOF {
			return nil
		}
		if rerr != nil {
			return rerr
		}
	}
}

// write sends data behind what has been taken, until all of it has been.
func (p *Process) write(ctx context.Context, data []byte, last bool) error {
	if err := p.sandbox.data(ctx); err != nil {
		return err
	}
	for {
		resp, err := dataCall(ctx, p.sandbox, p.sandbox.exec.Stdin, &siroccov1.ExecStdinRequest{
			SandboxId: p.sandbox.ID, ExecId: p.ID, Offset: p.stdin, Data: data, Close: last,
		})
		if err != nil {
			return err
		}
		taken := resp.GetOffset() - p.stdin
		if taken < 0 || taken > int64(len(data)) {
			return &Error{Code: Internal, Message: fmt.Sprintf("input was taken up to byte %d of %d", resp.GetOffset(), p.stdin+int64(len(data)))}
		}
		p.stdin, data = resp.GetOffset(), data[taken:]
		if len(data) == 0 {
			return nil
		}
		if taken == 0 && !pause(ctx, 0, nil, time.Now().Add(time.Minute)) {
			return typed(ctx.Err())
		}
	}
}
