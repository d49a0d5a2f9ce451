package api_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/sirocco-run/sirocco/pkg/apikey"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/record"
	"github.com/sirocco-run/sirocco/pkg/subject"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/sirocco-run/sirocco/services/api/api"
	"google.golang.org/protobuf/proto"
)

// awaitPools lists pools until they are what is wanted.
func awaitPools(ctx context.Context, t *testing.T, tr transport, want func([]*siroccov1.Pool) bool) []*siroccov1.Pool {
	t.Helper()
	for end := time.Now().Add(wait); ; {
		resp := &siroccov1.ListPoolsResponse{}
		if err := tr.call(ctx, "PoolService/List", &siroccov1.ListPoolsRequest{}, resp); err != nil {
			t.Fatalf("%s: %v", tr.name, err)
		}
		if want(resp.GetPools()) {
			return resp.GetPools()
		}
		if time.Now().After(end) {
			t.Fatalf("%s: %v", tr.name, resp)
		}
	}
}

func named(names ...string) func([]*siroccov1.Pool) bool {
	return func(pools []*siroccov1.Pool) bool {
		var got []string
		for _, p := range pools {
			got = append(got, p.GetName())
		}
		return slices.Equal(got, names)
	}
}

func TestPools(t *testing.T) {
	r := start(t, api.Config{})
	ctx := t.Context()
	bucket, err := r.js.KeyValue(ctx, subject.BucketPools)
	if err != nil {
		t.Fatal(err)
	}
	for _, tr := range r.transports("ops", r.key("ops", apikey.RoleOperator)) {
		set := func(req *siroccov1.SetPoolRequest) *siroccov1.Pool {
			t.Helper()
			p := &siroccov1.Pool{}
			if err := tr.call(ctx, "PoolService/Set", req, p); err != nil {
				t.Fatalf("%s: set %s: %v", tr.name, req.GetName(), err)
			}
			return p
		}
		stored := func(name string) *siroccov1.Pool {
			t.Helper()
			entry, err := bucket.Get(ctx, subject.PoolKey("eu", name))
			if err != nil {
				t.Fatalf("%s: %v", tr.name, err)
			}
			p := &siroccov1.Pool{}
			if err := proto.Unmarshal(entry.Value(), p); err != nil {
				t.Fatalf("%s: %v", tr.name, err)
			}
			return p
		}
		web := &siroccov1.SetPoolRequest{Name: "web", Warm: 8, Max: 64, Template: &siroccov1.Template{Image: "host", Resources: &siroccov1.Resources{MemoryLimitBytes: 1 << 30}}}
		first, plain := set(web), set(&siroccov1.SetPoolRequest{Name: "a-plain_1", Warm: 2})
		if first.GetWarm() != 8 || first.GetMax() != 64 || first.GetTemplate().GetResources().GetPidsLimit() == 0 ||
			first.GetTemplate().GetNetwork().GetMode() != siroccov1.NetworkMode_NETWORK_MODE_OPEN || plain.GetTemplate().GetImage() != "base" {
			t.Errorf("%s: %v, %v", tr.name, first, plain)
		}
		if again := set(web); !proto.Equal(again, first) || !proto.Equal(stored("web"), first) {
			t.Errorf("%s: set again: %v, stored %v; want %v", tr.name, again, stored("web"), first)
		}
		list := awaitPools(ctx, t, tr, named("a-plain_1", "web"))
		if !proto.Equal(list[1], first) {
			t.Errorf("%s: listed %v; want %v", tr.name, list[1], first)
		}
		// A set replaces all of it.
		if p := set(&siroccov1.SetPoolRequest{Name: "web", Warm: 1}); p.GetMax() != 0 || p.GetKey() != plain.GetKey() || !proto.Equal(stored("web"), p) {
			t.Errorf("%s: replaced: %v", tr.name, p)
		}
		for _, name := range []string{"web", "a-plain_1"} {
			if err := tr.call(ctx, "PoolService/Remove", &siroccov1.RemovePoolRequest{Name: name}, &siroccov1.RemovePoolResponse{}); err != nil {
				t.Errorf("%s: remove %s: %v", tr.name, name, err)
			}
			if err := tr.call(ctx, "PoolService/Remove", &siroccov1.RemovePoolRequest{Name: name}, &siroccov1.RemovePoolResponse{}); fault.CodeOf(err) != fault.NotFound {
				t.Errorf("%s: remove %s again: %v", tr.name, name, err)
			}
		}
		awaitPools(ctx, t, tr, named())
	}
}

