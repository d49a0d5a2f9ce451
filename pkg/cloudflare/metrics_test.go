package cloudflare_test

import (
	"context"
	"log/slog"
	"testing"

	"github.com/sirocco-run/sirocco/pkg/bustest"
	"github.com/sirocco-run/sirocco/pkg/cloudflare"
	"github.com/sirocco-run/sirocco/pkg/cloudflare/cloudflaretest"
	"go.opentelemetry.io/otel/attribute"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
)

// TestMetrics: the publisher that writes shows the weights that Cloudflare holds,
// and what its requests came to.
func TestMetrics(t *testing.T) {
	srv := cloudflaretest.New(t)
	reader := sdkmetric.NewManualReader()
	nc, js := bustest.Connect(t, bus(t))
	env := environment("one", nc, js, slog.New(slog.DiscardHandler))
	env.Meter = sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader))
	p, err := cloudflare.New(env, config(srv.URL()))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- p.Run(ctx) }()
	p.Want(desired(0.75, 0.25, 0))
	eventually(t, "the metrics", func() bool {
		var all metricdata.ResourceMetrics
		if err := reader.Collect(t.Context(), &all); err != nil {
			t.Fatal(err)
		}
		weight, leader, ok := -1.0, int64(-1), false
		for _, scope := range all.ScopeMetrics {
			for _, m := range scope.Metrics {
				switch data := m.Data.(type) {
				case metricdata.Gauge[float64]:
					for _, point := range data.DataPoints {
						if v, _ := point.Attributes.Value("region"); v.AsString() == "eu" && m.Name == "sirocco.cloudflare.weight" {
							weight = point.Value
						}
					}
				case metricdata.Gauge[int64]:
					leader = data.DataPoints[0].Value
				case metricdata.Histogram[float64]:
					want := attribute.NewSet(attribute.String("action", "write"), attribute.String("part", "weights"), attribute.String("outcome", "ok"))
					for _, point := range data.DataPoints {
						ok = ok || point.Count == 1 && point.Attributes.Equals(&want)
					}
				}
			}
		}
		return weight == 0.75 && leader == 1 && ok
	})
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
