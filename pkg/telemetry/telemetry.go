// Package telemetry sends traces and metrics to an OpenTelemetry collector and
// offers metrics to Prometheus. Without an endpoint and without a registry
// everything is a no-op that costs nothing. docs/telemetry.md lists what the
// services report.
package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetricgrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	otelprom "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/metric"
	noopmetric "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	nooptrace "go.opentelemetry.io/otel/trace/noop"
)

// pushInterval is how often metrics are sent to the collector.
const pushInterval = 15 * time.Second

// Config says what to report, and where to.
type Config struct {
	// Service, Region, Instance and Version go with everything reported.
	Service, Region, Instance, Version string
	// Endpoint is the collector, as a URL (http:// without TLS, https:// with)
	// or as host:port, which means http. Empty for none.
	Endpoint string
	// Registry collects metrics for Prometheus; nil for none. Several services
	// of one process may share it: each metric carries service and instance.
	Registry *prometheus.Registry
	Log      *slog.Logger
}

// Telemetry holds the providers of one service. They are never nil.
type Telemetry struct {
	Tracer trace.TracerProvider
	Meter  metric.MeterProvider

	registry *prometheus.Registry
	shutdown []func(context.Context) error
}

// Propagate makes the W3C trace context and baggage what is written into and
// read from the headers of messages and requests. A program calls it once, at
// start, before anything else.
func Propagate() {
	otel.SetTextMapPropagator(propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{}))
}

// Start makes the providers. It does not wait for the collector, which may
// come later or never: what can't be sent is dropped and logged.
func Start(ctx context.Context, cfg Config) (*Telemetry, error) {
	t := &Telemetry{Tracer: nooptrace.NewTracerProvider(), Meter: noopmetric.NewMeterProvider(), registry: cfg.Registry}
	if cfg.Endpoint == "" && cfg.Registry == nil {
		return t, nil
	}
	if cfg.Log != nil {
		log := cfg.Log
		otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { log.Warn("telemetry", "err", err) }))
	}
	res := resource.NewSchemaless(
		attribute.String("service.name", "sirocco-"+cfg.Service),
		attribute.String("service.namespace", cfg.Region),
		attribute.String("service.instance.id", cfg.Instance),
		attribute.String("service.version", cfg.Version),
	)
	var readers []sdkmetric.Option
	if cfg.Endpoint != "" {
		reader, err := t.push(ctx, cfg.Endpoint, res)
		if err != nil {
			return nil, errors.Join(err, t.Shutdown(ctx))
		}
		readers = append(readers, sdkmetric.WithReader(reader))
	}
	if cfg.Registry != nil {
		labels := prometheus.Labels{"service": cfg.Service, "region": cfg.Region, "instance_name": cfg.Instance}
		exporter, err := otelprom.New(
			otelprom.WithRegisterer(prometheus.WrapRegistererWith(labels, cfg.Registry)),
			otelprom.WithoutTargetInfo(), otelprom.WithoutScopeInfo(), otelprom.WithAggregationSelector(aggregation))
		if err != nil {
			return nil, errors.Join(fmt.Errorf("make the Prometheus exporter: %w", err), t.Shutdown(ctx))
		}
		readers = append(readers, sdkmetric.WithReader(exporter))
	}
	meters := sdkmetric.NewMeterProvider(append(readers, sdkmetric.WithResource(res), sdkmetric.WithView(views()...))...)
	t.Meter = meters
	t.shutdown = append(t.shutdown, meters.Shutdown)
	if err := observeRuntime(meters); err != nil {
		return nil, errors.Join(err, t.Shutdown(ctx))
	}
	return t, nil
}

// push makes the exporters to the collector; it sets the tracer and returns
// the reader of metrics.
func (t *Telemetry) push(ctx context.Context, endpoint string, res *resource.Resource) (sdkmetric.Reader, error) {
	endpoint, err := EndpointURL(endpoint)
	if err != nil {
		return nil, err
	}
	spans, err := otlptracegrpc.New(ctx, otlptracegrpc.WithEndpointURL(endpoint))
	if err != nil {
		return nil, fmt.Errorf("make the trace exporter: %w", err)
	}
	tracer := sdktrace.NewTracerProvider(sdktrace.WithBatcher(spans), sdktrace.WithResource(res))
	t.Tracer = tracer
	t.shutdown = append(t.shutdown, tracer.Shutdown)
	metrics, err := otlpmetricgrpc.New(ctx, otlpmetricgrpc.WithEndpointURL(endpoint), otlpmetricgrpc.WithAggregationSelector(aggregation))
	if err != nil {
		return nil, fmt.Errorf("make the metric exporter: %w", err)
	}
	return sdkmetric.NewPeriodicReader(metrics, sdkmetric.WithInterval(pushInterval)), nil
}

// EndpointURL completes the address of a collector: host:port means http.
func EndpointURL(endpoint string) (string, error) {
	if !strings.Contains(endpoint, "://") {
		endpoint = "http://" + endpoint
	}
	u, err := url.Parse(endpoint)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return "", fmt.Errorf("the OTLP endpoint %q is not a URL such as http://127.0.0.1:4317", endpoint)
	}
	return endpoint, nil
}

// views give the histograms of libraries, which are in other units, bounds that
// fit them. A view wins over what an instrument says, so ours are in none.
func views() []sdkmetric.View {
	bounds := map[string][]float64{
		"ms": {1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000, 60_000},
		"By": {128, 1 << 10, 8 << 10, 64 << 10, 512 << 10, 4 << 20, 32 << 20, 256 << 20},
	}
	var all []sdkmetric.View
	for unit, b := range bounds {
		all = append(all, sdkmetric.NewView(
			sdkmetric.Instrument{Kind: sdkmetric.InstrumentKindHistogram, Unit: unit},
			sdkmetric.Stream{Aggregation: sdkmetric.AggregationExplicitBucketHistogram{Boundaries: b}}))
	}
	return all
}

// aggregation gives histograms that name no bounds of their own such as tell a
// millisecond from five, up to a minute: all of ours are in seconds.
func aggregation(kind sdkmetric.InstrumentKind) sdkmetric.Aggregation {
	if kind != sdkmetric.InstrumentKindHistogram {
		return sdkmetric.DefaultAggregationSelector(kind)
	}
	return sdkmetric.AggregationExplicitBucketHistogram{Boundaries: []float64{
		.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60,
	}}
}

// Handler serves the registry to Prometheus; without one it answers 404.
func (t *Telemetry) Handler() http.Handler {
	if t.registry == nil {
		return http.NotFoundHandler()
	}
	return promhttp.HandlerFor(t.registry, promhttp.HandlerOpts{})
}

// Shutdown sends what is still waiting, until ctx ends, and frees everything.
func (t *Telemetry) Shutdown(ctx context.Context) error {
	var errs []error
	for _, f := range t.shutdown {
		errs = append(errs, f(ctx))
	}
	t.shutdown = nil
	return errors.Join(errs...)
}
