package control

import (
	"encoding/json"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/subject"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/sirocco-run/sirocco/services/node-agent/agent"
	"github.com/sirocco-run/sirocco/services/scheduler/scheduler"
	"github.com/sirocco-run/sirocco/tests/harness"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// publish puts many creates of a tenant on the queue, in order.
func publish(t *testing.T, r *harness.Region, tenant string, n int, req *siroccov1.CreateSandboxRequest) {
	t.Helper()
	body, err := proto.Marshal(req)
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		msg := nats.NewMsg(subject.Command(tenant, subject.VerbCreate, fmt.Sprintf("k%d", i)))
		msg.Header.Set(subject.HeaderContentType, subject.ContentProtobuf)
		msg.Data = body
		if _, err := r.JS.PublishMsgAsync(msg); err != nil {
			t.Fatal(err)
		}
	}
	<-r.JS.PublishAsyncComplete()
}

// tally counts the events of tenants, by what they say.
type tally struct {
	mu   sync.Mutex
	seen map[string]map[string]bool // by tenant and event: ids
}

func follow(t *testing.T, r *harness.Region) *tally {
	t.Helper()
	c := &tally{seen: map[string]map[string]bool{}}
	sub, err := r.NC.Subscribe(subject.All("evt"), func(msg *nats.Msg) {
		var fact struct{ ID, Key string }
		if err := json.Unmarshal([]byte(msg.Header.Get(subject.HeaderFact)), &fact); err != nil {
			t.Errorf("%s: %v", msg.Subject, err)
			return
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		of := subject.Tenant(msg.Subject) + " " + msg.Header.Get(subject.HeaderEvent)
		if c.seen[of] == nil {
			c.seen[of] = map[string]bool{}
		}
		c.seen[of][fact.ID+fact.Key] = true
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sub.Unsubscribe() })
	return c
}

func (c *tally) count(tenant, event string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.seen[tenant+" "+event])
}

// TestTenantsTakeTurns: ten creates of one tenant do not wait for the thousands of
// another that came before them.
func TestTenantsTakeTurns(t *testing.T) {
	t.Parallel()
	r := harness.Start(t)
	const many, few = 4000, 10
	for _, name := range []string{"n1", "n2", "n3"} {
		r.SimNode(name, nil, func(c *agent.Config) { c.MemoryBytes, c.CPUMillis, c.Sandboxes = 1<<40, 1<<30, many })
	}
	nodesReady(t, r, 3)
	events := follow(t, r)
	publish(t, r, "crowd", many, &siroccov1.CreateSandboxRequest{})
	publish(t, r, "single", few, &siroccov1.CreateSandboxRequest{})
	r.Scheduler("s1")
	harness.Eventually(t, time.Minute, func() string {
		if n := events.count("single", "running"); n < few {
			return fmt.Sprintf("%d of %d run; of the crowd's, %d", n, few, events.count("crowd", "running"))
		}
		return ""
	})
	// In the order of arrival it would be all of them. Some run while the scheduler
	// still takes in what lies before.
	if n := events.count("crowd", "running"); n > many*9/10 {
		t.Errorf("%d of the crowd's %d ran before the other tenant's %d", n, many, few)
	}
	harness.Eventually(t, 2*time.Minute, func() string {
		if n := events.count("crowd", "running"); n < many {
			return fmt.Sprintf("%d of the crowd's %d run", n, many)
		}
		return ""
	})
	queueEmpty(t, r)
}

// TestCapacityInTurns: what comes free goes to tenants in turn, however many of
// one wait.
func TestCapacityInTurns(t *testing.T) {
	t.Parallel()
	r := harness.Start(t)
	const many, few = 500, 10
	events := follow(t, r)
	r.Scheduler("s1", func(c *scheduler.Config) { c.Patience = time.Hour })
	waiting := func(tenant string, n int) {
		harness.Eventually(t, time.Minute, func() string {
			if have := events.count(tenant, "accepted"); have < n {
				return fmt.Sprintf("%d of %s wait", have, tenant)
			}
			return ""
		})
	}
	spec := &siroccov1.CreateSandboxRequest{Resources: &siroccov1.Resources{MemoryRequestBytes: 64 << 20}}
	publish(t, r, "crowd", many, spec)
	waiting("crowd", many)
	publish(t, r, "single", few, spec)
	waiting("single", few)
	r.SimNode("n1", nil, func(c *agent.Config) { c.MemoryBytes = 2 * few * 64 << 20 })
	harness.Eventually(t, time.Minute, func() string {
		if crowd, single := events.count("crowd", "running"), events.count("single", "running"); crowd != few || single != few {
			return fmt.Sprintf("of %d places, the crowd has %d and the other tenant %d", 2*few, crowd, single)
		}
		return ""
	})
}

