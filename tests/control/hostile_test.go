package control

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/subject"
	"github.com/sirocco-run/sirocco/pkg/tunnel"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/sirocco-run/sirocco/services/scheduler/scheduler"
	"github.com/sirocco-run/sirocco/tests/harness"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// refusal waits for the event about a refused command.
func refusal(t *testing.T, r *harness.Region, key string, publish func()) *siroccov1.RejectedCommand {
	t.Helper()
	sub, err := r.NC.SubscribeSync(subject.CommandEvent("acme", key))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	publish()
	msg, err := sub.NextMsg(20 * time.Second)
	if err != nil {
		t.Fatalf("no event about the command %s: %v", key, err)
	}
	out := &siroccov1.RejectedCommand{}
	if err := bus.Decode(msg.Header, msg.Data, out); err != nil {
		t.Fatal(err)
	}
	if fact := msg.Header.Get(subject.HeaderFact); !json.Valid([]byte(fact)) {
		t.Errorf("the fact of the refusal is no JSON: %s", fact)
	}
	return out
}

// TestHugeReasonIsRefused: a reason as long as a message would make a record
// that its node could never write again.
func TestHugeReasonIsRefused(t *testing.T) {
	t.Parallel()
	r := harness.Start(t)
	r.Scheduler("s1")
	r.SimNode("n1", nil)
	command(t, r, subject.VerbCreate, "k", &siroccov1.CreateSandboxRequest{})
	id := idOf(t, r, "k")
	await(t, r, id, "running", running)
	got := refusal(t, r, "huge", func() {
		command(t, r, subject.VerbTerminate, "huge", &siroccov1.TerminateSandboxRequest{Id: id, Reason: strings.Repeat("x", 900<<10)})
	})
	if got.GetCode() != string(fault.InvalidArgument) || got.GetField() != "reason" {
		t.Errorf("refused as %v", got)
	}
	command(t, r, subject.VerbTerminate, "stop", &siroccov1.TerminateSandboxRequest{Id: id})
	await(t, r, id, "ended", ended)
	queueEmpty(t, r)
}

// TestTunnelsOpenedAtOnce: commands for one sandbox that are carried out at the
// same time neither pass the limit nor come to the same public port.
func TestTunnelsOpenedAtOnce(t *testing.T) {
	t.Parallel()
	r := harness.Start(t)
	r.Scheduler("s1")
	r.Scheduler("s2")
	r.SimNode("n1", nil)
	command(t, r, subject.VerbCreate, "k", &siroccov1.CreateSandboxRequest{})
	id := idOf(t, r, "k")
	await(t, r, id, "running", running)
	const asked = lifecycle.MaxPorts + 20
	for i := range asked {
		msg, err := bus.NewMsg(t.Context(), subject.Command("acme", subject.VerbOpenTunnel, fmt.Sprintf("open-%d", i)), &siroccov1.OpenTunnelRequest{
			SandboxId: id, Port: &siroccov1.Port{Port: uint32(1000 + i), Protocol: siroccov1.Protocol_PROTOCOL_TCP},
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.JS.PublishMsgAsync(msg); err != nil {
			t.Fatal(err)
		}
	}
	<-r.JS.PublishAsyncComplete()
	queueEmpty(t, r)
	sb := await(t, r, id, "running", running)
	if n := len(sb.GetTunnels()); n != lifecycle.MaxPorts {
		t.Errorf("%d of %d tunnels are open; %d are allowed", n, asked, lifecycle.MaxPorts)
	}
	seen := map[uint16]uint32{}
	for _, o := range sb.GetTunnels() {
		public := tunnel.PublicPort(o)
		if other, ok := seen[public]; ok {
			t.Errorf("the public port %d leads to %d and %d", public, other, o.GetPort())
		}
		seen[public] = o.GetPort()
	}
}

// TestUnknownFieldsDeepInside: what a create says and the platform does not
// know is refused at any depth, in protobuf as in JSON.
func TestUnknownFieldsDeepInside(t *testing.T) {
	t.Parallel()
	r := harness.Start(t)
	r.Scheduler("s1")
	inner := protowire.AppendTag(nil, 999, protowire.VarintType)
	inner = protowire.AppendVarint(inner, 1)
	req := &siroccov1.CreateSandboxRequest{Ports: []*siroccov1.Port{{Port: 80}}}
	req.Ports[0].ProtoReflect().SetUnknown(inner)
	got := refusal(t, r, "deep", func() { command(t, r, subject.VerbCreate, "deep", req) })
	if got.GetCode() != string(fault.InvalidArgument) {
		t.Errorf("refused as %v", got)
	}
}

// TestOverQuotaIsRefused: a create that the gateway has marked ends as an
// event, and makes nothing.
func TestOverQuotaIsRefused(t *testing.T) {
	t.Parallel()
	r := harness.Start(t)
	r.Scheduler("s1")
	r.SimNode("n1", nil)
	got := refusal(t, r, "more", func() {
		msg := nats.NewMsg(subject.Command("acme", subject.VerbCreate, "more"))
		over := &fault.Fault{Code: fault.Quota, Message: "you have 3 sandboxes", Scope: "tenant", Field: "live", RetryAfter: time.Second}
		msg.Header.Set(subject.HeaderOverQuota, over.Header())
		if _, err := r.JS.PublishMsg(t.Context(), msg); err != nil {
			t.Fatal(err)
		}
	})
	if got.GetCode() != string(fault.Quota) || got.GetMessage() != "you have 3 sandboxes" || got.GetScope() != "tenant" ||
		got.GetField() != "live" || got.GetRetryAfter().AsDuration() != time.Second {
		t.Errorf("refused as %v", got)
	}
}

// TestCrowdOfOneTenant: creates that find no room do not keep the queue from
// others. Beyond what may wait, they end at once, and say why.
func TestCrowdOfOneTenant(t *testing.T) {
	t.Parallel()
	r := harness.Start(t)
	r.Scheduler("s1", func(c *scheduler.Config) { c.Patience = time.Hour })
	req, err := proto.Marshal(&siroccov1.CreateSandboxRequest{})
	if err != nil {
		t.Fatal(err)
	}
	const most = 1024
	for i := range most + 1 {
		msg := nats.NewMsg(subject.Command("acme", subject.VerbCreate, fmt.Sprintf("k%d", i)))
		msg.Header.Set(subject.HeaderContentType, subject.ContentProtobuf)
		msg.Data = req
		if _, err := r.JS.PublishMsgAsync(msg); err != nil {
			t.Fatal(err)
		}
	}
	<-r.JS.PublishAsyncComplete()
	// There is no node: with an hour of patience, only one beyond the crowd ends.
	harness.Eventually(t, 30*time.Second, func() string {
		failed := 0
		keys, err := r.JS.KeyValue(t.Context(), subject.BucketSandboxes)
		if err != nil {
			return err.Error()
		}
		list, err := keys.ListKeys(t.Context())
		if err != nil {
			return err.Error()
		}
		for k := range list.Keys() {
			tenant, id, err := subject.ParseRecordKey(k)
			if err != nil {
				continue
			}
			if sb, err := r.Store.Get(t.Context(), tenant, id); err == nil && ended(sb) {
				failed++
				if sb.GetEnd().GetCause() != siroccov1.Cause_CAUSE_NO_CAPACITY {
					t.Errorf("it ended as %v", sb.GetEnd())
				}
			}
		}
		if failed != 1 {
			return fmt.Sprintf("%d ended, want 1", failed)
		}
		return ""
	})
}
