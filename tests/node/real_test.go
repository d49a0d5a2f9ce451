// Package node tests a node with real sandboxes: gVisor, images and network.
package node

import (
	"os"
	"testing"
	"time"

	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/subject"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/sirocco-run/sirocco/tests/harness"
	"github.com/sirocco-run/sirocco/services/node-agent/agent"
)

func TestSmoke(t *testing.T) {
	r := harness.Start(t)
	r.Scheduler("s1")
	cfg := r.AgentConfig("real1")
	bin := os.Getenv("SIROCCO_BIN")
	dir, _ := os.MkdirTemp("/tmp", "srn")
	cfg.StateDir = dir
	cfg.Runsc, cfg.Supervisor, cfg.Base = bin+"/runsc", bin+"/guest/init", bin+"/guest/base"
	a, err := agent.New(r.Env("node-agent", "real1"), cfg)
	r.Run("node-agent", a, err)
	for i, key := range []string{"a", "b"} {
		msg, _ := bus.NewMsg(t.Context(), subject.Command("acme", subject.VerbCreate, key), &siroccov1.CreateSandboxRequest{Command: []string{"sh", "-c", "echo hello; exit 3"}})
		if _, err := r.JS.PublishMsg(t.Context(), msg); err != nil {
			t.Fatal(err)
		}
		harness.Eventually(t, 30*time.Second, func() string {
			kv, _ := r.JS.KeyValue(t.Context(), subject.BucketSandboxes)
			keys, _ := kv.Keys(t.Context())
			n := 0
			for _, k := range keys {
				tenant, id, _ := subject.ParseRecordKey(k)
				sb, err := r.Store.Get(t.Context(), tenant, id)
				if err != nil {
					return err.Error()
				}
				if sb.GetEnd() == nil {
					return sb.GetState().String()
				}
				
				n++
			}
			if n <= i {
				return "few"
			}
			return ""
		})
	}
}
