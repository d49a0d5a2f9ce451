package telemetry_test

import (
	"context"
	"io"
	"net"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/sirocco-run/sirocco/pkg/telemetry"
	"go.opentelemetry.io/otel/metric"
	metricspb "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	tracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
)

// collector keeps what is sent to it.
type collector struct {
	tracepb.UnimplementedTraceServiceServer
	metricspb.UnimplementedMetricsServiceServer

	mu      sync.Mutex
	spans   []string
	metrics []string
	service string
}

func (c *collector) Export(_ context.Context, req *tracepb.ExportTraceServiceRequest) (*tracepb.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range req.GetResourceSpans() {
		for _, a := range r.GetResource().GetAttributes() {
			if a.GetKey() == "service.name" {
				c.service = a.GetValue().GetStringValue()
			}
		}
		for _, s := range r.GetScopeSpans() {
			for _, span := range s.GetSpans() {
				c.spans = append(c.spans, span.GetName())
			}
		}
	}
	return &tracepb.ExportTraceServiceResponse{}, nil
}

type metricsCollector struct {
	metricspb.UnimplementedMetricsServiceServer
	*collector
}

func (c metricsCollector) Export(_ context.Context, req *metricspb.ExportMetricsServiceRequest) (*metricspb.ExportMetricsServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range req.GetResourceMetrics() {
		for _, s := range r.GetScopeMetrics() {
			for _, m := range s.GetMetrics() {
				c.metrics = append(c.metrics, m.GetName())
			}
		}
	}
	return &metricspb.ExportMetricsServiceResponse{}, nil
}

func newCollector(t *testing.T) (*collector, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &collector{}
	server := grpc.NewServer()
	tracepb.RegisterTraceServiceServer(server, c)
	metricspb.RegisterMetricsServiceServer(server, metricsCollector{collector: c})
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(l)
	}()
	t.Cleanup(func() {
		server.Stop()
		<-done
	})
	return c, l.Addr().String()
}

func TestShutdownSendsEverything(t *testing.T) {
	c, address := newCollector(t)
	tele, err := telemetry.Start(t.Context(), telemetry.Config{Service: "api", Region: "eu", Instance: "a", Endpoint: address})
	if err != nil {
		t.Fatal(err)
	}
	_, span := tele.Tracer.Tracer("test").Start(t.Context(), "work")
	span.End()
	count(t, tele.Meter)
	if err := tele.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.spans) != 1 || c.spans[0] != "work" || c.service != "sirocco-api" {
		t.Errorf("got spans %q of %q", c.spans, c.service)
	}
	all := strings.Join(c.metrics, " ")
	if !strings.Contains(all, "test.count") || !strings.Contains(all, "go.goroutine.count") {
		t.Errorf("got metrics %q", all)
	}
}

func count(t *testing.T, p metric.MeterProvider) {
	t.Helper()
	counter, err := p.Meter("test").Int64Counter("test.count")
	if err != nil {
		t.Fatal(err)
	}
	counter.Add(t.Context(), 3)
	hist, err := p.Meter("test").Float64Histogram("test.latency", metric.WithUnit("s"))
	if err != nil {
		t.Fatal(err)
	}
	hist.Record(t.Context(), .003)
	own, err := p.Meter("test").Float64Histogram("test.own", metric.WithUnit("s"), metric.WithExplicitBucketBoundaries(.00005, 1))
	if err != nil {
		t.Fatal(err)
	}
	own.Record(t.Context(), .00001)
	foreign, err := p.Meter("test").Float64Histogram("test.foreign", metric.WithUnit("ms"))
	if err != nil {
		t.Fatal(err)
	}
	foreign.Record(t.Context(), 20_000)
}

func TestPrometheusTellsServicesOfOneProcessApart(t *testing.T) {
	registry := prometheus.NewRegistry()
	var last *telemetry.Telemetry
	for _, name := range []string{"node-1", "node-2"} {
		tele, err := telemetry.Start(t.Context(), telemetry.Config{Service: "node-agent", Region: "eu", Instance: name, Registry: registry})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = tele.Shutdown(context.Background()) })
		count(t, tele.Meter)
		last = tele
	}
	w := httptest.NewRecorder()
	last.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	raw, err := io.ReadAll(w.Result().Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`test_count_total{instance_name="node-1",region="eu",service="node-agent"} 3`,
		`test_count_total{instance_name="node-2",region="eu",service="node-agent"} 3`,
		`test_latency_seconds_bucket{instance_name="node-1",region="eu",service="node-agent",le="0.005"} 1`,
		`test_own_seconds_bucket{instance_name="node-1",region="eu",service="node-agent",le="5e-05"} 1`,
		`test_foreign_milliseconds_bucket{instance_name="node-1",region="eu",service="node-agent",le="30000"} 1`,
		`go_goroutine_count{instance_name="node-2"`,
	} {
		if !strings.Contains(string(raw), want) {
			t.Errorf("%s is missing in\n%s", want, raw)
		}
	}
}

func TestOffCostsNothing(t *testing.T) {
	tele, err := telemetry.Start(t.Context(), telemetry.Config{Service: "api"})
	if err != nil {
		t.Fatal(err)
	}
	tracer := tele.Tracer.Tracer("test")
	counter, err := tele.Meter.Meter("test").Int64Counter("test.count")
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	if n := testing.AllocsPerRun(100, func() {
		counter.Add(ctx, 1)
		_, span := tracer.Start(ctx, "work")
		span.End()
	}); n > 1 {
		t.Errorf("%v allocations for a span and a count", n)
	}
	if err := tele.Shutdown(ctx); err != nil {
		t.Error(err)
	}
}

func TestEndpointURL(t *testing.T) {
	for in, want := range map[string]string{
		"127.0.0.1:4317": "http://127.0.0.1:4317", "https://otel.example.com": "https://otel.example.com", "http://x:1": "http://x:1",
	} {
		if got, err := telemetry.EndpointURL(in); err != nil || got != want {
			t.Errorf("%s: got %s, %v", in, got, err)
		}
	}
	for _, in := range []string{"ftp://x", "http://", "://"} {
		if _, err := telemetry.EndpointURL(in); err == nil {
			t.Errorf("%s: want an error", in)
		}
	}
}
