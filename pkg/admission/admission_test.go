package admission

import (
	"strings"
	"testing"
	"time"

	"github.com/sirocco-run/sirocco/pkg/fault"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

func TestDefaults(t *testing.T) {
	spec, err := Normalize(&siroccov1.CreateSandboxRequest{}, DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	if spec.GetImage() != "base" || spec.GetMaxLifetime().AsDuration() != 5*time.Minute ||
		spec.GetNetwork().GetMode() != siroccov1.NetworkMode_NETWORK_MODE_OPEN || spec.GetResources().GetMemoryLimitBytes() == 0 {
		t.Errorf("defaults: %v", spec)
	}
	again, err := Normalize(spec, DefaultLimits())
	if err != nil || !proto.Equal(spec, again) {
		t.Errorf("Normalize twice: %v, %v", again, err)
	}
}

func TestBadRequests(t *testing.T) {
	env := func(name, value string) *siroccov1.CreateSandboxRequest {
		return &siroccov1.CreateSandboxRequest{Env: map[string]string{name: value}}
	}
	port := func(p *siroccov1.Port) *siroccov1.CreateSandboxRequest {
		return &siroccov1.CreateSandboxRequest{Ports: []*siroccov1.Port{p}}
	}
	res := func(r *siroccov1.Resources) *siroccov1.CreateSandboxRequest {
		return &siroccov1.CreateSandboxRequest{Resources: r}
	}
	for _, c := range []struct {
		field string
		req   *siroccov1.CreateSandboxRequest
	}{
		{"", env("A", strings.Repeat("x", 2<<20))},
		{"env", env("A", strings.Repeat("x", 200<<10))},
		{"env", env("1A", "x")},
		{"env", env("A=B", "x")},
		{"env.A", env("A", "a\x00b")},
		{"env.A", env("A", "\xff\xfe")},
		{"command[1]", &siroccov1.CreateSandboxRequest{Command: []string{"echo", "\xff"}}},
		{"command[0]", &siroccov1.CreateSandboxRequest{Command: []string{""}}},
		{"image", &siroccov1.CreateSandboxRequest{Image: "../../etc"}},
		{"image", &siroccov1.CreateSandboxRequest{Image: "a b"}},
		{"workdir", &siroccov1.CreateSandboxRequest{Workdir: "rel"}},
		{"workdir", &siroccov1.CreateSandboxRequest{Workdir: "/a/../b"}},
		{"user", &siroccov1.CreateSandboxRequest{User: "root; rm"}},
		{"resources.memory_limit_bytes", res(&siroccov1.Resources{MemoryLimitBytes: -1})},
		{"resources.memory_limit_bytes", res(&siroccov1.Resources{MemoryLimitBytes: 1})},
		{"resources.memory_request_bytes", res(&siroccov1.Resources{MemoryRequestBytes: 2 << 30, MemoryLimitBytes: 1 << 30})},
		{"resources.cpu_request_millis", res(&siroccov1.Resources{CpuRequestMillis: 2000, CpuLimitMillis: 1000})},
		{"resources.pids_limit", res(&siroccov1.Resources{PidsLimit: -5})},
		{"resources.disk_limit_bytes", res(&siroccov1.Resources{DiskLimitBytes: 1 << 60})},
		{"max_lifetime", &siroccov1.CreateSandboxRequest{MaxLifetime: durationpb.New(25 * time.Hour)}},
		{"max_lifetime", &siroccov1.CreateSandboxRequest{MaxLifetime: durationpb.New(-time.Second)}},
		{"max_lifetime", &siroccov1.CreateSandboxRequest{MaxLifetime: &durationpb.Duration{Seconds: 1, Nanos: -1}}},
		{"idle.timeout", &siroccov1.CreateSandboxRequest{Idle: &siroccov1.IdlePolicy{Timeout: durationpb.New(time.Millisecond)}}},
		{"ports[0].port", port(&siroccov1.Port{Port: 70000})},
		{"ports[0].port", port(&siroccov1.Port{})},
		{"ports[0].port", port(&siroccov1.Port{Port: 49983})},
		{"ports[0].bearer_token", port(&siroccov1.Port{Port: 80, BearerToken: "a\nb"})},
		{"ports[0].bearer_token", port(&siroccov1.Port{Port: 80, BearerToken: " "})},
		{"ports[0].bearer_token", port(&siroccov1.Port{Port: 80, BearerToken: "a\x7f"})},
		{"ports[0].protocol", port(&siroccov1.Port{Port: 80, Protocol: 9})},
		{"ports[0].bearer_token", port(&siroccov1.Port{Port: 80, Protocol: siroccov1.Protocol_PROTOCOL_TCP, BearerToken: "x"})},
		{"ports[1].port", &siroccov1.CreateSandboxRequest{Ports: []*siroccov1.Port{{Port: 80}, {Port: 80}}}},
		{"network.allowed_cidrs[0]", &siroccov1.CreateSandboxRequest{Network: &siroccov1.NetworkPolicy{AllowedCidrs: []string{"x"}}}},
		{"network.allowed_cidrs[0]", &siroccov1.CreateSandboxRequest{Network: &siroccov1.NetworkPolicy{AllowedCidrs: []string{"2001:db8::/32"}}}},
		{"network.allowed_cidrs", &siroccov1.CreateSandboxRequest{Network: &siroccov1.NetworkPolicy{Mode: siroccov1.NetworkMode_NETWORK_MODE_ALLOWED}}},
		{"readiness", &siroccov1.CreateSandboxRequest{Readiness: &siroccov1.Probe{}}},
		{"readiness.tcp_port", &siroccov1.CreateSandboxRequest{Readiness: &siroccov1.Probe{TcpPort: 70000}}},
		{"name", &siroccov1.CreateSandboxRequest{Name: "a.b"}},
		{"name", &siroccov1.CreateSandboxRequest{Name: "sb-web"}},
		{"tags", &siroccov1.CreateSandboxRequest{Tags: map[string]string{"a b": "c"}}},
		{"idempotency_key", &siroccov1.CreateSandboxRequest{IdempotencyKey: "a.b"}},
		{"regions[0]", &siroccov1.CreateSandboxRequest{Regions: []string{"e.u"}}},
		{"wait", &siroccov1.CreateSandboxRequest{Wait: 9}},
	} {
		_, err := Normalize(c.req, DefaultLimits())
		f := fault.From(err)
		if f == nil || f.Code != fault.InvalidArgument || f.Field != c.field {
			t.Errorf("field %q: got %v", c.field, err)
		}
	}
}

func FuzzNormalize(f *testing.F) {
	f.Add([]byte(`{"command":["echo","hi"],"ports":[{"port":8000}],"idle":{"timeout":"60s"}}`))
	f.Add([]byte(`{"resources":{"memory_limit_bytes":"-1"},"name":"a.b"}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		req := &siroccov1.CreateSandboxRequest{}
		if protojson.Unmarshal(raw, req) != nil {
			return
		}
		spec, err := Normalize(req, DefaultLimits())
		if err != nil {
			if fault.CodeOf(err) != fault.InvalidArgument {
				t.Fatalf("not an invalid_argument: %v", err)
			}
			return
		}
		again, err := Normalize(spec, DefaultLimits())
		if err != nil || !proto.Equal(again, spec) {
			t.Fatalf("Normalize changes what it returned: %v, %v", again, err)
		}
	})
}
