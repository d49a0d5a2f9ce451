// Package control tests the control plane as a whole, on simulated nodes: the
// real bus, scheduler, node-agent and reaper.
package control

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/invariants"
	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/runtime"
	"github.com/sirocco-run/sirocco/pkg/subject"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/sirocco-run/sirocco/services/node-agent/agent"
	"github.com/sirocco-run/sirocco/services/scheduler/scheduler"
	"github.com/sirocco-run/sirocco/tests/harness"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

// command publishes a command as a bus client does.
func command(t *testing.T, r *harness.Region, verb, key string, m proto.Message) {
	t.Helper()
	msg, err := bus.NewMsg(t.Context(), subject.Command("acme", verb, key), m)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.JS.PublishMsg(t.Context(), msg); err != nil {
		t.Fatal(err)
	}
}

// idOf waits until a key has made a sandbox.
func idOf(t *testing.T, r *harness.Region, key string) string {
	t.Helper()
	var id string
	harness.Eventually(t, 20*time.Second, func() string {
		keys, err := r.JS.KeyValue(t.Context(), subject.BucketSandboxes)
		if err != nil {
			return err.Error()
		}
		list, err := keys.ListKeys(t.Context())
		if err != nil {
			return err.Error()
		}
		for k := range list.Keys() {
			tenant, candidate, err := subject.ParseRecordKey(k)
			if err != nil {
				continue
			}
			if sb, err := r.Store.Get(t.Context(), tenant, candidate); err == nil && sb.GetIdempotencyKey() == key {
				id = candidate
				return ""
			}
		}
		return "no sandbox of key " + key
	})
	return id
}

// await waits until a record is as wanted, and returns it.
func await(t *testing.T, r *harness.Region, id, what string, done func(*siroccov1.Sandbox) bool) *siroccov1.Sandbox {
	t.Helper()
	var sb *siroccov1.Sandbox
	harness.Eventually(t, 20*time.Second, func() string {
		var err error
		if sb, err = r.Store.Get(t.Context(), "acme", id); err != nil {
			return err.Error()
		}
		if !done(sb) {
			return fmt.Sprintf("want %s, have %s: %v", what, sb.GetState(), sb.GetEnd())
		}
		return ""
	})
	return sb
}

func running(sb *siroccov1.Sandbox) bool { return sb.GetState() == siroccov1.State_STATE_RUNNING }
func ended(sb *siroccov1.Sandbox) bool   { return lifecycle.Ended(sb.GetState()) }

func TestFromCommandToEnd(t *testing.T) {
	t.Parallel()
	r := harness.Start(t)
	r.Scheduler("s1")
	r.Scheduler("s2")
	r.SimNode("n1", nil)
	command(t, r, subject.VerbCreate, "k", &siroccov1.CreateSandboxRequest{Command: []string{"sleep", "infinity"}})
	id := idOf(t, r, "k")
	sb := await(t, r, id, "running", running)
	if sb.GetPlacement().GetNode() != "n1" || sb.GetPlacement().GetEpoch() != 1 {
		t.Errorf("placement %v", sb.GetPlacement())
	}
	command(t, r, subject.VerbTerminate, "stop", &siroccov1.TerminateSandboxRequest{Id: id, Reason: "enough"})
	sb = await(t, r, id, "ended", ended)
	if end := sb.GetEnd(); end.GetCause() != siroccov1.Cause_CAUSE_USER || end.GetMessage() != "enough" {
		t.Errorf("end %v", end)
	}
	want := []siroccov1.State{siroccov1.State_STATE_ACCEPTED, siroccov1.State_STATE_PLACED, siroccov1.State_STATE_STARTING, siroccov1.State_STATE_RUNNING, siroccov1.State_STATE_STOPPING, siroccov1.State_STATE_STOPPED}
	for i, h := range sb.GetHistory() {
		if h.GetState() != want[i] {
			t.Fatalf("history %v", sb.GetHistory())
		}
	}
}

func TestCommandsThatComeTwice(t *testing.T) {
	t.Parallel()
	r := harness.Start(t)
	r.Scheduler("s1")
	r.Scheduler("s2")
	r.SimNode("n1", nil)
	r.SimNode("n2", nil)
	for range 20 {
		command(t, r, subject.VerbCreate, "k", &siroccov1.CreateSandboxRequest{})
	}
	id := idOf(t, r, "k")
	await(t, r, id, "running", running)
	queueEmpty(t, r)
	sb := await(t, r, id, "running", running)
	if sb.GetPlacement().GetEpoch() != 1 {
		t.Errorf("20 deliveries placed it %d times", sb.GetPlacement().GetEpoch())
	}
	for range 20 {
		command(t, r, subject.VerbTerminate, "stop", &siroccov1.TerminateSandboxRequest{Id: id})
	}
	await(t, r, id, "ended", ended)
	queueEmpty(t, r)
}

