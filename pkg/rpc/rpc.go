// Package rpc serves services over gRPC, Connect and REST from one definition,
// the same way in every process: strict JSON (a field that does not exist is an
// error, names are those of the .proto files), typed errors, limits.
package rpc

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"

	"connectrpc.com/connect"
	"connectrpc.com/vanguard"
	"github.com/google/uuid"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// MaxMessageBytes is the largest message that a service takes.
const MaxMessageBytes = 4 << 20

// Options returns what every handler is made with: strict JSON, a limit on
// messages, and faults as errors. A fault of the platform goes to the log under
// an error id, which is all that the caller learns of it.
func Options(log *slog.Logger, more ...connect.Interceptor) []connect.HandlerOption {
	return []connect.HandlerOption{
		connect.WithInterceptors(append([]connect.Interceptor{faults{log}}, more...)...),
		connect.WithCodec(jsonCodec{"json"}),
		connect.WithCodec(jsonCodec{"json; charset=utf-8"}),
		connect.WithReadMaxBytes(MaxMessageBytes),
	}
}

// Service is a Connect handler as its generated constructor returns it.
type Service struct {
	path    string
	handler http.Handler
}

// NewService takes the two results of a generated constructor.
func NewService(path string, handler http.Handler) Service { return Service{path, handler} }

// Handler serves the services over all three protocols; what belongs to none of
// them goes to rest, which may be nil.
func Handler(rest http.Handler, services ...Service) (http.Handler, error) {
	list := make([]*vanguard.Service, len(services))
	for i, s := range services {
		list[i] = vanguard.NewService(s.path, s.handler, vanguard.WithMaxMessageBufferBytes(MaxMessageBytes))
	}
	opts := []vanguard.TranscoderOption{
		vanguard.WithCodec(func(types vanguard.TypeResolver) vanguard.Codec {
			return vanguard.JSONCodec{
				MarshalOptions:   protojson.MarshalOptions{UseProtoNames: true, Resolver: types},
				UnmarshalOptions: protojson.UnmarshalOptions{Resolver: types},
			}
		}),
	}
	if rest != nil {
		opts = append(opts, vanguard.WithUnknownHandler(rest))
	}
	h, err := vanguard.NewTranscoder(list, opts...)
	if err != nil {
		return nil, fmt.Errorf("serve services: %w", err)
	}
	return h, nil
}

// jsonCodec is protojson that refuses unknown fields and keeps field names.
type jsonCodec struct{ name string }

func (c jsonCodec) Name() string { return c.name }

func (c jsonCodec) Marshal(m any) ([]byte, error) {
	msg, ok := m.(proto.Message)
	if !ok {
		return nil, fmt.Errorf("%T is not a message", m)
	}
	return protojson.MarshalOptions{UseProtoNames: true}.Marshal(msg)
}

func (c jsonCodec) Unmarshal(raw []byte, m any) error {
	msg, ok := m.(proto.Message)
	if !ok {
		return fmt.Errorf("%T is not a message", m)
	}
	if len(raw) == 0 {
		return nil
	}
	return protojson.Unmarshal(raw, msg)
}

// faults turns what a service returns into the errors of the contract.
type faults struct{ log *slog.Logger }

func (f faults) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		resp, err := next(ctx, req)
		return resp, f.convert(ctx, req.Spec().Procedure, err)
	}
}

func (f faults) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

func (f faults) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		return f.convert(ctx, conn.Spec().Procedure, next(ctx, conn))
	}
}

func (f faults) convert(ctx context.Context, procedure string, err error) error {
	if err == nil {
		return nil
	}
	return fault.Connect(Report(ctx, f.log, procedure, err))
}

// Report gives an internal fault its error id and writes it to the log; other
// errors pass as faults. Call it once, where an error leaves the service.
func Report(ctx context.Context, log *slog.Logger, op string, err error) error {
	if isConnect(err) {
		return err
	}
	found := fault.From(err)
	if found.Code != fault.Internal || found.ErrorID != "" {
		return found
	}
	copied := *found
	copied.ErrorID = uuid.NewString()
	log.ErrorContext(ctx, "internal fault", "op", op, "err", err, "error_id", copied.ErrorID)
	return &copied
}

// isConnect says whether err comes from the protocol itself (a body that can't
// be decoded, a broken stream) and already has its code.
func isConnect(err error) bool {
	return connect.CodeOf(err) != connect.CodeUnknown
}
