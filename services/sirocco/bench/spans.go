package bench

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net"
	"sync"
	"time"

	"connectrpc.com/connect"
	metricsv1 "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	collectorv1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
)

// DefaultOTLP is where spans are taken in, OpenTelemetry's own port.
const DefaultOTLP = "127.0.0.1:4317"

// quiet is how long no span may come before all are taken to be there, and late
// how long they are waited for in all. Exporters send what they have every 5 s.
const (
	quiet = 6 * time.Second
	late  = 20 * time.Second
)

// Spans is an OpenTelemetry collector that keeps the spans of calls made through
// its Interceptor, and forgets all others. Metrics are taken and dropped.
type Spans struct {
	listener net.Listener
	server   *grpc.Server
	serving  sync.WaitGroup

	mu     sync.Mutex
	traces map[string][]span // by trace id; those of our calls only
	newest time.Time
}

// span is what is kept of one.
type span struct {
	id, parent string
	name       string
	began      time.Time
	took       time.Duration
	warm       bool
}

// CollectSpans listens for spans until Close.
func CollectSpans(address string) (*Spans, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("take in spans: %w", err)
	}
	s := &Spans{listener: l, server: grpc.NewServer(grpc.MaxRecvMsgSize(64 << 20)), traces: map[string][]span{}}
	collectorv1.RegisterTraceServiceServer(s.server, traceService{spans: s})
	metricsv1.RegisterMetricsServiceServer(s.server, metricsService{})
	s.serving.Go(func() { _ = s.server.Serve(l) })
	return s, nil
}

// Address is where it listens.
func (s *Spans) Address() string { return s.listener.Addr().String() }

// Close ends the collector.
func (s *Spans) Close() {
	s.server.Stop()
	s.serving.Wait()
}

// Interceptor makes each unary call of a client the root of a trace.
func (s *Spans) Interceptor() connect.Interceptor {
	return connect.UnaryInterceptorFunc(func(next connect.UnaryFunc) connect.UnaryFunc {
		return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
			var trace [16]byte
			var root [8]byte
			_, _ = rand.Read(trace[:])
			_, _ = rand.Read(root[:])
			req.Header().Set("traceparent", fmt.Sprintf("00-%x-%x-01", trace, root))
			id := hex.EncodeToString(trace[:])
			s.mu.Lock()
			s.traces[id] = nil
			s.mu.Unlock()
			began := time.Now()
			resp, err := next(ctx, req)
			took := time.Since(began)
			s.mu.Lock()
			defer s.mu.Unlock()
			if err != nil {
				delete(s.traces, id)
				return resp, err
			}
			s.traces[id] = append(s.traces[id], span{id: hex.EncodeToString(root[:]), name: "client " + method(req.Spec().Procedure), began: began, took: took})
			return resp, err
		}
	})
}

// method is the last two parts of a procedure: "SandboxService/Create".
func method(procedure string) string {
	for i := len(procedure) - 1; i > 0; i-- {
		if procedure[i] == '.' {
			return procedure[i+1:]
		}
	}
	return procedure
}

type traceService struct {
	collectorv1.UnimplementedTraceServiceServer
	spans *Spans
}

// Export implements the collector's service.
func (t traceService) Export(_ context.Context, req *collectorv1.ExportTraceServiceRequest) (*collectorv1.ExportTraceServiceResponse, error) {
	s := t.spans
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, of := range req.GetResourceSpans() {
		for _, scope := range of.GetScopeSpans() {
			for _, in := range scope.GetSpans() {
				trace := hex.EncodeToString(in.GetTraceId())
				if _, ours := s.traces[trace]; !ours {
					continue
				}
				sp := span{
					id: hex.EncodeToString(in.GetSpanId()), parent: hex.EncodeToString(in.GetParentSpanId()), name: in.GetName(),
					began: nanos(in.GetStartTimeUnixNano()), took: time.Duration(in.GetEndTimeUnixNano() - in.GetStartTimeUnixNano()), //nolint:gosec // times of this century
				}
				for _, a := range in.GetAttributes() {
					if a.GetKey() == "sirocco.warm" {
						sp.warm = a.GetValue().GetBoolValue()
					}
				}
				s.traces[trace] = append(s.traces[trace], sp)
				s.newest = time.Now()
			}
		}
	}
	return &collectorv1.ExportTraceServiceResponse{}, nil
}

func nanos(n uint64) time.Time { return time.Unix(0, int64(n)) } //nolint:gosec // times of this century

type metricsService struct {
	metricsv1.UnimplementedMetricsServiceServer
}

// Export implements the collector's service.
func (metricsService) Export(context.Context, *metricsv1.ExportMetricsServiceRequest) (*metricsv1.ExportMetricsServiceResponse, error) {
	return &metricsv1.ExportMetricsServiceResponse{}, nil
}

// Stages waits until no more spans come and returns where the time of creates and
// of first commands went. What was collected is then forgotten.
func (s *Spans) Stages(ctx context.Context) []Stage {
	deadline := time.Now().Add(late)
	for asked := time.Now(); ; {
		s.mu.Lock()
		last := s.newest
		s.mu.Unlock()
		if last.Before(asked) {
			last = asked
		}
		if time.Since(last) > quiet || time.Now().After(deadline) || !until(ctx, time.Now().Add(100*time.Millisecond)) {
			break
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	all := s.traces
	s.traces = map[string][]span{}
	return stagesOf(all)
}