// queueEmpty waits until every command has been carried out.
func queueEmpty(t *testing.T, r *harness.Region) {
	t.Helper()
	harness.Eventually(t, 20*time.Second, func() string {
		stream, err := r.JS.Stream(t.Context(), subject.StreamCommands)
		if err != nil {
			return err.Error()
		}
		if n := stream.CachedInfo().State.Msgs; n > 0 {
			return fmt.Sprintf("%d commands in the queue", n)
		}
		return ""
	})
}

func TestBadCommandsEndInTheDeadLetters(t *testing.T) {
	t.Parallel()
	r := harness.Start(t)
	events, err := r.JS.OrderedConsumer(t.Context(), subject.StreamEvents, jetstream.OrderedConsumerConfig{FilterSubjects: []string{subject.TenantEvents("acme")}})
	if err != nil {
		t.Fatal(err)
	}
	r.Scheduler("s1")
	for i, c := range []struct{ subject, body, code string }{
		{subject.Command("acme", "create", "k0"), `{"comand":["x"]}`, "invalid_argument"},
		{subject.Command("acme", "create", "k1"), `{"resources":{"memory_limit_bytes":-1}}`, "invalid_argument"},
		{subject.Command("acme", "create", "k2"), "\xff\xff\xff", "invalid_argument"},
		{subject.Command("acme", "dance", "k3"), `{}`, "invalid_argument"},
		{subject.Command("acme", "terminate", "k4"), `{"id":"sb-nothing"}`, "not_found"},
	} {
		if _, err := r.JS.PublishMsg(t.Context(), &nats.Msg{Subject: c.subject, Data: []byte(c.body)}); err != nil {
			t.Fatal(err)
		}
		msg, err := events.Next(jetstream.FetchMaxWait(20 * time.Second))
		if err != nil {
			t.Fatalf("command %d: no event: %v", i, err)
		}
		rejected := &siroccov1.RejectedCommand{}
		if err := proto.Unmarshal(msg.Data(), rejected); err != nil || rejected.GetCode() != c.code || rejected.GetKey() != fmt.Sprint("k", i) {
			t.Errorf("command %d: event %v, %v", i, rejected, err)
		}
	}
	queueEmpty(t, r)
}

func TestNoCapacityExplainsItself(t *testing.T) {
	t.Parallel()
	r := harness.Start(t)
	r.Scheduler("s1", func(c *scheduler.Config) { c.Patience = 300 * time.Millisecond })
	r.SimNode("n1", nil, func(c *agent.Config) { c.MemoryBytes = 100 << 20 })
	nodesReady(t, r, 1)
	command(t, r, subject.VerbCreate, "fits", &siroccov1.CreateSandboxRequest{Resources: &siroccov1.Resources{MemoryRequestBytes: 80 << 20}})
	await(t, r, idOf(t, r, "fits"), "running", running)
	command(t, r, subject.VerbCreate, "no", &siroccov1.CreateSandboxRequest{Resources: &siroccov1.Resources{MemoryRequestBytes: 80 << 20}})
	sb := await(t, r, idOf(t, r, "no"), "ended", ended)
	if end := sb.GetEnd(); end.GetCause() != siroccov1.Cause_CAUSE_NO_CAPACITY || end.GetMessage() != "no node fits: memory on 1; retry after 2 s" || end.GetLimit() != "node" {
		t.Errorf("end %v", end)
	}
}

