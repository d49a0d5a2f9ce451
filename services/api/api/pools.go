package api

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/admission"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/record"
	"github.com/sirocco-run/sirocco/pkg/subject"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/proto"
)

func (a *API) listPools(_ context.Context, c caller, _ *siroccov1.ListPoolsRequest) (*siroccov1.ListPoolsResponse, error) {
	if err := c.mustOperate(); err != nil {
		return nil, err
	}
	resp := &siroccov1.ListPoolsResponse{}
	for key, p := range a.pools.All() {
		if region, _, err := subject.ParsePoolKey(key); err == nil && region == a.env.Region {
			resp.Pools = append(resp.Pools, proto.CloneOf(p))
		}
	}
	slices.SortFunc(resp.Pools, func(x, y *siroccov1.Pool) int { return cmp.Compare(x.GetName(), y.GetName()) })
	held := a.warmByKey()
	learned := maps.Clone(held)
	for _, p := range resp.Pools {
		p.Nodes = held[p.GetKey()]
		delete(learned, p.GetKey())
	}
	for _, key := range slices.Sorted(maps.Keys(learned)) {
		resp.Pools = append(resp.Pools, &siroccov1.Pool{Key: key, Nodes: learned[key]})
	}
	return resp, nil
}

// warmByKey returns what the nodes of the region hold warm, by template key;
// for each key in the order of the nodes' names.
func (a *API) warmByKey() map[string][]*siroccov1.PoolNode {
	held := map[string][]*siroccov1.PoolNode{}
	for key, n := range a.nodes.All() {
		region, name, err := subject.ParseNodeKey(key)
		if err != nil || region != a.env.Region {
			continue
		}
		for template, ready := range n.GetWarm() {
			if ready > 0 {
				held[template] = append(held[template], &siroccov1.PoolNode{Node: name, Region: region, Ready: ready})
			}
		}
	}
	for _, nodes := range held {
		slices.SortFunc(nodes, func(x, y *siroccov1.PoolNode) int { return cmp.Compare(x.GetNode(), y.GetNode()) })
	}
	return held
}

// setPool declares a pool. Agents follow the bucket; of two calls at once, the
// later one stays.
func (a *API) setPool(ctx context.Context, c caller, req *siroccov1.SetPoolRequest) (*siroccov1.Pool, error) {
	if err := c.mustOperate(); err != nil {
		return nil, err
	}
	pool, err := admission.NormalizePool(req, *a.cfg.Limits)
	if err != nil {
		return nil, err
	}
	pool.Key = record.KeyOf(pool.GetTemplate())
	value, err := proto.Marshal(pool)
	if err != nil {
		return nil, fmt.Errorf("encode pool %s: %w", pool.GetName(), err)
	}
	if _, err := a.poolBucket.Put(ctx, subject.PoolKey(a.env.Region, pool.GetName()), value); err != nil {
		return nil, away("set pool "+pool.GetName(), err)
	}
	pool.Nodes = a.warmByKey()[pool.GetKey()]
	return pool, nil
}

func (a *API) removePool(ctx context.Context, c caller, req *siroccov1.RemovePoolRequest) (*siroccov1.RemovePoolResponse, error) {
	if err := c.mustOperate(); err != nil {
		return nil, err
	}
	if !subject.ValidToken(req.GetName()) {
		return nil, fault.Invalid("name", "it is not the name of a pool")
	}
	err := remove(ctx, a.poolBucket, subject.PoolKey(a.env.Region, req.GetName()))
	switch {
	case errors.Is(err, jetstream.ErrKeyNotFound):
		return nil, fault.New(fault.NotFound, "no pool %s", req.GetName())
	case err != nil:
		return nil, away("remove pool "+req.GetName(), err)
	}
	return &siroccov1.RemovePoolResponse{}, nil
}
