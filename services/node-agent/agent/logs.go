package agent

import (
	"context"

	"connectrpc.com/connect"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/guest"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/genproto/googleapis/api/httpbody"
)

// logService implements siroccov1connect.LogServiceHandler.
type logService struct{ *services }

func (s logService) Read(ctx context.Context, req *connect.Request[siroccov1.ReadLogsRequest], stream *connect.ServerStream[httpbody.HttpBody]) error {
	if req.Msg.GetOffset() < 0 {
		return fault.Invalid("offset", "want zero or more")
	}
	return s.output(ctx, req.Header().Get("Authorization"), source{
		sandbox: req.Msg.GetSandboxId(), exec: guest.MainExec, follow: req.Msg.GetFollow(), ordered: true, skip: req.Msg.GetOffset(),
	}, bodySender(stream))
}
