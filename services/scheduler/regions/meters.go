package regions

import (
	"context"

	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

type meters struct{ weight, score metric.Float64Gauge }

func newMeters(provider metric.MeterProvider) (*meters, error) {
	meter := provider.Meter("sirocco/scheduler")
	m := &meters{}
	var err error
	if m.weight, err = meter.Float64Gauge("sirocco.region.weight", metric.WithDescription("Share of new sandboxes that goes to a region, as seen from this one")); err != nil {
		return nil, err
	}
	m.score, err = meter.Float64Gauge("sirocco.region.score", metric.WithDescription("Health of a region, 0 to 1, smoothed, as seen from this one"))
	return m, err
}

func (m *meters) record(regions []*siroccov1.Region) {
	for _, r := range regions {
		of := metric.WithAttributes(attribute.String("peer", r.GetName()))
		m.weight.Record(context.Background(), r.GetWeight(), of)
		m.score.Record(context.Background(), r.GetScore(), of)
	}
}
