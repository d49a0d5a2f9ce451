package agent

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"time"

	"connectrpc.com/connect"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/guest"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/genproto/googleapis/api/httpbody"
)

func (s execService) Attach(ctx context.Context, req *connect.Request[siroccov1.AttachExecRequest], stream *connect.ServerStream[siroccov1.ExecOutput]) error {
	r := req.Msg
	if r.GetStdoutOffset() < 0 || r.GetStderrOffset() < 0 {
		return fault.Invalid("stdout_offset", "offsets are zero or more")
	}
	if r.GetStart() != nil {
		if err := s.startFirst(ctx, req.Header(), r); err != nil {
			return err
		}
	}
	// The headers go at once: a caller that waits for a quiet process knows that
	// it is attached.
	if err := stream.Send(nil); err != nil {
		return err
	}
	at := [2]int64{r.GetStdoutOffset(), r.GetStderrOffset()}
	return s.output(ctx, req.Header().Get("Authorization"), source{sandbox: r.GetSandboxId(), exec: r.GetExecId(), at: at, follow: !r.GetNoFollow()}, func(out guest.Output) error {
		if len(out.Data) > 0 {
			chunk := &siroccov1.OutputChunk{Offset: out.Offset, Data: out.Data}
			msg := &siroccov1.ExecOutput{Item: &siroccov1.ExecOutput_Stdout{Stdout: chunk}}
			if out.Stream == guest.Stderr {
				msg.Item = &siroccov1.ExecOutput_Stderr{Stderr: chunk}
			}
			if err := stream.Send(msg); err != nil {
				return err
			}
		}
		if out.End != nil {
			return stream.Send(&siroccov1.ExecOutput{Item: &siroccov1.ExecOutput_End{End: endMessage(out.End)}})
		}
		return nil
	})
}

func (s execService) ReadOutput(ctx context.Context, req *connect.Request[siroccov1.ReadExecOutputRequest], stream *connect.ServerStream[httpbody.HttpBody]) error {
	r := req.Msg
	if r.GetOffset() < 0 {
		return fault.Invalid("offset", "want zero or more")
	}
	at := [2]int64{guest.Skip, guest.Skip}
	which := guest.Stdout
	switch r.GetStream() {
	case siroccov1.OutputStream_OUTPUT_STREAM_UNSPECIFIED, siroccov1.OutputStream_OUTPUT_STREAM_STDOUT:
	case siroccov1.OutputStream_OUTPUT_STREAM_STDERR:
		which = guest.Stderr
	default:
		return fault.Invalid("stream", "want OUTPUT_STREAM_STDOUT or OUTPUT_STREAM_STDERR")
	}
	at[which] = r.GetOffset()
	return s.output(ctx, req.Header().Get("Authorization"), source{sandbox: r.GetSandboxId(), exec: r.GetExecId(), at: at, follow: r.GetFollow()}, bodySender(stream))
}

// bodySender sends output as plain bytes.
func bodySender(stream *connect.ServerStream[httpbody.HttpBody]) func(guest.Output) error {
	first := true
	return func(out guest.Output) error {
		if len(out.Data) == 0 && !first {
			return nil
		}
		body := &httpbody.HttpBody{Data: out.Data}
		if first {
			body.ContentType, first = "application/octet-stream", false
		}
		return stream.Send(body)
	}
}

// source names output: of which exec, from which offsets (guest.Skip leaves a
// stream out), or with ordered both streams in the order they came, but for the
// first bytes of the two together that are skipped.
type source struct {
	sandbox, exec string
	at            [2]int64
	follow        bool
	ordered       bool
	skip          int64
}

// output sends output to send until there is no more. It goes on where it was
// when the connection to the sandbox breaks, and with what is kept on the node
// when the sandbox itself is gone.
func (s *services) output(ctx context.Context, authorization string, src source, send func(guest.Output) error) error {
	claims, err := s.admit(map[string][]string{"Authorization": {authorization}}, src.sandbox)
	if err != nil {
		return err
	}
	if src.exec == "" {
		return fault.Invalid("exec_id", "there is none; the sandbox's own command is %q", guest.MainExec)
	}
	ended := false
	var skip int64 // of what comes next
	forward := func(out guest.Output) error {
		n := int64(len(out.Data))
		switch {
		case src.ordered:
			left := min(n, skip)
			skip -= left
			out.Offset, out.Data = out.Offset+left, out.Data[left:]
			src.skip += n - left
		case n > 0 && src.at[out.Stream] != guest.Skip:
			src.at[out.Stream] = out.Offset + n
		}
		ended = ended || out.End != nil
		return send(out)
	}
	for broken := 0; ; {
		skip = src.skip // ordered output comes from its beginning each time
		m := s.agent.find(src.sandbox)
		if m == nil || m.tenant != claims.Tenant {
			return s.archived(claims.Tenant, src, ended, forward)
		}
		var sendErr error
		err := m.stream(ctx, src, func(out guest.Output) error {
			broken = 0
			sendErr = forward(out)
			return sendErr
		})
		switch {
		case err == nil, sendErr != nil:
			return errors.Join(err)
		case errors.Is(err, guest.ErrNotFound) && src.exec == guest.MainExec:
			return fault.New(fault.NotFound, "sandbox %s was made without a command: there is no output of one", src.sandbox)
		case ctx.Err() != nil:
			return ctx.Err()
		case m.over():
			// What was kept appears when the sandbox is gone.
			select {
			case <-m.gone:
			case <-ctx.Done():
				return ctx.Err()
			}
		case errors.Is(err, guest.ErrBroken) && broken < 10:
			broken++
			select {
			case <-time.After(50 * time.Millisecond):
			case <-m.gone:
			case <-ctx.Done():
				return ctx.Err()
			}
		default:
			return m.guestFault(ctx, err)
		}
	}
}

// stream reads output from a sandbox that is there.
func (m *machine) stream(ctx context.Context, src source, send func(guest.Output) error) error {
	client, err := m.guest(ctx)
	if err != nil {
		return err
	}
	var reader *guest.OutputReader
	if src.ordered {
		reader, err = client.Logs(ctx, src.exec, src.follow)
	} else {
		reader, err = client.Attach(ctx, src.exec, src.at[0], src.at[1], src.follow)
	}
	if err != nil {
		return err
	}
	defer func() { _ = reader.Close() }()
	for {
		out, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := send(out); err != nil {
			return err
		}
	}
}

// archived sends what the node kept of the command of a sandbox that is gone.
func (s *services) archived(tenant string, src source, ended bool, send func(guest.Output) error) error {
	head, runs, err := s.agent.archives.read(src.sandbox)
	if errors.Is(err, fs.ErrNotExist) || err == nil && (head.Tenant != tenant || src.exec != guest.MainExec) {
		return errEnded(src.sandbox)
	}
	if err != nil {
		return err
	}
	for _, r := range runs {
		from := src.at[r.stream]
		if from == guest.Skip || r.offset+int64(len(r.data)) <= from {
			continue
		}
		if skip := from - r.offset; skip > 0 {
			r.offset, r.data = from, r.data[skip:]
		}
		if err := send(guest.Output{Stream: r.stream, Offset: r.offset, Data: r.data}); err != nil {
			return err
		}
	}
	if ended || head.Exec.End == nil {
		return nil
	}
	return send(guest.Output{End: head.Exec.End})
}