// TestNothingStartsTooLate: a command that is taken after its deadline, or after
// its sandbox's lifetime, ends as that, and no node hears of it.
func TestNothingStartsTooLate(t *testing.T) {
	t.Parallel()
	r := harness.Start(t)
	r.SimNode("n1", nil)
	late := time.Now().Add(100 * time.Millisecond)
	command(t, r, subject.VerbCreate, "late", &siroccov1.CreateSandboxRequest{StartDeadline: timestamppb.New(late)})
	command(t, r, subject.VerbCreate, "over", &siroccov1.CreateSandboxRequest{MaxLifetime: durationpb.New(time.Second)})
	command(t, r, subject.VerbCreate, "named", &siroccov1.CreateSandboxRequest{Name: "web", StartDeadline: timestamppb.New(late)})
	over := time.Now().Add(time.Second)
	harness.Eventually(t, time.Minute, func() string {
		if time.Now().Before(over) {
			return "it is not late yet"
		}
		return ""
	})
	r.Scheduler("s1")
	for key, want := range map[string]siroccov1.Cause{
		"late": siroccov1.Cause_CAUSE_DEADLINE, "named": siroccov1.Cause_CAUSE_DEADLINE, "over": siroccov1.Cause_CAUSE_MAX_LIFETIME,
	} {
		sb := await(t, r, idOf(t, r, key), "ended", ended)
		if sb.GetEnd().GetCause() != want || sb.GetState() != siroccov1.State_STATE_FAILED || sb.GetPlacement() != nil {
			t.Errorf("%s: %v, %v on %v", key, sb.GetState(), sb.GetEnd(), sb.GetPlacement())
		}
	}
	queueEmpty(t, r)
}

// TestDeadlineWhileItWaits: a create that waits for capacity waits no longer than
// its client.
func TestDeadlineWhileItWaits(t *testing.T) {
	t.Parallel()
	r := harness.Start(t)
	r.SimNode("n1", nil)
	r.Scheduler("s1", func(c *scheduler.Config) { c.Patience = time.Hour })
	// No region fits, so that the deadline passes while it waits.
	command(t, r, subject.VerbCreate, "k", &siroccov1.CreateSandboxRequest{
		Regions: []string{"mars"}, StartDeadline: timestamppb.New(time.Now().Add(300 * time.Millisecond)),
	})
	sb := await(t, r, idOf(t, r, "k"), "ended", ended)
	if end := sb.GetEnd(); end.GetCause() != siroccov1.Cause_CAUSE_DEADLINE || end.GetLimit() == "" {
		t.Errorf("%v", end)
	}
}

// TestManyOverQuota: refusals of one tenant do not keep another waiting either.
func TestManyOverQuota(t *testing.T) {
	t.Parallel()
	r := harness.Start(t)
	r.SimNode("n1", nil)
	events := follow(t, r)
	const many, few = 1000, 10
	over := &fault.Fault{Code: fault.Quota, Message: "too fast", Scope: "tenant", Field: "create_rate", RetryAfter: time.Second}
	for i := range many {
		msg := nats.NewMsg(subject.Command("crowd", subject.VerbCreate, fmt.Sprintf("k%d", i)))
		msg.Header.Set(subject.HeaderOverQuota, over.Header())
		if _, err := r.JS.PublishMsgAsync(msg); err != nil {
			t.Fatal(err)
		}
	}
	<-r.JS.PublishAsyncComplete()
	publish(t, r, "single", few, &siroccov1.CreateSandboxRequest{})
	r.Scheduler("s1")
	harness.Eventually(t, time.Minute, func() string {
		if n := events.count("single", "running"); n < few {
			return fmt.Sprintf("%d of %d run", n, few)
		}
		return ""
	})
	harness.Eventually(t, time.Minute, func() string {
		if n := events.count("crowd", "rejected"); n < many {
			return fmt.Sprintf("%d of %d are refused", n, many)
		}
		return ""
	})
}
