package relay

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

const scope = "github.com/sirocco-run/sirocco/services/tunnel-relay/relay"

// meters are what the relay counts.
type meters struct {
	requests metric.Int64Counter
	again    metric.Int64Counter
	partings metric.Int64Counter
	overhead metric.Float64Histogram
	heldFor  metric.Float64Histogram
	// in and out are the bytes from and to clients.
	in, out atomic.Int64
}

func newMeters(provider metric.MeterProvider, held, streams, conns func() int64) (*meters, error) {
	m := &meters{}
	meter := provider.Meter(scope)
	var errs [6]error
	m.requests, errs[0] = meter.Int64Counter("sirocco.relay.requests",
		metric.WithDescription("Requests and connections by kind, class of status and, if refused, the reason"))
	m.overhead, errs[1] = meter.Float64Histogram("sirocco.relay.overhead", metric.WithUnit("s"),
		metric.WithDescription("Time from a request's header to its being passed on, without being held"),
		metric.WithExplicitBucketBoundaries(.00005, .0001, .00025, .0005, .001, .0025, .005, .01, .05, .1, 1))
	m.heldFor, errs[2] = meter.Float64Histogram("sirocco.relay.hold", metric.WithUnit("s"),
		metric.WithDescription("How long a request was held before it was passed on or refused; only those that were"),
		metric.WithExplicitBucketBoundaries(.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30))
	m.again, errs[4] = meter.Int64Counter("sirocco.relay.resent",
		metric.WithDescription("Requests that were sent again, by kind, because their sandbox was being moved and had not answered"))
	m.partings, errs[5] = meter.Int64Counter("sirocco.relay.parted",
		metric.WithDescription("WebSockets, raw and passthrough connections that ended because their sandbox was moved"))
	gauges := map[string]struct {
		about string
		value func() int64
	}{
		"sirocco.relay.held":        {"Requests that are held now", held},
		"sirocco.relay.streams":     {"Streams to agents that are open now", streams},
		"sirocco.relay.connections": {"Clients' connections that are open now", conns},
	}
	for name, g := range gauges {
		_, err := meter.Int64ObservableUpDownCounter(name, metric.WithDescription(g.about),
			metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error { o.Observe(g.value()); return nil }))
		errs[3] = errors.Join(errs[3], err)
	}
	_, err := meter.Int64ObservableCounter("sirocco.relay.bytes", metric.WithUnit("By"), metric.WithDescription("Bytes from and to clients"),
		metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error {
			o.Observe(m.in.Load(), metric.WithAttributes(attribute.String("direction", "in")))
			o.Observe(m.out.Load(), metric.WithAttributes(attribute.String("direction", "out")))
			return nil
		}))
	if err := errors.Join(errors.Join(errs[:]...), err); err != nil {
		return nil, fmt.Errorf("make the relay's metrics: %w", err)
	}
	return m, nil
}

// The kinds of requests and connections.
const (
	kindHTTP        = "http"
	kindUpgrade     = "upgrade"
	kindData        = "data"
	kindTCP         = "tcp"
	kindPassthrough = "passthrough"
)

// answered counts a request that the app answered, or a connection that was
// made (status 0).
func (m *meters) answered(ctx context.Context, kind string, status int) {
	class := "connected"
	if status > 0 {
		class = string(rune('0'+status/100)) + "xx"
	}
	m.requests.Add(ctx, 1, metric.WithAttributes(attribute.String("kind", kind), attribute.String("class", class)))
}

// refused counts a request or connection that was not served.
func (m *meters) refused(ctx context.Context, kind string, f *refusal) {
	m.requests.Add(ctx, 1, metric.WithAttributes(
		attribute.String("kind", kind), attribute.String("class", string(rune('0'+f.status/100))+"xx"), attribute.String("reason", f.reason)))
}

func (m *meters) passedOn(ctx context.Context, d time.Duration) { m.overhead.Record(ctx, d.Seconds()) }

func (m *meters) resent(ctx context.Context, kind string) {
	m.again.Add(ctx, 1, metric.WithAttributes(attribute.String("kind", kind)))
}

func (m *meters) parted(n int) { m.partings.Add(context.Background(), int64(n)) }

func (m *meters) wasHeld(ctx context.Context, d time.Duration) { m.heldFor.Record(ctx, d.Seconds()) }
