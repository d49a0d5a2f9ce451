package api

import (
	"context"
	"fmt"
	"net/http"

	"connectrpc.com/connect"
	"connectrpc.com/otelconnect"
	"connectrpc.com/vanguard"
	"github.com/sirocco-run/sirocco/pkg/admission"
	"github.com/sirocco-run/sirocco/pkg/fault"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/sirocco-run/sirocco/proto/gen/sirocco/v1/siroccov1connect"
	"google.golang.org/protobuf/proto"
)

// Sizes of messages, in bytes. JSON takes more room than what it says.
const (
	maxBody        = 2 * admission.MaxRequestBytes
	maxImportChunk = 8 << 20
	maxAnswer      = 1 << 30
)

// routes returns the handler of the RPC paths and that of REST, made from the
// same services.
func (a *API) routes() (rpc, rest http.Handler, err error) {
	tracing, err := otelconnect.NewInterceptor(
		otelconnect.WithTracerProvider(a.env.Tracer), otelconnect.WithMeterProvider(a.env.Meter),
		otelconnect.WithTrustRemote(), otelconnect.WithoutServerPeerAttributes(), otelconnect.WithoutTraceEvents(),
	)
	if err != nil {
		return nil, nil, fmt.Errorf("build tracing: %w", err)
	}
	options := func(most int) connect.HandlerOption {
		return connect.WithHandlerOptions(
			connect.WithInterceptors(tracing, &contract{a}), connect.WithCodec(strictJSON{}), connect.WithReadMaxBytes(most),
		)
	}
	mux := http.NewServeMux()
	var services []*vanguard.Service
	add := func(most uint32, path string, h http.Handler) {
		mux.Handle(path, h)
		services = append(services, vanguard.NewService(path, h,
			// With an envelope around each message, a body that the transcoder
			// could not read is no message to the handler; without one it would
			// be an empty message, and be acted on.
			vanguard.WithTargetProtocols(vanguard.ProtocolGRPC), vanguard.WithTargetCodecs(vanguard.CodecProto),
			vanguard.WithNoTargetCompression(), vanguard.WithMaxMessageBufferBytes(most)))
	}
	path, h := siroccov1connect.NewSandboxServiceHandler(sandboxService{a}, options(maxBody))
	// An answer may be as long as a page of records.
	add(maxAnswer, path, h)
	path, h = siroccov1connect.NewTunnelServiceHandler(tunnelService{a}, options(maxBody))
	add(maxBody, path, h)
	path, h = siroccov1connect.NewNodeServiceHandler(nodeService{a}, options(maxBody))
	add(maxAnswer, path, h)
	path, h = siroccov1connect.NewImageServiceHandler(imageService{a}, options(maxImportChunk))
	add(maxAnswer, path, h)
	transcoder, err := vanguard.NewTranscoder(services, vanguard.WithCodec(newRESTJSON))
	if err != nil {
		return nil, nil, fmt.Errorf("build REST: %w", err)
	}
	return mux, transcoder, nil
}

// contract is the interceptor that keeps what every call promises: fields that
// are not known are refused, and every error carries its detail.
type contract struct{ api *API }

// WrapUnary implements connect.Interceptor.
func (i *contract) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		procedure := req.Spec().Procedure
		observe := i.api.metrics.begin(ctx, transportOf(ctx, req.Peer().Protocol), procedure)
		if refused(ctx) {
			return nil, observe.fail(fault.New(fault.InvalidArgument, "the request could not be read"))
		}
		if m, ok := req.Any().(proto.Message); ok {
			if err := checkUnknown(m.ProtoReflect()); err != nil {
				return nil, observe.fail(i.api.settle(ctx, procedure, err))
			}
		}
		resp, err := next(ctx, req)
		if err != nil {
			return nil, observe.fail(i.api.settle(ctx, procedure, err))
		}
		observe.end("")
		return resp, nil
	}
}

// WrapStreamingClient implements connect.Interceptor; there are no clients here.
func (i *contract) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// WrapStreamingHandler implements connect.Interceptor.
func (i *contract) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		if err := next(ctx, strictConn{conn}); err != nil {
			return fault.Connect(i.api.settle(ctx, conn.Spec().Procedure, err))
		}
		return nil
	}
}

// strictConn refuses messages with fields that are not known.
type strictConn struct{ connect.StreamingHandlerConn }

// Receive implements connect.StreamingHandlerConn.
func (c strictConn) Receive(m any) error {
	if err := c.StreamingHandlerConn.Receive(m); err != nil {
		return err
	}
	if pm, ok := m.(proto.Message); ok {
		return checkUnknown(pm.ProtoReflect())
	}
	return nil
}

// unary makes an RPC handler of a call of the api.
func unary[Q, R any](call func(context.Context, caller, *Q) (*R, error)) func(context.Context, *connect.Request[Q]) (*connect.Response[R], error) {
	return func(ctx context.Context, req *connect.Request[Q]) (*connect.Response[R], error) {
		c, err := callerOf(ctx)
		if err != nil {
			return nil, err
		}
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
	return unary(s.api.get)(ctx, r)
}

func (s sandboxService) List(ctx context.Context, r *connect.Request[siroccov1.ListSandboxesRequest]) (*connect.Response[siroccov1.ListSandboxesResponse], error) {
	return unary(s.api.list)(ctx, r)
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
	return unary(s.api.terminate)(ctx, r)
}

func (s sandboxService) Extend(ctx context.Context, r *connect.Request[siroccov1.ExtendSandboxRequest]) (*connect.Response[siroccov1.Sandbox], error) {
	return unary(s.api.extend)(ctx, r)
}

func (s sandboxService) SetTags(ctx context.Context, r *connect.Request[siroccov1.SetTagsRequest]) (*connect.Response[siroccov1.Sandbox], error) {
	return unary(s.api.setTags)(ctx, r)
}

func (s sandboxService) CreateToken(ctx context.Context, r *connect.Request[siroccov1.CreateTokenRequest]) (*connect.Response[siroccov1.SandboxToken], error) {
	return unary(s.api.createToken)(ctx, r)
}

type tunnelService struct{ api *API }

func (s tunnelService) Open(ctx context.Context, r *connect.Request[siroccov1.OpenTunnelRequest]) (*connect.Response[siroccov1.Tunnel], error) {
	return unary(s.api.openTunnel)(ctx, r)
}

func (s tunnelService) Close(ctx context.Context, r *connect.Request[siroccov1.CloseTunnelRequest]) (*connect.Response[siroccov1.CloseTunnelResponse], error) {
	return unary(s.api.closeTunnel)(ctx, r)
}

func (s tunnelService) List(ctx context.Context, r *connect.Request[siroccov1.ListTunnelsRequest]) (*connect.Response[siroccov1.ListTunnelsResponse], error) {
	return unary(s.api.listTunnels)(ctx, r)
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
