package api

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/sirocco-run/sirocco/pkg/evacuation"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/subject"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

// Orders to empty a region or a node are written into the bucket of the region that they
// are about, whose schedulers drive them.

// evacuate orders, cancels or resumes the evacuation of a region.
func (a *API) evacuate(ctx context.Context, c caller, req *siroccov1.EvacuateRegionRequest) (*siroccov1.Evacuation, error) {
	if err := c.mustOperate(); err != nil {
		return nil, err
	}
	if err := checkSteering(req.GetCancel(), req.GetResume()); err != nil {
		return nil, err
	}
	store, err := a.evacuationsOf(ctx, req.GetRegion())
	if err != nil {
		return nil, err
	}
	if req.GetCancel() || req.GetResume() {
		return steer(ctx, store, req.GetRegion(), "", req.GetCancel())
	}
	if len(a.env.Peers.Regions()) == 0 {
		return nil, fault.New(fault.FailedPrecondition, "there is no region but %s: nothing can go to another one", req.GetRegion())
	}
	order, err := evacuation.OfRegion(req, c.tenant, time.Now())
	if err != nil {
		return nil, err
	}
	order, err = store.Order(ctx, order)
	if err != nil {
		return nil, away("order the evacuation of "+req.GetRegion(), err)
	}
	return order, nil
}

func (a *API) getEvacuation(ctx context.Context, c caller, req *siroccov1.GetEvacuationRequest) (*siroccov1.Evacuation, error) {
	if err := c.mustOperate(); err != nil {
		return nil, err
	}
	store, err := a.evacuationsOf(ctx, req.GetRegion())
	if err != nil {
		return nil, err
	}
	return lastOf(ctx, store, req.GetRegion(), "")
}

func (a *API) getDrain(ctx context.Context, c caller, req *siroccov1.GetDrainRequest) (*siroccov1.Evacuation, error) {
	if err := c.mustOperate(); err != nil {
		return nil, err
	}
	if !subject.ValidToken(req.GetName()) {
		return nil, fault.Invalid("name", "it is not the name of a node")
	}
	return lastOf(ctx, a.evacuations, a.env.Region, req.GetName())
}

// drain cordons a node and orders that it is emptied, or takes that back.
func (a *API) drain(ctx context.Context, c caller, req *siroccov1.DrainNodeRequest) (*siroccov1.Node, error) {
	if err := c.mustOperate(); err != nil {
		return nil, err
	}
	if err := checkSteering(req.GetCancel(), req.GetResume()); err != nil {
		return nil, err
	}
	if !subject.ValidToken(req.GetName()) {
		return nil, fault.Invalid("name", "it is not the name of a node")
	}
	order, err := evacuation.OfNode(req, a.env.Region, c.tenant, time.Now())
	if err != nil {
		return nil, err
	}
	if _, known := a.node(req.GetName()); known != nil && known.GetRegion() != a.env.Region {
		return nil, fault.New(fault.FailedPrecondition, "node %s is of region %s: ask there", known.GetName(), known.GetRegion())
	}
	if req.GetCancel() || req.GetResume() {
		if _, err := steer(ctx, a.evacuations, a.env.Region, req.GetName(), req.GetCancel()); err != nil {
			return nil, err
		}
	}
	node, err := a.order(ctx, c, req.GetName(), func(n *siroccov1.Node) {
		n.Cordoned = !req.GetCancel()
		n.Draining = n.GetDraining() && !req.GetCancel()
	})
	if err != nil {
		return nil, err
	}
	if !req.GetCancel() && !req.GetResume() {
		if _, err := a.evacuations.Order(ctx, order); err != nil {
			return nil, away("order the drain of "+req.GetName(), err)
		}
	}
	node.Draining = !req.GetCancel()
	return node, nil
}

// lifted cancels the drain of a node whose cordon was lifted: what is moved away would
// only be replaced by what is new.
func (a *API) lifted(ctx context.Context, node string) error {
	_, err := steer(ctx, a.evacuations, a.env.Region, node, true)
	if fault.CodeOf(err) == fault.NotFound {
		return nil
	}
	return err
}

// beingDrained says whether a node is to be empty.
func (a *API) beingDrained(region, node string) bool {
	e, ok := a.drains.Get(subject.EvacuationKey(region, node))
	return ok && e.GetCancelled() == nil && !evacuation.Over(e)
}

// standing refuses to change the weight of a region that is being, or was, evacuated.
func (a *API) standing(ctx context.Context, region string) error {
	store, err := a.evacuationsOf(ctx, region)
	if err != nil {
		return nil //nolint:nilerr // a region that can't be reached may be steered all the same
	}
	e, _, err := store.Get(ctx, region, "")
	if err != nil || e.GetCancelled() != nil {
		return nil //nolint:nilerr // as above, or there is none
	}
	return fault.New(fault.FailedPrecondition, "region %s is evacuated, and gets nothing new for that: `sirocco region evacuate %s --cancel` ends it", region, region)
}

// evacuationsOf returns the orders of a region. Errors: NotFound, Unavailable.
func (a *API) evacuationsOf(ctx context.Context, region string) (*evacuation.Store, error) {
	if region == a.env.Region {
		return a.evacuations, nil
	}
	peers := a.env.Peers.Regions()
	if !slices.Contains(peers, region) {
		return nil, fault.New(fault.NotFound, "no region %s: there are %s", region, strings.Join(append([]string{a.env.Region}, peers...), ", "))
	}
	p, err := a.env.Peers.Get(region)
	if err == nil && !p.Alive() {
		err = errPeerLost
	}
	var store *evacuation.Store
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, tellTimeout)
		defer cancel()
		store, err = evacuation.Open(ctx, p.JS)
	}
	if err != nil {
		return nil, &fault.Fault{Code: fault.Unavailable, Message: "region " + region + " can't be reached", RetryAfter: time.Second, Cause: err}
	}
	return store, nil
}

func checkSteering(cancel, resume bool) error {
	if cancel && resume {
		return fault.Invalid("resume", "an order can't be cancelled and resumed at once")
	}
	return nil
}

// steer cancels or resumes the last order.
func steer(ctx context.Context, store *evacuation.Store, region, node string, cancel bool) (*siroccov1.Evacuation, error) {
	e, err := store.Change(ctx, region, node, func(e *siroccov1.Evacuation) error {
		if cancel {
			return evacuation.Cancel(e, time.Now())
		}
		return evacuation.Resume(e, time.Now())
	})
	return e, evacuationFault(region, node, err)
}

func lastOf(ctx context.Context, store *evacuation.Store, region, node string) (*siroccov1.Evacuation, error) {
	e, _, err := store.Get(ctx, region, node)
	return e, evacuationFault(region, node, err)
}

func evacuationFault(region, node string, err error) error {
	what := "region " + region
	if node != "" {
		what = "node " + node
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, evacuation.ErrNone):
		return fault.New(fault.NotFound, "nobody has ordered to empty %s", what)
	}
	return away("read the order about "+what, err)
}

// decodeDrain reads the orders about nodes.
func decodeDrain(key string, value []byte) (*siroccov1.Evacuation, error) {
	e, err := evacuation.Decode(key, value)
	if err == nil && e.GetNode() == "" {
		err = errNotADrain
	}
	return e, err
}

var errNotADrain = errors.New("it is about a region")
