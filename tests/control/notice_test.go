package control

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/subject"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/sirocco-run/sirocco/services/node-agent/agent"
	"github.com/sirocco-run/sirocco/tests/harness"
	"google.golang.org/protobuf/proto"
)

// A drain that is lifted takes back the notices that it gave: nothing is evicted.
func TestLiftedDrainTakesNoticesBack(t *testing.T) {
	t.Parallel()
	r := harness.Start(t)
	r.Scheduler("s1")
	r.SimNode("n1", nil, func(c *agent.Config) { c.EvictionNotice = time.Hour })
	command(t, r, subject.VerbCreate, "k", &siroccov1.CreateSandboxRequest{Command: []string{"sleep", "infinity"}})
	id := idOf(t, r, "k")
	sb := await(t, r, id, "running", running)
	orders, err := r.JS.KeyValue(t.Context(), subject.BucketNodeOrders)
	if err != nil {
		t.Fatal(err)
	}
	order := func(n *siroccov1.Node) {
		t.Helper()
		raw, err := proto.Marshal(n)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := orders.Put(t.Context(), subject.NodeKey(sb.GetPlacement().GetRegion(), "n1"), raw); err != nil {
			t.Fatal(err)
		}
	}
	// As soon as the notice is given, so that the next orders come before the agent has read
	// the record again.
	for range 50 {
		order(&siroccov1.Node{Cordoned: true, Draining: true})
		await(t, r, id, "noticed", func(sb *siroccov1.Sandbox) bool { return sb.GetDesired().GetEvictAt() != nil })
		order(&siroccov1.Node{})
		sb = await(t, r, id, "free of the notice", func(sb *siroccov1.Sandbox) bool { return sb.GetDesired().GetEvictAt() == nil })
		if !running(sb) {
			t.Errorf("it is %v", sb.GetState())
		}
	}
}

// A published command to close what is not open is refused, not passed over in silence.
func TestClosingWhatIsNotOpen(t *testing.T) {
	t.Parallel()
	r := harness.Start(t)
	refused, err := r.JS.OrderedConsumer(t.Context(), subject.StreamEvents, jetstream.OrderedConsumerConfig{FilterSubjects: []string{subject.CommandEvent("acme", "*")}})
	if err != nil {
		t.Fatal(err)
	}
	r.Scheduler("s1")
	r.SimNode("n1", nil)
	command(t, r, subject.VerbCreate, "k", &siroccov1.CreateSandboxRequest{Command: []string{"sleep", "infinity"}})
	id := idOf(t, r, "k")
	await(t, r, id, "running", running)
	if _, err := r.JS.PublishMsg(t.Context(), &nats.Msg{Subject: subject.Command("acme", subject.VerbCloseTunnel, "close"), Data: []byte(`{"sandbox_id":"` + id + `","port":9999}`)}); err != nil {
		t.Fatal(err)
	}
	msg, err := refused.Next(jetstream.FetchMaxWait(20 * time.Second))
	if err != nil {
		t.Fatal(err)
	}
	got := &siroccov1.RejectedCommand{}
	if err := proto.Unmarshal(msg.Data(), got); err != nil || got.GetCode() != "not_found" || got.GetKey() != "close" {
		t.Errorf("%v, %v", got, err)
	}
}
