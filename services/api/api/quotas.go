package api

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/apikey"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/quota"
	"github.com/sirocco-run/sirocco/pkg/subject"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/proto"
)

// limitsOf returns what holds for a tenant.
func (a *API) limitsOf(tenant string) quota.Limits {
	own, _ := a.quotas.Get(subject.QuotaKey(a.env.Region, tenant))
	return a.cfg.Quota.With(own)
}

// quotaOf is what a tenant may have, and has.
func (a *API) quotaOf(tenant string, own *siroccov1.QuotaLimits, has quota.Usage) *siroccov1.Quota {
	return &siroccov1.Quota{
		Tenant: tenant, Own: own, Limits: a.cfg.Quota.With(own).Message(),
		Live: int32(min(has.Live, math.MaxInt32)), MemoryBytes: has.MemoryBytes, //nolint:gosec // bounded here
	}
}

func (a *API) listQuotas(_ context.Context, c caller, _ *siroccov1.ListQuotasRequest) (*siroccov1.ListQuotasResponse, error) {
	if err := c.mustOperate(); err != nil {
		return nil, err
	}
	own := map[string]*siroccov1.QuotaLimits{}
	for key, l := range a.quotas.All() {
		if region, tenant, err := subject.ParseQuotaKey(key); err == nil && region == a.env.Region {
			own[tenant] = l
		}
	}
	has := a.seats.usage()
	known := maps.Clone(own)
	for tenant := range has {
		known[tenant] = nil
	}
	resp := &siroccov1.ListQuotasResponse{}
	for _, tenant := range slices.Sorted(maps.Keys(known)) {
		resp.Quotas = append(resp.Quotas, a.quotaOf(tenant, own[tenant], has[tenant]))
	}
	return resp, nil
}

// setQuota gives a tenant limits of its own. Every api follows the bucket; of two
// calls at once, the later one stays.
func (a *API) setQuota(ctx context.Context, c caller, req *siroccov1.SetQuotaRequest) (*siroccov1.Quota, error) {
	if err := c.mustOperate(); err != nil {
		return nil, err
	}
	if err := apikey.CheckTenant(req.GetTenant()); err != nil {
		return nil, err
	}
	own := req.GetLimits()
	if own == nil {
		own = &siroccov1.QuotaLimits{}
	}
	if err := a.cfg.Quota.With(own).Check(); err != nil {
		f := *fault.From(err)
		f.Field = "limits." + f.Field
		return nil, &f
	}
	value, err := proto.Marshal(own)
	if err != nil {
		return nil, fmt.Errorf("encode quota of %s: %w", req.GetTenant(), err)
	}
	if _, err := a.quotaBucket.Put(ctx, subject.QuotaKey(a.env.Region, req.GetTenant()), value); err != nil {
		return nil, away("set quota of "+req.GetTenant(), err)
	}
	return a.quotaOf(req.GetTenant(), own, a.seats.usage()[req.GetTenant()]), nil
}

func (a *API) removeQuota(ctx context.Context, c caller, req *siroccov1.RemoveQuotaRequest) (*siroccov1.RemoveQuotaResponse, error) {
	if err := c.mustOperate(); err != nil {
		return nil, err
	}
	if err := apikey.CheckTenant(req.GetTenant()); err != nil {
		return nil, err
	}
	err := remove(ctx, a.quotaBucket, subject.QuotaKey(a.env.Region, req.GetTenant()))
	switch {
	case errors.Is(err, jetstream.ErrKeyNotFound):
		return nil, fault.New(fault.NotFound, "tenant %s has no quota of its own", req.GetTenant())
	case err != nil:
		return nil, away("remove quota of "+req.GetTenant(), err)
	}
	return &siroccov1.RemoveQuotaResponse{}, nil
}
