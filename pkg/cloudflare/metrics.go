package cloudflare

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/sirocco-run/sirocco/pkg/cloudflare/plan"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// metrics are zero, and cost nothing, until newMetrics.
type metrics struct {
	duration metric.Float64Histogram
	// leads says whether this publisher is the one that writes.
	leads *atomic.Bool
	have  *atomic.Pointer[plan.Edge]
}

const meterName = "sirocco/cloudflare"

func newMetrics(provider metric.MeterProvider) (metrics, error) {
	m := metrics{leads: new(atomic.Bool), have: new(atomic.Pointer[plan.Edge])}
	var err error
	m.duration, err = provider.Meter(meterName).Float64Histogram("sirocco.cloudflare.request.duration", metric.WithUnit("s"),
		metric.WithDescription("Requests to Cloudflare's API, by what they did and what came of them"))
	return m, err
}

// observe shows what Cloudflare holds, as long as this publisher is the one that
// writes, each time metrics are collected.
func (m metrics) observe(provider metric.MeterProvider, pools map[string]string) (stop func(), err error) {
	meter := provider.Meter(meterName)
	weight, err := meter.Float64ObservableGauge("sirocco.cloudflare.weight", metric.WithDescription("Weights that Cloudflare holds, by region; from the publisher that writes"))
	if err != nil {
		return nil, err
	}
	leader, err := meter.Int64ObservableGauge("sirocco.cloudflare.leader", metric.WithDescription("1 at the publisher that writes to Cloudflare, else 0"))
	if err != nil {
		return nil, err
	}
	registration, err := meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		if !m.leads.Load() {
			o.ObserveInt64(leader, 0)
			return nil
		}
		o.ObserveInt64(leader, 1)
		if have := m.have.Load(); have != nil {
			for region, w := range byRegion(pools, have.Weights) {
				o.ObserveFloat64(weight, w, metric.WithAttributes(attribute.String("region", region)))
			}
		}
		return nil
	}, weight, leader)
	if err != nil {
		return nil, err
	}
	return func() { _ = registration.Unregister() }, nil
}

func (m metrics) holds(have plan.Edge) { m.have.Store(&have) }

func (m metrics) asked(ctx context.Context, action string, part plan.Part, begun time.Time, a *answer, err error) {
	outcome := "ok"
	if err != nil {
		outcome = a.failure("", err, begun).Kind()
	}
	m.duration.Record(ctx, time.Since(begun).Seconds(), metric.WithAttributes(
		attribute.String("action", action), attribute.String("part", part.Kind()), attribute.String("outcome", outcome)))
}
