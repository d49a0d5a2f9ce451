package agent

import (
	"context"
	"time"

	"github.com/sirocco-run/sirocco/pkg/network"
	"github.com/sirocco-run/sirocco/pkg/record"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// metrics are what the agent counts. docs/telemetry.md lists them.
type metrics struct {
	starts   metric.Float64Histogram
	stages   metric.Float64Histogram
	ends     metric.Int64Counter
	refusals metric.Int64Counter
	claims   metric.Int64Counter
	bytes    metric.Int64Counter
	moves    metric.Int64Counter
	pauses   metric.Float64Histogram
}

func newMetrics(meter metric.Meter, a *Agent) (*metrics, error) {
	m := &metrics{}
	var err error
	if m.starts, err = meter.Float64Histogram("sirocco.node.start.duration", metric.WithUnit("s"),
		metric.WithDescription("Time from the node's yes to a sandbox that is ready"),
		metric.WithExplicitBucketBoundaries(.005, .01, .025, .05, .075, .1, .15, .2, .3, .5, 1, 2, 5, 10, 30)); err != nil {
		return nil, err
	}
	if m.stages, err = meter.Float64Histogram("sirocco.node.stage.duration", metric.WithUnit("s"),
		metric.WithDescription("Time that a stage of a start takes, by stage"),
		metric.WithExplicitBucketBoundaries(.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 5, 30)); err != nil {
		return nil, err
	}
	if m.ends, err = meter.Int64Counter("sirocco.node.ends", metric.WithDescription("Sandboxes that ended, by cause")); err != nil {
		return nil, err
	}
	if m.refusals, err = meter.Int64Counter("sirocco.node.refusals", metric.WithDescription("Placements refused, by reason")); err != nil {
		return nil, err
	}
	if m.claims, err = meter.Int64Counter("sirocco.node.pool.claims", metric.WithDescription("Starts that asked the warm pool, by whether there was a warm one (hit or miss)")); err != nil {
		return nil, err
	}
	if m.bytes, err = meter.Int64Counter("sirocco.node.tunnel.bytes", metric.WithUnit("By"), metric.WithDescription("Bytes through tunnels, by direction")); err != nil {
		return nil, err
	}
	if m.moves, err = meter.Int64Counter("sirocco.node.moves", metric.WithDescription("Moves of sandboxes to other nodes, by whether they were made (made or called_off)")); err != nil {
		return nil, err
	}
	if m.pauses, err = meter.Float64Histogram("sirocco.node.move.pause", metric.WithUnit("s"),
		metric.WithDescription("Time for which nothing ran in a sandbox that moved here"),
		metric.WithExplicitBucketBoundaries(.05, .1, .2, .3, .4, .5, .75, 1, 2, 5, 10, 30)); err != nil {
		return nil, err
	}
	_, err = meter.Int64ObservableGauge("sirocco.node.live", metric.WithDescription("Sandboxes on the node, by state"),
		metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error {
			states := map[string]int64{}
			for _, machine := range a.all() {
				states[record.StateName(machine.current().GetState())]++
			}
			for state, n := range states {
				o.Observe(n, metric.WithAttributes(attribute.String("state", state)))
			}
			return nil
		}))
	if err != nil {
		return nil, err
	}
	_, err = meter.Int64ObservableGauge("sirocco.node.pool", metric.WithDescription("What is kept ready, by kind and state"),
		metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error {
			if a.whole.Load() {
				warm := int64(0)
				for _, n := range a.pools.counts() {
					warm += int64(n)
				}
				o.Observe(warm, metric.WithAttributes(attribute.String("kind", "warm"), attribute.String("state", "ready")))
			}
			if pool, ok := a.parts.slots.(*network.Pool); ok && a.ready.Load() {
				stats := pool.Stats()
				for state, n := range map[string]int{"ready": stats.Ready, "held": stats.Held} {
					o.Observe(int64(n), metric.WithAttributes(attribute.String("kind", "network"), attribute.String("state", state)))
				}
			}
			return nil
		}))
	return m, err
}

// arrived counts a sandbox that came from another node.
func (m *metrics) arrived(ctx context.Context, pause time.Duration) {
	m.pauses.Record(ctx, pause.Seconds())
}

// left counts a move to another node, or one that was called off.
func (m *metrics) left(ctx context.Context, made bool) {
	outcome := "called_off"
	if made {
		outcome = "made"
	}
	m.moves.Add(ctx, 1, metric.WithAttributes(attribute.String("outcome", outcome)))
}

// stage begins one stage of a start: a span, and when end is called its time.
func (a *Agent) stage(ctx context.Context, name string) (context.Context, func()) {
	began := time.Now()
	ctx, span := a.tracer.Start(ctx, "agent."+name)
	return ctx, func() {
		span.End()
		a.metrics.stages.Record(ctx, time.Since(began).Seconds(), metric.WithAttributes(attribute.String("stage", name)))
	}
}

func (m *metrics) end(ctx context.Context, cause string) {
	m.ends.Add(ctx, 1, metric.WithAttributes(attribute.String("cause", cause)))
}

func (m *metrics) refusal(ctx context.Context, reason string) {
	m.refusals.Add(ctx, 1, metric.WithAttributes(attribute.String("reason", reason)))
}

func (m *metrics) claim(ctx context.Context, hit bool) {
	result := "miss"
	if hit {
		result = "hit"
	}
	m.claims.Add(ctx, 1, metric.WithAttributes(attribute.String("result", result)))
}

// The directions of a tunnel's bytes, made once: there is one for each piece.
var (
	inward  = metric.WithAttributeSet(attribute.NewSet(attribute.String("direction", "in")))
	outward = metric.WithAttributeSet(attribute.NewSet(attribute.String("direction", "out")))
)

func (m *metrics) transferred(ctx context.Context, direction metric.AddOption, n int64) {
	m.bytes.Add(ctx, n, direction)
}
