package api

import (
	"context"

	"connectrpc.com/connect"
	"github.com/sirocco-run/sirocco/pkg/admission"
	"github.com/sirocco-run/sirocco/pkg/rpc"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/sirocco-run/sirocco/proto/gen/sirocco/v1/siroccov1connect"
)

// Sizes of messages, in bytes. JSON takes more room than what it says.
const (
	maxBody        = 2 * admission.MaxRequestBytes
	maxImportChunk = 8 << 20
	maxAnswer      = 1 << 30
)

// routes makes the routes to the services.
func (a *API) routes() (*rpc.Routes, error) {
	c := a.contract
	return c.Routes(
		// An answer may be as long as a page of records.
		rpc.NewService(siroccov1connect.NewSandboxServiceHandler(sandboxService{a}, c.Options(maxBody))).Answers(maxAnswer),
		rpc.NewService(siroccov1connect.NewTunnelServiceHandler(tunnelService{a}, c.Options(maxBody))).Answers(maxBody),
		rpc.NewService(siroccov1connect.NewNodeServiceHandler(nodeService{a}, c.Options(maxBody))).Answers(maxAnswer),
		rpc.NewService(siroccov1connect.NewPoolServiceHandler(poolService{a}, c.Options(maxBody))).Answers(maxAnswer),
		rpc.NewService(siroccov1connect.NewQuotaServiceHandler(quotaService{a}, c.Options(maxBody))).Answers(maxAnswer),
		rpc.NewService(siroccov1connect.NewRegionServiceHandler(regionService{a}, c.Options(maxBody))).Answers(maxBody),
		rpc.NewService(siroccov1connect.NewImageServiceHandler(imageService{a}, c.Options(maxImportChunk))).Answers(maxAnswer),
	)
}

// unary makes an RPC handler of a call of the api.
func unary[Q, R any](call func(context.Context, caller, *Q) (*R, error)) func(context.Context, *connect.Request[Q]) (*connect.Response[R], error) {
	return func(ctx context.Context, req *connect.Request[Q]) (*connect.Response[R], error) {
		c, err := callerOf(ctx)
		if err != nil {
			return nil, err
		}
		c.until, _ = ctx.Deadline()
		resp, err := call(ctx, c, req.Msg)
		if err != nil {
			return nil, err
		}
		return connect.NewResponse(resp), nil
	}
}

type sandboxService struct{ api *API }

func (s sandboxService) Create(ctx context.Context, r *connect.Request[siroccov1.CreateSandboxRequest]) (*connect.Response[siroccov1.CreateSandboxResponse], error) {
	return unary(s.api.countedCreate)(ctx, r)
}

func (s sandboxService) Get(ctx context.Context, r *connect.Request[siroccov1.GetSandboxRequest]) (*connect.Response[siroccov1.Sandbox], error) {
	return unary(s.api.calls.get)(ctx, r)
}

func (s sandboxService) List(ctx context.Context, r *connect.Request[siroccov1.ListSandboxesRequest]) (*connect.Response[siroccov1.ListSandboxesResponse], error) {
	return unary(s.api.listAnywhere)(ctx, r)
}

