package api_test

import (
	"context"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/sirocco-run/sirocco/pkg/apikey"
	"github.com/sirocco-run/sirocco/pkg/bustest"
	"github.com/sirocco-run/sirocco/pkg/subject"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/sirocco-run/sirocco/services/api/api"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/propagation"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
)

// The trace that a client began goes on in the command, and what was answered
// is counted.
func TestTracesAndMetrics(t *testing.T) {
	before := otel.GetTextMapPropagator()
	otel.SetTextMapPropagator(propagation.TraceContext{})
	t.Cleanup(func() { otel.SetTextMapPropagator(before) })
	spans := tracetest.NewSpanRecorder()
	reader := sdkmetric.NewManualReader()
	nc, js := bustest.Start(t)
	r := startWith(t, nc, js, api.Config{}, sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans)), sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader)))
	key := r.key("acme", apikey.RoleTenant)
	const trace = "0af7651916cd43dd8448eb211c80319"
	send := map[string]func(key, parent string) error{
		"rest": func(id, parent string) error {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.url+"/v1/sandboxes", strings.NewReader(`{"idempotency_key":"`+id+`"}`))
			if err != nil {
				return err
			}
			req.Header.Set("Authorization", "Bearer "+key)
			req.Header.Set("Content-Type", "application/json")
			req.Header.Set("traceparent", parent)
			return do(req, &siroccov1.CreateSandboxResponse{})
		},
		"bus": func(id, parent string) error {
			msg := nats.NewMsg(subject.API("acme", "sandbox", "create"))
			msg.Data = []byte(`{"idempotency_key":"` + id + `"}`)
			msg.Header.Set("traceparent", parent)
			_, err := nc.RequestMsg(msg, wait)
			return err
		},
	}
	digit := "a"
	for name, do := range send {
		id := trace + digit
		digit = "b"
		if err := do(name, "00-"+id+"-b7ad6b7169203331-01"); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		r.sched.mu.Lock()
		got := r.sched.traces[subject.Command("acme", "create", name)]
		r.sched.mu.Unlock()
		if !strings.HasPrefix(got, "00-"+id+"-") || strings.Contains(got, "b7ad6b7169203331") {
			t.Errorf("%s: the command's trace is %q", name, got)
		}
	}
	// A span ends after the answer has been sent.
	for deadline := time.Now().Add(wait); len(spans.Ended()) < 2; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("%d spans", len(spans.Ended()))
		}
	}
	var all metricdata.ResourceMetrics
	if err := reader.Collect(context.Background(), &all); err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for _, scope := range all.ScopeMetrics {
		for _, m := range scope.Metrics {
			found[m.Name] = true
		}
	}
	for _, name := range []string{"sirocco.api.creates", "sirocco.api.request.duration"} {
		if !found[name] {
			t.Errorf("no metric %s in %v", name, found)
		}
	}
}
