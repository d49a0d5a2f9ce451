package rpc

import (
	"context"
	"errors"

	"connectrpc.com/connect"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"google.golang.org/genproto/googleapis/api/httpbody"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// contract is the interceptor that keeps what every call promises: fields that
// are not known are refused, and every error carries its detail.
type contract struct{ *Contract }

// WrapUnary implements connect.Interceptor.
func (i *contract) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		procedure := req.Spec().Procedure
		end := func(fault.Code) {}
		if i.cfg.Observe != nil {
			end = i.cfg.Observe(ctx, transportOf(ctx, req.Peer().Protocol), procedure)
		}
		resp, err := i.unary(ctx, req, next)
		if err != nil {
			f := i.Settle(ctx, procedure, err)
			end(f.Code)
			return nil, fault.Connect(f)
		}
		end("")
		return resp, nil
	}
}

func (i *contract) unary(ctx context.Context, req connect.AnyRequest, next connect.UnaryFunc) (connect.AnyResponse, error) {
	if w := restWriter(ctx); w != nil && w.refused() {
		return nil, errUnreadable()
	}
	if m, ok := req.Any().(proto.Message); ok {
		if err := fault.CheckUnknown(m.ProtoReflect()); err != nil {
			return nil, err
		}
	}
	return next(ctx, req)
}

func errUnreadable() error {
	return fault.New(fault.InvalidArgument, "the request could not be read")
}

// transportOf says how a request came: "rest", or the RPC protocol.
func transportOf(ctx context.Context, protocol string) string {
	if restWriter(ctx) != nil {
		return "rest"
	}
	return protocol
}

// WrapStreamingClient implements connect.Interceptor; there are no clients here.
func (i *contract) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// WrapStreamingHandler implements connect.Interceptor.
func (i *contract) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		w := restWriter(ctx)
		if w != nil {
			conn = &restConn{StreamingHandlerConn: conn, w: w}
		}
		err := next(ctx, strictConn{conn})
		if err == nil && w != nil && downloads(conn.Spec()) {
			err = w.stream(&httpbody.HttpBody{}) // if there was nothing to send
		}
		if err == nil {
			return nil
		}
		if w != nil {
			w.breakOff()
		}
		f := FaultOf(err)
		if f.Code == fault.Internal && errors.Is(ctx.Err(), context.Canceled) {
			// The caller has left: what then went wrong with its stream is no
			// fault of the platform.
			f = fault.From(ctx.Err())
		} else {
			f = i.Settle(ctx, conn.Spec().Procedure, err)
		}
		return fault.Connect(f)
	}
}

// downloads says whether a call answers with a body that is streamed.
func downloads(s connect.Spec) bool {
	m, ok := s.Schema.(protoreflect.MethodDescriptor)
	return ok && m.IsStreamingServer() && m.Output().FullName() == bodyName
}

// strictConn refuses messages with fields that are not known.
type strictConn struct{ connect.StreamingHandlerConn }

// Receive implements connect.StreamingHandlerConn.
func (c strictConn) Receive(m any) error {
	if err := c.StreamingHandlerConn.Receive(m); err != nil {
		return err
	}
	if pm, ok := m.(proto.Message); ok {
		return fault.CheckUnknown(pm.ProtoReflect())
	}
	return nil
}
