package agent

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// metrics are what the agent counts. docs/telemetry.md lists them.
type metrics struct {
	starts   metric.Float64Histogram
	ends     metric.Int64Counter
	refusals metric.Int64Counter
	bytes    metric.Int64Counter
}

func newMetrics(meter metric.Meter, a *Agent) (*metrics, error) {
	m := &metrics{}
	var err error
	if m.starts, err = meter.Float64Histogram("sirocco.node.start.duration", metric.WithUnit("s"),
		metric.WithDescription("Time from the node's yes to a sandbox that is ready"),
		metric.WithExplicitBucketBoundaries(.005, .01, .025, .05, .075, .1, .15, .2, .3, .5, 1, 2, 5, 10, 30)); err != nil {
		return nil, err
	}
	if m.ends, err = meter.Int64Counter("sirocco.node.ends", metric.WithDescription("Sandboxes that ended, by cause")); err != nil {
		return nil, err
	}
	if m.refusals, err = meter.Int64Counter("sirocco.node.refusals", metric.WithDescription("Placements refused, by reason")); err != nil {
		return nil, err
	}
	if m.bytes, err = meter.Int64Counter("sirocco.node.tunnel.bytes", metric.WithUnit("By"), metric.WithDescription("Bytes through tunnels, by direction")); err != nil {
		return nil, err
	}
	_, err = meter.Int64ObservableGauge("sirocco.node.live", metric.WithDescription("Sandboxes on the node, by state"),
		metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error {
			states := map[string]int64{}
			for _, machine := range a.all() {
				states[machine.current().GetState().String()]++
			}
			for state, n := range states {
				o.Observe(n, metric.WithAttributes(attribute.String("state", state)))
			}
			return nil
		}))
	return m, err
}

func (m *metrics) end(ctx context.Context, cause string) {
	m.ends.Add(ctx, 1, metric.WithAttributes(attribute.String("cause", cause)))
}

func (m *metrics) refusal(ctx context.Context, reason string) {
	m.refusals.Add(ctx, 1, metric.WithAttributes(attribute.String("reason", reason)))
}

func (m *metrics) transferred(ctx context.Context, direction string, n int64) {
	m.bytes.Add(ctx, n, metric.WithAttributes(attribute.String("direction", direction)))
}
