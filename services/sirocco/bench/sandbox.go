package bench

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	sirocco "github.com/sirocco-run/sirocco/sdk/go"
	"google.golang.org/protobuf/proto"
)

// opened is a sandbox whose first command has answered.
type opened struct {
	*sirocco.Sandbox
	// key is the idempotency key that it was made with.
	key string
	// create is the time until the create was answered, tti until the first
	// command had answered too.
	create, tti time.Duration
}

// open makes a sandbox and runs a first command in it. If it returns an error and
// a sandbox, the sandbox is to be ended too.
func open(ctx context.Context, client *sirocco.Client, req *siroccov1.CreateSandboxRequest, command []string, began time.Time) (o opened, err error) {
	req = proto.CloneOf(req)
	o.key = rand.Text()
	req.IdempotencyKey = o.key
	if o.Sandbox, err = client.Create(ctx, req); err != nil {
		return o, err
	}
	o.create = time.Since(began)
	if err := endOf(o.Record); err != nil {
		return o, err
	}
	if len(command) == 0 {
		return o, nil
	}
	var out bytes.Buffer
	end, err := o.Run(ctx, sirocco.Command{Args: command, Stdout: &out})
	o.tti = time.Since(began)
	switch {
	case err != nil:
		return o, err
	case end.GetExitCode() != 0:
		return o, fmt.Errorf("the command exited with %d", end.GetExitCode())
	case out.Len() == 0:
		return o, errors.New("the command answered nothing")
	}
	return o, nil
}

// endOf is how a sandbox ended as an error; nil while it has not.
func endOf(sb *siroccov1.Sandbox) error {
	end := sb.GetEnd()
	if end == nil {
		return nil
	}
	code := strings.ToLower(strings.TrimPrefix(end.GetCause().String(), "CAUSE_"))
	return &sirocco.Error{Code: sirocco.Code(code), Message: sb.GetId() + ": " + end.GetMessage(), ErrorID: end.GetErrorId()}
}

// end terminates a sandbox, also when ctx has ended, and returns once nothing of
// it is left: the record says that it has ended only then. One that ended before,
// or for another reason, is an error.
func end(ctx context.Context, s *sirocco.Sandbox, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
	defer cancel()
	sb, err := s.Terminate(ctx, "measured")
	if err != nil {
		return fmt.Errorf("terminate %s: %w", s.ID, err)
	}
	if sb.GetEnd().GetCause() != siroccov1.Cause_CAUSE_USER {
		if err := endOf(sb); err != nil {
			return fmt.Errorf("it was to be terminated: %w", err)
		}
		return fmt.Errorf("terminate %s: it has not ended", s.ID)
	}
	return nil
}

// exotic gives a request a memory limit that no request before had: no warm
// sandbox fits it. The limits differ by pages only, up to 64 MiB above what was
// asked for, and begin at a random one so that the next measurement's differ too.
type exotic struct{ first int64 }

const (
	pageBytes = 4096
	// memoryDefault is the limit of who asks for none.
	memoryDefault = 512 << 20
	exoticRange   = 64 << 20 / pageBytes
)

func newExotic() exotic {
	var b [2]byte
	_, _ = rand.Read(b[:])
	return exotic{(int64(b[0])<<8 | int64(b[1])) % exoticRange}
}

// request returns the i-th variant.
func (e exotic) request(req *siroccov1.CreateSandboxRequest, i int) *siroccov1.CreateSandboxRequest {
	req = proto.CloneOf(req)
	if req.Resources == nil {
		req.Resources = &siroccov1.Resources{}
	}
	if req.Resources.MemoryLimitBytes == 0 {
		req.Resources.MemoryLimitBytes = memoryDefault
	}
	req.Resources.MemoryLimitBytes += (1 + (e.first+int64(i))%exoticRange) * pageBytes
	return req
}