func (s sandboxService) Watch(ctx context.Context, r *connect.Request[siroccov1.WatchSandboxesRequest], out *connect.ServerStream[siroccov1.SandboxEvent]) error {
	c, err := callerOf(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := s.api.untilStop(ctx)
	defer cancel()
	return s.api.watch(ctx, c, r.Msg, func() error { return out.Send(nil) },
		func(e *siroccov1.SandboxEvent, _ string) error { return out.Send(e) })
}

func (s sandboxService) Terminate(ctx context.Context, r *connect.Request[siroccov1.TerminateSandboxRequest]) (*connect.Response[siroccov1.Sandbox], error) {
	return unary(s.api.calls.terminate)(ctx, r)
}

func (s sandboxService) Extend(ctx context.Context, r *connect.Request[siroccov1.ExtendSandboxRequest]) (*connect.Response[siroccov1.Sandbox], error) {
	return unary(s.api.calls.extend)(ctx, r)
}

func (s sandboxService) SetTags(ctx context.Context, r *connect.Request[siroccov1.SetTagsRequest]) (*connect.Response[siroccov1.Sandbox], error) {
	return unary(s.api.calls.setTags)(ctx, r)
}

func (s sandboxService) Migrate(ctx context.Context, r *connect.Request[siroccov1.MigrateSandboxRequest]) (*connect.Response[siroccov1.Sandbox], error) {
	return unary(s.api.calls.migrate)(ctx, r)
}

func (s sandboxService) CreateToken(ctx context.Context, r *connect.Request[siroccov1.CreateTokenRequest]) (*connect.Response[siroccov1.SandboxToken], error) {
	return unary(s.api.calls.createToken)(ctx, r)
}

type tunnelService struct{ api *API }

func (s tunnelService) Open(ctx context.Context, r *connect.Request[siroccov1.OpenTunnelRequest]) (*connect.Response[siroccov1.Tunnel], error) {
	return unary(s.api.calls.openTunnel)(ctx, r)
}

func (s tunnelService) Close(ctx context.Context, r *connect.Request[siroccov1.CloseTunnelRequest]) (*connect.Response[siroccov1.CloseTunnelResponse], error) {
	return unary(s.api.calls.closeTunnel)(ctx, r)
}

func (s tunnelService) List(ctx context.Context, r *connect.Request[siroccov1.ListTunnelsRequest]) (*connect.Response[siroccov1.ListTunnelsResponse], error) {
	return unary(s.api.calls.listTunnels)(ctx, r)
}

type nodeService struct{ api *API }

func (s nodeService) List(ctx context.Context, r *connect.Request[siroccov1.ListNodesRequest]) (*connect.Response[siroccov1.ListNodesResponse], error) {
	return unary(s.api.listNodes)(ctx, r)
}

func (s nodeService) Cordon(ctx context.Context, r *connect.Request[siroccov1.CordonNodeRequest]) (*connect.Response[siroccov1.Node], error) {
	return unary(s.api.cordon)(ctx, r)
}

func (s nodeService) Drain(ctx context.Context, r *connect.Request[siroccov1.DrainNodeRequest]) (*connect.Response[siroccov1.Node], error) {
	return unary(s.api.drain)(ctx, r)
}

func (s nodeService) GetDrain(ctx context.Context, r *connect.Request[siroccov1.GetDrainRequest]) (*connect.Response[siroccov1.Evacuation], error) {
	return unary(s.api.getDrain)(ctx, r)
}

type poolService struct{ api *API }

func (s poolService) List(ctx context.Context, r *connect.Request[siroccov1.ListPoolsRequest]) (*connect.Response[siroccov1.ListPoolsResponse], error) {
	return unary(s.api.listPools)(ctx, r)
}

func (s poolService) Set(ctx context.Context, r *connect.Request[siroccov1.SetPoolRequest]) (*connect.Response[siroccov1.Pool], error) {
	return unary(s.api.setPool)(ctx, r)
}

func (s poolService) Remove(ctx context.Context, r *connect.Request[siroccov1.RemovePoolRequest]) (*connect.Response[siroccov1.RemovePoolResponse], error) {
	return unary(s.api.removePool)(ctx, r)
}

type quotaService struct{ api *API }

func (s quotaService) List(ctx context.Context, r *connect.Request[siroccov1.ListQuotasRequest]) (*connect.Response[siroccov1.ListQuotasResponse], error) {
	return unary(s.api.listQuotas)(ctx, r)
}

func (s quotaService) Set(ctx context.Context, r *connect.Request[siroccov1.SetQuotaRequest]) (*connect.Response[siroccov1.Quota], error) {
	return unary(s.api.setQuota)(ctx, r)
}

func (s quotaService) Remove(ctx context.Context, r *connect.Request[siroccov1.RemoveQuotaRequest]) (*connect.Response[siroccov1.RemoveQuotaResponse], error) {
	return unary(s.api.removeQuota)(ctx, r)
}

type regionService struct{ api *API }

func (s regionService) List(ctx context.Context, r *connect.Request[siroccov1.ListRegionsRequest]) (*connect.Response[siroccov1.ListRegionsResponse], error) {
	return unary(s.api.listRegions)(ctx, r)
}

func (s regionService) SetWeight(ctx context.Context, r *connect.Request[siroccov1.SetRegionWeightRequest]) (*connect.Response[siroccov1.SetRegionWeightResponse], error) {
	return unary(s.api.setRegionWeight)(ctx, r)
}

func (s regionService) Evacuate(ctx context.Context, r *connect.Request[siroccov1.EvacuateRegionRequest]) (*connect.Response[siroccov1.Evacuation], error) {
	return unary(s.api.evacuate)(ctx, r)
}

func (s regionService) GetEvacuation(ctx context.Context, r *connect.Request[siroccov1.GetEvacuationRequest]) (*connect.Response[siroccov1.Evacuation], error) {
	return unary(s.api.getEvacuation)(ctx, r)
}

type imageService struct{ api *API }

func (s imageService) List(ctx context.Context, r *connect.Request[siroccov1.ListImagesRequest]) (*connect.Response[siroccov1.ListImagesResponse], error) {
	return unary(s.api.listImages)(ctx, r)
}

func (s imageService) Import(ctx context.Context, in *connect.ClientStream[siroccov1.ImportImageRequest]) (*connect.Response[siroccov1.Image], error) {
	c, err := callerOf(ctx)
	if err != nil {
		return nil, err
	}
	name, body, err := upload(in)
	if err != nil {
		return nil, err
	}
	img, err := s.api.importImage(ctx, c, name, body)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(img), nil
}

func (s imageService) Remove(ctx context.Context, r *connect.Request[siroccov1.RemoveImageRequest]) (*connect.Response[siroccov1.RemoveImageResponse], error) {
	return unary(s.api.removeImage)(ctx, r)
}
