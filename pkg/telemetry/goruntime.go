package telemetry

import (
	"context"
	"fmt"
	"runtime/metrics"

	"go.opentelemetry.io/otel/metric"
)

// sample is one figure of the Go runtime under the name that OpenTelemetry's
// conventions give it.
type sample struct {
	source, name, unit, about string
	counter                   bool
}

var samples = []sample{
	{"/sched/goroutines:goroutines", "go.goroutine.count", "{goroutine}", "Goroutines that live", false},
	{"/memory/classes/total:bytes", "go.memory.used", "By", "Memory that the Go runtime has mapped", false},
	{"/gc/heap/live:bytes", "go.memory.live", "By", "Heap that the last collection left", false},
	{"/gc/heap/allocs:bytes", "go.memory.allocated", "By", "Heap bytes allocated so far", true},
	{"/gc/cycles/total:gc-cycles", "go.gc.cycles", "{cycle}", "Garbage collections so far", true},
}

// observeRuntime registers the figures; they are read when somebody asks.
func observeRuntime(p metric.MeterProvider) error {
	meter := p.Meter("github.com/sirocco-run/sirocco/pkg/telemetry")
	for _, s := range samples {
		observe := func(_ context.Context, o metric.Int64Observer) error {
			read := []metrics.Sample{{Name: s.source}}
			metrics.Read(read)
			if read[0].Value.Kind() == metrics.KindUint64 {
				o.Observe(int64(read[0].Value.Uint64())) //nolint:gosec // counts and bytes of one process
			}
			return nil
		}
		var err error
		if s.counter {
			_, err = meter.Int64ObservableCounter(s.name, metric.WithUnit(s.unit), metric.WithDescription(s.about), metric.WithInt64Callback(observe))
		} else {
			_, err = meter.Int64ObservableGauge(s.name, metric.WithUnit(s.unit), metric.WithDescription(s.about), metric.WithInt64Callback(observe))
		}
		if err != nil {
			return fmt.Errorf("observe %s: %w", s.name, err)
		}
	}
	return nil
}
