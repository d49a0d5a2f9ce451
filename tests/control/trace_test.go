package control

import (
	"slices"
	"testing"
	"time"

	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/subject"
	"github.com/sirocco-run/sirocco/pkg/telemetry"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/sirocco-run/sirocco/tests/harness"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
)

// TestOneTraceShowsARequest: from the client's span through the command, the
// scheduler and the node to the process in the sandbox, each hop is a span of
// the client's trace.
func TestOneTraceShowsARequest(t *testing.T) {
	telemetry.Propagate()
	spans := tracetest.NewInMemoryExporter()
	provider := trace.NewTracerProvider(trace.WithSyncer(spans))
	r := harness.Start(t)
	r.Tracer = provider
	r.Scheduler("s1")
	r.SimNode("n1", nil)

	ctx, client := provider.Tracer("test").Start(t.Context(), "client")
	msg, err := bus.NewMsg(ctx, subject.Command("acme", subject.VerbCreate, "k"), &siroccov1.CreateSandboxRequest{Command: []string{"sleep", "infinity"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.JS.PublishMsg(ctx, msg); err != nil {
		t.Fatal(err)
	}
	client.End()
	await(t, r, idOf(t, r, "k"), "running", running)

	want := []string{"client", "scheduler.create", "agent.start", "agent.network", "agent.image", "agent.create", "agent.guest", "agent.command"}
	harness.Eventually(t, 10*time.Second, func() string {
		var names []string
		for _, s := range spans.GetSpans() {
			if s.SpanContext.TraceID() == client.SpanContext().TraceID() {
				names = append(names, s.Name)
			}
		}
		for _, name := range want {
			if !slices.Contains(names, name) {
				return "no span " + name + " in the client's trace, only " + slices.Sorted(slices.Values(names))[0]
			}
		}
		return ""
	})
}