func TestEndsOfASandbox(t *testing.T) {
	t.Parallel()
	r := harness.Start(t)
	r.Scheduler("s1")
	machine := agent.NewSimulation()
	r.SimNode("n1", machine)
	for _, c := range []struct {
		name string
		req  *siroccov1.CreateSandboxRequest
		then func(id string)
		want *siroccov1.End
	}{
		{"exit", &siroccov1.CreateSandboxRequest{Command: []string{"exit", "3"}}, nil,
			&siroccov1.End{Cause: siroccov1.Cause_CAUSE_EXITED, ExitCode: proto.Int32(3)}},
		{"lifetime", &siroccov1.CreateSandboxRequest{MaxLifetime: durationpb.New(time.Second)}, nil,
			&siroccov1.End{Cause: siroccov1.Cause_CAUSE_MAX_LIFETIME, Limit: "max_lifetime=1s"}},
		{"idle", &siroccov1.CreateSandboxRequest{Idle: &siroccov1.IdlePolicy{Timeout: durationpb.New(time.Second)}}, nil,
			&siroccov1.End{Cause: siroccov1.Cause_CAUSE_IDLE, Limit: "idle.timeout=1s"}},
		{"oom", &siroccov1.CreateSandboxRequest{}, func(id string) { _ = machine.Host.OOM(machineOf(t, r, "n1", id)) },
			&siroccov1.End{Cause: siroccov1.Cause_CAUSE_OOM, Limit: "memory_limit_bytes=536870912", ExitCode: proto.Int32(137), Signal: "SIGKILL"}},
		{"image", &siroccov1.CreateSandboxRequest{Image: agent.MissingImage}, nil,
			&siroccov1.End{Cause: siroccov1.Cause_CAUSE_IMAGE_ERROR}},
		{"command", &siroccov1.CreateSandboxRequest{Command: []string{"nosuch"}}, nil,
			&siroccov1.End{Cause: siroccov1.Cause_CAUSE_START_ERROR, ExitCode: proto.Int32(127)}},
		{"probe", &siroccov1.CreateSandboxRequest{Readiness: &siroccov1.Probe{TcpPort: 9, Timeout: durationpb.New(300 * time.Millisecond)}}, nil,
			&siroccov1.End{Cause: siroccov1.Cause_CAUSE_PROBE_FAILED, Limit: "readiness.timeout=300ms"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			command(t, r, subject.VerbCreate, c.name, c.req)
			id := idOf(t, r, c.name)
			if c.then != nil {
				await(t, r, id, "running", running)
				c.then(id)
			}
			end := await(t, r, id, "ended", ended).GetEnd()
			if end.GetCause() != c.want.GetCause() || end.GetLimit() != c.want.GetLimit() || end.GetSignal() != c.want.GetSignal() ||
				c.want.ExitCode != nil && end.GetExitCode() != c.want.GetExitCode() || end.GetMessage() == "" {
				t.Errorf("end %v, want %v", end, c.want)
			}
		})
	}
	harness.Eventually(t, 10*time.Second, func() string {
		if n := machine.Host.Len(); n > 0 {
			return fmt.Sprintf("%d sandboxes are left on the node", n)
		}
		return ""
	})
}

func TestStopWhileStarting(t *testing.T) {
	t.Parallel()
	r := harness.Start(t)
	r.Scheduler("s1")
	machine := agent.NewSimulation()
	r.SimNode("n1", machine, func(c *agent.Config) { c.SimStart = time.Hour })
	command(t, r, subject.VerbCreate, "k", &siroccov1.CreateSandboxRequest{})
	id := idOf(t, r, "k")
	await(t, r, id, "starting", func(sb *siroccov1.Sandbox) bool { return sb.GetState() == siroccov1.State_STATE_STARTING })
	command(t, r, subject.VerbTerminate, "stop", &siroccov1.TerminateSandboxRequest{Id: id})
	if sb := await(t, r, id, "ended", ended); sb.GetState() != siroccov1.State_STATE_STOPPED || sb.GetEnd().GetCause() != siroccov1.Cause_CAUSE_USER {
		t.Errorf("state %s, end %v", sb.GetState(), sb.GetEnd())
	}
}

