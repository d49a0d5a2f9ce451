// Package rpc serves services over gRPC, Connect and REST from one definition,
// the same way in every process. What it keeps, whatever the protocol:
//
//   - JSON has the names of the .proto files, and a field that a message does
//     not have is refused, in protobuf too;
//   - every error is a fault with its ErrorDetail, also those that the RPC
//     libraries find by themselves, and an internal one tells nothing but the
//     id of its log line;
//   - a request that could not be read whole is never acted on;
//   - over REST, bodies of google.api.HttpBody are streams of any size;
//   - every call is a span of its caller's trace (W3C trace context).
//
// A service is put together like this:
//
//	c, err := rpc.New(rpc.Config{Log: log, Tracer: tracer, Meter: meter})
//	routes, err := c.Routes(rpc.NewService(fooconnect.NewFooHandler(foo, c.Options(0))))
//	server.Handler = c.Door(routes.Serve)
package rpc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"connectrpc.com/connect"
	"connectrpc.com/otelconnect"
	"connectrpc.com/vanguard"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

const (
	// Prefix begins the paths of gRPC and Connect; others belong to REST.
	Prefix = "/sirocco.v1."
	// MaxMessageBytes is the largest message that a service takes and, over
	// REST, gives, unless it says otherwise.
	MaxMessageBytes = 4 << 20

	contentType = "Content-Type"
)

// Config says where a contract writes to.
type Config struct {
	Log    *slog.Logger
	Tracer trace.TracerProvider
	Meter  metric.MeterProvider
	// Observe, if there is one, is told of every unary call that begins:
	// transport is "rest", "grpc" or "connect". What it returns is told the code
	// of the answer, "" for success.
	Observe func(ctx context.Context, transport, procedure string) (end func(fault.Code))
	// MaxBody bounds the body of a request that is one message, in bytes; zero
	// means MaxMessageBytes.
	MaxBody int64
	// BodyTime is how long such a body may take, or of a stream each piece; zero
	// means 30 s.
	BodyTime time.Duration
}

// Contract is what the services of a process have in common. It is safe for
// concurrent use.
type Contract struct {
	cfg     Config
	tracing connect.Interceptor
	errors  *connect.ErrorWriter
}

// New makes a contract. The logger and the providers are needed.
func New(cfg Config) (*Contract, error) {
	if cfg.MaxBody == 0 {
		cfg.MaxBody = MaxMessageBytes
	}
	if cfg.BodyTime == 0 {
		cfg.BodyTime = 30 * time.Second
	}
	tracing, err := otelconnect.NewInterceptor(
		otelconnect.WithTracerProvider(cfg.Tracer), otelconnect.WithMeterProvider(cfg.Meter),
		otelconnect.WithPropagator(propagation.TraceContext{}),
		otelconnect.WithTrustRemote(), otelconnect.WithoutServerPeerAttributes(), otelconnect.WithoutTraceEvents(),
	)
	if err != nil {
		return nil, fmt.Errorf("build tracing: %w", err)
	}
	return &Contract{cfg: cfg, tracing: tracing, errors: connect.NewErrorWriter(connect.WithCodec(strictJSON{jsonName}), connect.WithCodec(strictJSON{jsonNameUTF8}))}, nil
}

// Options is what every handler is made with. most bounds a message that it
// receives, in bytes; zero means MaxMessageBytes.
func (c *Contract) Options(most int) connect.HandlerOption {
	if most == 0 {
		most = MaxMessageBytes
	}
	return connect.WithHandlerOptions(
		connect.WithInterceptors(c.tracing, &contract{c}), connect.WithReadMaxBytes(most),
		connect.WithCodec(strictJSON{jsonName}), connect.WithCodec(strictJSON{jsonNameUTF8}),
	)
}

// Service is a handler as its generated constructor returns it.
type Service struct {
	path    string
	handler http.Handler
	most    uint32
}

// NewService takes the two results of a generated constructor.
func NewService(path string, handler http.Handler) Service {
	return Service{path: path, handler: handler, most: MaxMessageBytes}
}

// Answers bounds a message of the service over REST, answers included, in
// bytes.
func (s Service) Answers(most uint32) Service {
	s.most = most
	return s
}

// Routes leads requests to services.
type Routes struct {
	contract  *Contract
	rpc, rest http.Handler
	uploads   []upload
}

// Routes makes routes to services. It fails when two of them, or the paths of
// their calls, are the same.
func (c *Contract) Routes(services ...Service) (*Routes, error) {
	mux := http.NewServeMux()
	list := make([]*vanguard.Service, len(services))
	routes := &Routes{contract: c, rpc: mux}
	for i, s := range services {
		mux.Handle(s.path, s.handler)
		list[i] = vanguard.NewService(s.path, s.handler,
			// With an envelope around each message, a body that the transcoder
			// could not read is no message to the handler; without one it would
			// be an empty message, and be acted on.
			vanguard.WithTargetProtocols(vanguard.ProtocolGRPC), vanguard.WithTargetCodecs(vanguard.CodecProto),
			vanguard.WithNoTargetCompression(), vanguard.WithMaxMessageBufferBytes(s.most))
		found, err := uploadsOf(s.path)
		if err != nil {
			return nil, err
		}
		routes.uploads = append(routes.uploads, found...)
	}
	var err error
	if routes.rest, err = vanguard.NewTranscoder(list, vanguard.WithCodec(newRESTJSON)); err != nil {
		return nil, fmt.Errorf("build REST: %w", err)
	}
	return routes, nil
}

// Serve answers a request that came through a Door; what it returns is for the
// Door to answer.
func (t *Routes) Serve(w *Writer, r *http.Request) error {
	if w.rpc {
		if strings.HasPrefix(w.kind, "application/grpc-web") {
			return fault.New(fault.InvalidArgument, "gRPC-Web is not served: use gRPC, Connect or REST")
		}
		if err := t.contract.bound(w, r); err != nil {
			return err
		}
		t.rpc.ServeHTTP(w, r)
		return nil
	}
	if err := checkQuery(r.URL.Query()); err != nil {
		return err
	}
	r = r.WithContext(context.WithValue(r.Context(), restKey{}, w))
	if u := t.upload(r); u != nil {
		return t.serveUpload(w, r, u)
	}
	if err := t.contract.bound(w, r); err != nil {
		return err
	}
	t.rest.ServeHTTP(w, r)
	return nil
}

// Door makes a handler of serve that answers with the fault which serve
// returns, lives through a panic, and makes every error look as the contract
// says.
func (c *Contract) Door(serve func(w *Writer, r *http.Request) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		out := newWriter(c, w, r)
		defer func() {
			if p := recover(); p != nil {
				if err, ok := p.(error); ok && errors.Is(err, http.ErrAbortHandler) {
					panic(p)
				}
				out.fail(c.Settle(r.Context(), out.path, fmt.Errorf("panic: %v", p)))
			}
			out.finish()
		}()
		if err := serve(out, r); err != nil {
			out.fail(c.Settle(r.Context(), out.path, err))
		}
	})
}
