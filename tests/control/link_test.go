package control

import (
	"os"
	"testing"
	"time"

	"github.com/sirocco-run/sirocco/pkg/link"
	"github.com/sirocco-run/sirocco/pkg/subject"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/sirocco-run/sirocco/services/node-agent/agent"
	"github.com/sirocco-run/sirocco/tests/harness"
	"google.golang.org/protobuf/proto"
)

// An agent offers relays on its machine a socket, by which it checks the same as
// by TLS, and a new one each time it starts.
func TestTheLinkBySocket(t *testing.T) {
	t.Parallel()
	r := harness.Start(t)
	r.Scheduler("s1")
	dir, err := os.MkdirTemp("", "n") // shorter than the test's own
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	keys, err := r.Keys.ClientTLS()
	if err != nil {
		t.Fatal(err)
	}
	machine := agent.NewSimulation()
	start := func() *harness.Service {
		return r.SimNode("n1", machine, func(c *agent.Config) { c.StateDir = dir })
	}
	// said waits for what the node says of itself, once that has another socket.
	said := func(but string) *siroccov1.Node {
		node := &siroccov1.Node{}
		harness.Eventually(t, 20*time.Second, func() string {
			kv, err := r.JS.KeyValue(t.Context(), subject.BucketNodes)
			if err != nil {
				return err.Error()
			}
			e, err := kv.Get(t.Context(), subject.NodeKey(r.Env("test", "").Region, "n1"))
			if err != nil {
				return err.Error()
			}
			if err := proto.Unmarshal(e.Value(), node); err != nil {
				return err.Error()
			}
			if !node.GetReady() || node.GetLinkSocket() == but {
				return "no new socket is offered"
			}
			return ""
		})
		return node
	}
	first := start()
	node := said("")
	if own, err := link.MachineID(); err != nil || node.GetBootId() != own {
		t.Errorf("the node is on machine %q, %v; want %q", node.GetBootId(), err, own)
	}
	command(t, r, subject.VerbCreate, "k", &siroccov1.CreateSandboxRequest{Command: []string{"sleep", "infinity"}})
	id := idOf(t, r, "k")
	epoch := await(t, r, id, "running", running).GetPlacement().GetEpoch()
	check := func(node *siroccov1.Node) {
		t.Helper()
		for _, socket := range []string{"", node.GetLinkSocket()} {
			dialer := link.NewDialer(keys, r.Log)
			dialer.Local(node.GetAddress(), socket)
			conn, err := dialer.Open(t.Context(), node.GetAddress(), link.Header{Kind: link.KindData})
			if err != nil {
				t.Fatal(err)
			}
			if got := conn.LocalAddr().Network() == "unix"; got != (socket != "") {
				t.Errorf("socket %q: by %s", socket, conn.LocalAddr().Network())
			}
			_ = conn.Close()
			for what, h := range map[string]link.Header{
				"an old epoch":   {Tenant: "acme", Sandbox: id, Epoch: epoch - 1},
				"a coming epoch": {Tenant: "acme", Sandbox: id, Epoch: epoch + 1},
				"another tenant": {Tenant: "other", Sandbox: id, Epoch: epoch},
			} {
				h.Kind, h.Port = link.KindPort, 80
				if conn, err := dialer.Open(t.Context(), node.GetAddress(), h); !link.IsNotHere(err) {
					t.Errorf("socket %q, %s: %v, %v", socket, what, conn, err)
				}
			}
			dialer.Close()
		}
	}
	check(node)
	first.Stop()
	start()
	check(said(node.GetLinkSocket()))
}
