package api

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/subject"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/proto"
)

func (a *API) listNodes(_ context.Context, c caller, req *siroccov1.ListNodesRequest) (*siroccov1.ListNodesResponse, error) {
	if err := c.mustOperate(); err != nil {
		return nil, err
	}
	resp := &siroccov1.ListNodesResponse{}
	for key, n := range a.nodes.All() {
		if region, _, err := subject.ParseNodeKey(key); err == nil && (req.GetRegion() == "" || req.GetRegion() == region) {
			resp.Nodes = append(resp.Nodes, a.ordered(key, n))
		}
	}
	slices.SortFunc(resp.Nodes, func(x, y *siroccov1.Node) int {
		return strings.Compare(x.GetRegion()+"."+x.GetName(), y.GetRegion()+"."+y.GetName())
	})
	return resp, nil
}

// ordered returns what a node says of itself with what operators want of it.
func (a *API) ordered(key string, n *siroccov1.Node) *siroccov1.Node {
	order, ok := a.orders.Get(key)
	if !ok {
		return n
	}
	out := proto.CloneOf(n)
	out.Cordoned = order.GetCordoned()
	out.Draining = order.GetDraining() || a.beingDrained(n.GetRegion(), n.GetName())
	return out
}

func (a *API) cordon(ctx context.Context, c caller, req *siroccov1.CordonNodeRequest) (*siroccov1.Node, error) {
	node, err := a.order(ctx, c, req.GetName(), func(order *siroccov1.Node) {
		order.Cordoned = !req.GetLift()
		if req.GetLift() {
			order.Draining = false
		}
	})
	if err == nil && req.GetLift() {
		err = a.lifted(ctx, req.GetName())
	}
	return node, err
}

// order changes what operators want of a node. Agents and schedulers follow
// the bucket.
func (a *API) order(ctx context.Context, c caller, name string, change func(*siroccov1.Node)) (*siroccov1.Node, error) {
	if err := c.mustOperate(); err != nil {
		return nil, err
	}
	if !subject.ValidToken(name) {
		return nil, fault.Invalid("name", "it is not the name of a node")
	}
	key, node := a.node(name)
	if node == nil {
		return nil, fault.New(fault.NotFound, "no node %s", name)
	}
	region, _, err := subject.ParseNodeKey(key)
	if err != nil {
		return nil, err
	}
	for {
		order, revision := &siroccov1.Node{}, uint64(0)
		entry, err := a.orderBucket.Get(ctx, key)
		switch {
		case err == nil:
			revision = entry.Revision()
			if order, err = decode[siroccov1.Node](key, entry.Value()); err != nil {
				return nil, err
			}
		case !errors.Is(err, jetstream.ErrKeyNotFound):
			return nil, away("read the orders of "+name, err)
		}
		order.Name, order.Region = name, region
		change(order)
		value, err := proto.Marshal(order)
		if err != nil {
			return nil, fmt.Errorf("encode the orders of %s: %w", name, err)
		}
		if revision == 0 {
			_, err = a.orderBucket.Create(ctx, key, value)
		} else {
			_, err = a.orderBucket.Update(ctx, key, value, revision)
		}
		if err == nil {
			out := proto.CloneOf(node)
			out.Cordoned, out.Draining = order.GetCordoned(), order.GetDraining()
			return out, nil
		}
		if !bus.IsConflict(err) {
			return nil, away("order "+name, err)
		}
	}
}

// node finds a node by its name, first in this region.
func (a *API) node(name string) (string, *siroccov1.Node) {
	own := subject.NodeKey(a.env.Region, name)
	if n, ok := a.nodes.Get(own); ok {
		return own, n
	}
	for key, n := range a.nodes.All() {
		if strings.HasSuffix(key, "."+name) {
			return key, n
		}
	}
	return "", nil
}

// away makes the fault of a bus that does not answer.
func away(op string, err error) error {
	return &fault.Fault{Code: fault.Unavailable, Message: op + ": the bus does not answer", Cause: fmt.Errorf("%s: %w", op, err)}
}
