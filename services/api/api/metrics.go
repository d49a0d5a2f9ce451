package api

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/record"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// metrics counts what the api answers.
type metrics struct {
	creates  metric.Int64Counter
	duration metric.Float64Histogram
}

func newMetrics(provider metric.MeterProvider) (*metrics, error) {
	meter := provider.Meter("github.com/sirocco-run/sirocco/services/api")
	creates, err := meter.Int64Counter("sirocco.api.creates",
		metric.WithDescription("Creates answered, by outcome: the state of the record, or the error code"))
	if err != nil {
		return nil, fmt.Errorf("build metrics: %w", err)
	}
	duration, err := meter.Float64Histogram("sirocco.api.request.duration", metric.WithUnit("s"),
		metric.WithDescription("Time from a request to its answer, waiting included"),
		metric.WithExplicitBucketBoundaries(.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60))
	if err != nil {
		return nil, fmt.Errorf("build metrics: %w", err)
	}
	return &metrics{creates: creates, duration: duration}, nil
}

// observation is one request under way.
type observation struct {
	metrics *metrics
	ctx     context.Context //nolint:containedctx // lives as long as the request
	start   time.Time
	labels  []attribute.KeyValue
}

// begin starts the clock of a request.
func (m *metrics) begin(ctx context.Context, transport, call string) *observation {
	return &observation{metrics: m, ctx: ctx, start: time.Now(), labels: []attribute.KeyValue{
		attribute.String("transport", transport), attribute.String("call", callName(call)),
	}}
}

// end stops the clock; code is empty for success.
func (o *observation) end(code fault.Code) {
	o.metrics.duration.Record(o.ctx, time.Since(o.start).Seconds(),
		metric.WithAttributes(o.labels...), metric.WithAttributes(attribute.String("code", string(code))))
}

// callName shortens "/sirocco.v1.SandboxService/Create".
func callName(procedure string) string { return strings.TrimPrefix(procedure, "/sirocco.v1.") }

// countedCreate is create with its outcome counted.
func (a *API) countedCreate(ctx context.Context, c caller, req *siroccov1.CreateSandboxRequest) (*siroccov1.CreateSandboxResponse, error) {
	resp, err := a.create(ctx, c, req)
	outcome := string(fault.CodeOf(err))
	if err == nil {
		outcome = record.StateName(resp.GetSandbox().GetState())
	}
	a.metrics.creates.Add(ctx, 1, metric.WithAttributes(attribute.String("outcome", outcome)))
	return resp, err
}