// machineOf returns the id of what a sandbox runs in.
func machineOf(t *testing.T, r *harness.Region, node, sandbox string) string {
	t.Helper()
	id, err := invariants.MachineOf(invariants.Node{Name: node, RunDir: r.AgentConfig(node).StateDir}, sandbox)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestAgentComesBack(t *testing.T) {
	t.Parallel()
	r := harness.Start(t)
	r.Scheduler("s1")
	r.Reaper()
	machine := agent.NewSimulation()
	node := r.SimNode("n1", machine)
	var ids []string
	for i := range 10 {
		key := fmt.Sprint("k", i)
		command(t, r, subject.VerbCreate, key, &siroccov1.CreateSandboxRequest{MaxLifetime: durationpb.New(time.Hour)})
		ids = append(ids, idOf(t, r, key))
	}
	command(t, r, subject.VerbCreate, "short", &siroccov1.CreateSandboxRequest{MaxLifetime: durationpb.New(3 * time.Second)})
	short := idOf(t, r, "short")
	for _, id := range append(ids, short) {
		await(t, r, id, "running", running)
	}
	node.Stop()
	_ = machine.Host.End(machineOf(t, r, "n1", ids[0]), runtimeExit)
	command(t, r, subject.VerbTerminate, "stop", &siroccov1.TerminateSandboxRequest{Id: ids[1]})
	await(t, r, ids[1], "stopping", func(sb *siroccov1.Sandbox) bool { return sb.GetDesired().GetStop() })
	harness.Eventually(t, 10*time.Second, func() string {
		if sb, err := r.Store.Get(t.Context(), "acme", short); err != nil || time.Now().Before(sb.GetDesired().GetDeadline().AsTime()) {
			return "its deadline has not passed"
		}
		return ""
	})
	r.SimNode("n1", machine)
	await(t, r, ids[0], "ended", ended)
	await(t, r, ids[1], "ended", ended)
	if sb := await(t, r, short, "ended", ended); sb.GetEnd().GetCause() != siroccov1.Cause_CAUSE_MAX_LIFETIME {
		t.Errorf("a deadline that passed meanwhile: %v", sb.GetEnd())
	}
	for _, id := range ids[2:] {
		if sb := await(t, r, id, "running", running); sb.GetPlacement().GetEpoch() != 1 {
			t.Errorf("%s was placed again", id)
		}
	}
	harness.Eventually(t, 10*time.Second, func() string {
		if n := machine.Host.Len(); n != len(ids)-2 {
			return fmt.Sprintf("%d sandboxes on the node, want %d", n, len(ids)-2)
		}
		return ""
	})
}

func TestMachineRestarted(t *testing.T) {
	t.Parallel()
	r := harness.Start(t)
	r.Scheduler("s1")
	machine := agent.NewSimulation()
	node := r.SimNode("n1", machine)
	command(t, r, subject.VerbCreate, "k", &siroccov1.CreateSandboxRequest{})
	id := idOf(t, r, "k")
	await(t, r, id, "running", running)
	node.Stop()
	machine.Host.Crash()
	r.SimNode("n1", machine)
	if sb := await(t, r, id, "ended", ended); sb.GetEnd().GetCause() != siroccov1.Cause_CAUSE_NODE_LOST {
		t.Errorf("end %v", sb.GetEnd())
	}
}

func TestManyAtOnceOnTwoSchedulers(t *testing.T) {
	t.Parallel()
	r := harness.Start(t)
	r.Scheduler("s1")
	r.Scheduler("s2")
	r.Reaper()
	machines := map[string]*agent.Simulation{}
	for i := range 3 {
		name := fmt.Sprint("n", i)
		machines[name] = agent.NewSimulation()
		r.SimNode(name, machines[name], func(c *agent.Config) { c.SimFailures = 0.05 })
	}
	const n = 300
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			msg, err := bus.NewMsg(t.Context(), subject.Command("acme", subject.VerbCreate, fmt.Sprint("k", i)), &siroccov1.CreateSandboxRequest{Command: []string{"exit", "0"}})
			if err == nil {
				_, err = r.JS.PublishMsg(t.Context(), msg)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	kv, err := r.JS.KeyValue(t.Context(), subject.BucketSandboxes)
	if err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, 60*time.Second, func() string {
		keys, err := kv.Keys(t.Context())
		if err != nil && !errors.Is(err, jetstream.ErrNoKeysFound) {
			return err.Error()
		}
		done := 0
		for _, k := range keys {
			tenant, id, _ := subject.ParseRecordKey(k)
			sb, err := r.Store.Get(t.Context(), tenant, id)
			if err != nil {
				return fault.From(err).Error()
			}
			if ended(sb) {
				done++
			}
		}
		if len(keys) != n || done != n {
			return fmt.Sprintf("%d records, %d ended, want %d", len(keys), done, n)
		}
		return ""
	})
	for name, m := range machines {
		harness.Eventually(t, 10*time.Second, func() string {
			if left := m.Host.Len(); left > 0 {
				return fmt.Sprintf("%d sandboxes are left on %s", left, name)
			}
			return ""
		})
	}
}

// runtimeExit is the end of a sandbox that somebody killed from outside.
var runtimeExit = runtime.Exit{Code: 137, Signal: "SIGKILL"}