// What nodes hold is joined to what is declared; what is not declared is
// listed as learned.
func TestPoolsShowWhatNodesHold(t *testing.T) {
	r := start(t, api.Config{})
	ctx := t.Context()
	tr := r.transports("ops", r.key("ops", apikey.RoleOperator))[0]
	pool := &siroccov1.Pool{}
	if err := tr.call(ctx, "PoolService/Set", &siroccov1.SetPoolRequest{Name: "web", Warm: 3}, pool); err != nil {
		t.Fatal(err)
	}
	nodes, err := r.js.KeyValue(ctx, subject.BucketNodes)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []*siroccov1.Node{
		{Name: "n2", Region: "eu", Warm: map[string]int32{pool.GetKey(): 1, "00ff": 4, "empty": 0}},
		{Name: "n1", Region: "eu", Warm: map[string]int32{pool.GetKey(): 3}},
		{Name: "n3", Region: "us", Warm: map[string]int32{pool.GetKey(): 9, "elsewhere": 9}},
	} {
		raw, err := proto.Marshal(n)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := nodes.Put(ctx, subject.NodeKey(n.GetRegion(), n.GetName()), raw); err != nil {
			t.Fatal(err)
		}
	}
	eu := func(node string, ready int32) *siroccov1.PoolNode {
		return &siroccov1.PoolNode{Node: node, Region: "eu", Ready: ready}
	}
	declared, learned := proto.CloneOf(pool), &siroccov1.Pool{Key: "00ff", Nodes: []*siroccov1.PoolNode{eu("n2", 4)}}
	declared.Nodes = []*siroccov1.PoolNode{eu("n1", 3), eu("n2", 1)}
	equal := func(want ...*siroccov1.Pool) func([]*siroccov1.Pool) bool {
		return func(got []*siroccov1.Pool) bool {
			return slices.EqualFunc(got, want, func(x, y *siroccov1.Pool) bool { return proto.Equal(x, y) })
		}
	}
	awaitPools(ctx, t, tr, equal(declared, learned))
	if err := tr.call(ctx, "PoolService/Remove", &siroccov1.RemovePoolRequest{Name: "web"}, &siroccov1.RemovePoolResponse{}); err != nil {
		t.Fatal(err)
	}
	undeclared := &siroccov1.Pool{Key: pool.GetKey(), Nodes: declared.GetNodes()}
	awaitPools(ctx, t, tr, func(got []*siroccov1.Pool) bool {
		return equal(learned, undeclared)(got) || equal(undeclared, learned)(got)
	})
}

// A pool's key is that of the records of the requests that it can serve.
func TestPoolKeyIsTheRequests(t *testing.T) {
	r := start(t, api.Config{})
	ctx := t.Context()
	tr := r.transports("ops", r.key("ops", apikey.RoleOperator))[0]
	ranges := func(cidrs ...string) *siroccov1.NetworkPolicy {
		return &siroccov1.NetworkPolicy{AllowedCidrs: cidrs}
	}
	seen := map[string]bool{}
	for _, c := range []struct {
		template *siroccov1.Template
		request  *siroccov1.CreateSandboxRequest
	}{
		{nil, &siroccov1.CreateSandboxRequest{Command: []string{"true"}, Env: map[string]string{"A": "b"}, Ports: []*siroccov1.Port{{Port: 80}}}},
		{&siroccov1.Template{Image: "python:3.14"}, &siroccov1.CreateSandboxRequest{Image: "python:3.14", Name: "web"}},
		{
			&siroccov1.Template{Resources: &siroccov1.Resources{CpuRequestMillis: 1500, MemoryRequestBytes: 1 << 30}},
			&siroccov1.CreateSandboxRequest{Resources: &siroccov1.Resources{CpuRequestMillis: 1500, CpuLimitMillis: 1500, MemoryRequestBytes: 1 << 30, MemoryLimitBytes: 1 << 30}},
		},
		{&siroccov1.Template{Network: ranges("1.2.3.0/24", "4.5.6.7")}, &siroccov1.CreateSandboxRequest{Network: ranges("4.5.6.7", "1.2.3.0/24")}},
	} {
		pool, made := &siroccov1.Pool{}, &siroccov1.CreateSandboxResponse{}
		if err := tr.call(ctx, "PoolService/Set", &siroccov1.SetPoolRequest{Name: "p", Template: c.template}, pool); err != nil {
			t.Fatal(err)
		}
		if err := tr.call(ctx, "SandboxService/Create", c.request, made); err != nil {
			t.Fatal(err)
		}
		if key := record.TemplateKey(made.GetSandbox().GetSpec()); key == "" || key != pool.GetKey() || seen[key] {
			t.Errorf("%v: the pool has the key %q, the sandbox %q", c.template, pool.GetKey(), key)
		}
		seen[pool.GetKey()] = true
	}
}

func TestBadPoolsAreRefused(t *testing.T) {
	r := start(t, api.Config{})
	ctx := t.Context()
	template := func(image string, res *siroccov1.Resources) *siroccov1.Template {
		return &siroccov1.Template{Image: image, Resources: res}
	}
	for _, tr := range r.transports("ops", r.key("ops", apikey.RoleOperator)) {
		for field, req := range map[string]*siroccov1.SetPoolRequest{
			"name":                                  {Name: "a.b", Warm: 1},
			"warm":                                  {Name: "p", Warm: 10_001},
			"max":                                   {Name: "p", Warm: 5, Max: 4},
			"template.image":                        {Name: "p", Template: template("a b", nil)},
			"template.resources.memory_limit_bytes": {Name: "p", Template: template("", &siroccov1.Resources{MemoryLimitBytes: 1})},
			"template.network.mode":                 {Name: "p", Template: &siroccov1.Template{Network: &siroccov1.NetworkPolicy{Mode: 9}}},
		} {
			f := fault.From(tr.call(ctx, "PoolService/Set", req, &siroccov1.Pool{}))
			if f == nil || f.Code != fault.InvalidArgument || f.Field != field || f.Message == "" {
				t.Errorf("%s: want invalid_argument of %s, got %v", tr.name, field, f)
			}
		}
		if f := fault.From(tr.call(ctx, "PoolService/Remove", &siroccov1.RemovePoolRequest{Name: "a.b"}, &siroccov1.RemovePoolResponse{})); f == nil || f.Code != fault.InvalidArgument || f.Field != "name" {
			t.Errorf("%s: remove: %v", tr.name, f)
		}
		awaitPools(ctx, t, tr, named())
	}
}
