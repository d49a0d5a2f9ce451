package api_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/sirocco-run/sirocco/pkg/apikey"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/quota"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/sirocco-run/sirocco/services/api/api"
	"google.golang.org/protobuf/proto"
)

// awaitQuota lists quotas until that of a tenant is as wanted.
func awaitQuota(ctx context.Context, t *testing.T, tr transport, tenant string, want func(*siroccov1.Quota) bool) {
	t.Helper()
	for end := time.Now().Add(wait); ; {
		resp := &siroccov1.ListQuotasResponse{}
		if err := tr.call(ctx, "QuotaService/List", &siroccov1.ListQuotasRequest{}, resp); err != nil {
			t.Fatalf("%s: %v", tr.name, err)
		}
		var found *siroccov1.Quota
		for _, q := range resp.GetQuotas() {
			if q.GetTenant() == tenant {
				found = q
			}
		}
		if want(found) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s: %v", tr.name, resp)
		}
	}
}

// An operator gives a tenant limits of its own, over every transport, and they
// hold for what is created from then on.
func TestQuotas(t *testing.T) {
	r := start(t, api.Config{Quota: quota.Limits{Live: 100, MemoryBytes: 1 << 40}})
	ctx := t.Context()
	for i, tr := range r.transports("ops", r.key("ops", apikey.RoleOperator)) {
		tenant := fmt.Sprintf("t%d", i)
		create := r.transports(tenant, r.key(tenant, apikey.RoleTenant))[0].call
		q := &siroccov1.Quota{}
		if err := tr.call(ctx, "QuotaService/Set", &siroccov1.SetQuotaRequest{Tenant: tenant, Limits: &siroccov1.QuotaLimits{
			Live: proto.Int32(2), MemoryBytes: proto.Int64(1 << 30), CreateRate: proto.Float64(0.001), CreateBurst: proto.Int32(4),
		}}, q); err != nil || q.GetLimits().GetLive() != 2 || q.GetLimits().GetMemoryBytes() != 1<<30 {
			t.Fatalf("%s: %v, %v", tr.name, q, err)
		}
		awaitQuota(ctx, t, tr, tenant, func(q *siroccov1.Quota) bool { return q.GetOwn().GetLive() == 2 })
		memory := func(bytes int64) *siroccov1.CreateSandboxRequest {
			return &siroccov1.CreateSandboxRequest{Resources: &siroccov1.Resources{MemoryRequestBytes: bytes}}
		}
		refused := func(req *siroccov1.CreateSandboxRequest, limit string) {
			t.Helper()
			f := fault.From(create(ctx, "SandboxService/Create", req, &siroccov1.CreateSandboxResponse{}))
			if f == nil || f.Code != fault.Quota || f.Scope != "tenant" || f.Field != limit || f.RetryAfter <= 0 {
				t.Errorf("%s: want %s, got %+v", tr.name, limit, f)
			}
		}
		made := func(req *siroccov1.CreateSandboxRequest) string {
			t.Helper()
			resp := &siroccov1.CreateSandboxResponse{}
			if err := create(ctx, "SandboxService/Create", req, resp); err != nil {
				t.Fatalf("%s: %v", tr.name, err)
			}
			return resp.GetSandbox().GetId()
		}
		made(memory(800 << 20))
		refused(memory(800<<20), quota.Memory)
		made(memory(64 << 20))
		refused(memory(64<<20), quota.Live)
		awaitQuota(ctx, t, tr, tenant, func(q *siroccov1.Quota) bool { return q.GetLive() == 2 && q.GetMemoryBytes() == 864<<20 })
		// The region's limits for the rest, none for the rate's burst: it was used up
		// by what was made, not by what was refused.
		if err := tr.call(ctx, "QuotaService/Set", &siroccov1.SetQuotaRequest{Tenant: tenant, Limits: &siroccov1.QuotaLimits{
			CreateRate: proto.Float64(0.001), CreateBurst: proto.Int32(4),
		}}, q); err != nil {
			t.Fatalf("%s: %v", tr.name, err)
		}
		awaitQuota(ctx, t, tr, tenant, func(q *siroccov1.Quota) bool { return q.GetOwn().Live == nil && q.GetLimits().GetLive() == 100 })
		made(memory(64 << 20))
		made(memory(64 << 20))
		refused(memory(64<<20), quota.CreateRate)
		if err := tr.call(ctx, "QuotaService/Remove", &siroccov1.RemoveQuotaRequest{Tenant: tenant}, &siroccov1.RemoveQuotaResponse{}); err != nil {
			t.Fatalf("%s: %v", tr.name, err)
		}
		awaitQuota(ctx, t, tr, tenant, func(q *siroccov1.Quota) bool { return q != nil && q.GetOwn() == nil })
		made(memory(64 << 20))
		for name, c := range map[string]struct {
			err   error
			code  fault.Code
			field string
		}{
			"removed twice": {tr.call(ctx, "QuotaService/Remove", &siroccov1.RemoveQuotaRequest{Tenant: tenant}, &siroccov1.RemoveQuotaResponse{}), fault.NotFound, ""},
			"negative": {tr.call(ctx, "QuotaService/Set", &siroccov1.SetQuotaRequest{Tenant: tenant, Limits: &siroccov1.QuotaLimits{Live: proto.Int32(-1)}}, q),
				fault.InvalidArgument, "limits.live"},
			"a bad tenant": {tr.call(ctx, "QuotaService/Set", &siroccov1.SetQuotaRequest{Tenant: "sirocco"}, q), fault.InvalidArgument, "tenant"},
		} {
			if f := fault.From(c.err); f == nil || f.Code != c.code || f.Field != c.field {
				t.Errorf("%s: %s: %v", tr.name, name, c.err)
			}
		}
	}
}

// The deadline of a call goes with a create that nobody could ask for again, and
// with no other.
func TestDeadlineOfTheCall(t *testing.T) {
	r := start(t, api.Config{})
	grpc := r.transports("acme", r.key("acme", apikey.RoleTenant))[0]
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	until, _ := ctx.Deadline()
	for name, c := range map[string]struct {
		req  *siroccov1.CreateSandboxRequest
		want bool
	}{
		"waits, no key": {&siroccov1.CreateSandboxRequest{}, true},
		"with a key":    {&siroccov1.CreateSandboxRequest{IdempotencyKey: "k"}, false},
		"does not wait": {&siroccov1.CreateSandboxRequest{Wait: siroccov1.Wait_WAIT_ACCEPTED}, false},
		"waits, a name": {&siroccov1.CreateSandboxRequest{Name: "web"}, true},
	} {
		resp := &siroccov1.CreateSandboxResponse{}
		if err := grpc.call(ctx, "SandboxService/Create", c.req, resp); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got := resp.GetSandbox().GetSpec().GetStartDeadline()
		if (got != nil) != c.want || got != nil && until.Sub(got.AsTime()).Abs() > 5*time.Second {
			t.Errorf("%s: start_deadline %v; the call's is %v", name, got.AsTime(), until)
		}
	}
}
