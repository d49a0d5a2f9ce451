package api

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/record"
	"github.com/sirocco-run/sirocco/pkg/subject"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/proto"
)

// A request is answered by the region in which its sandbox is, or is to be. What
// comes to another one is passed on as an ask on that region's bus, where any api
// answers it like an ask of its own; the answer is returned as it is. A request is
// passed on once.

// locateTimeout bounds the question whether another region has a sandbox.
const locateTimeout = 2 * time.Second

// pass passes a request on. The error is that of the other region, or Unavailable if
// nobody answered there: then, and only then, certain says whether it surely did not
// arrive.
func (a *API) pass(ctx context.Context, c caller, region, noun, verb string, req, resp proto.Message) (certain bool, err error) {
	p, err := a.env.Peers.Get(region)
	if err != nil {
		return true, &fault.Fault{Code: fault.Unavailable, Message: "region " + region + " can't be reached", Scope: scopeRegion, RetryAfter: time.Second, Cause: err}
	}
	if loss := a.abroad.Silent(region); loss != nil {
		return true, isAway(loss)
	}
	if !p.Alive() {
		return true, &fault.Fault{Code: fault.Unavailable, Message: "region " + region + " can't be reached", Scope: scopeRegion, RetryAfter: time.Second}
	}
	msg, err := bus.NewMsg(ctx, subject.API(c.tenant, noun, verb), req)
	if err != nil {
		return true, err
	}
	msg.Header.Set(subject.HeaderForwarded, a.env.Region)
	ctx, stop := whileConnected(ctx, p.NC)
	defer stop()
	err = bus.AskMsg(ctx, p.NC, msg, resp)
	if err != nil && errors.Is(context.Cause(ctx), errPeerLost) {
		return false, &fault.Fault{Code: fault.Unavailable, Message: "region " + region + " was lost before it had answered: with an idempotency key, ask again", Scope: scopeRegion, RetryAfter: time.Second, Cause: err}
	}
	if errors.Is(err, nats.ErrNoResponders) {
		return true, &fault.Fault{Code: fault.Unavailable, Message: "no api of region " + region + " answers", Scope: scopeRegion, RetryAfter: time.Second, Cause: err}
	}
	return false, err
}

var errPeerLost = errors.New("the other region was lost")

// whileConnected is ctx that ends when the connection is lost: nobody will answer then.
func whileConnected(ctx context.Context, nc *nats.Conn) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	lost := nc.StatusChanged(nats.RECONNECTING, nats.DISCONNECTED, nats.CLOSED)
	go func() {
		select {
		case <-lost:
			cancel(errPeerLost)
		case <-ctx.Done():
		}
		nc.RemoveStatusListener(lost)
	}()
	return ctx, func() { cancel(nil) }
}

// passed is pass for what is asked of one sandbox.
func passed[R any, PR interface {
	*R
	proto.Message
}](ctx context.Context, a *API, c caller, region, noun, verb string, req proto.Message) (*R, error) {
	ctx, cancel := context.WithTimeout(ctx, a.cfg.WaitLimit+bus.Patience)
	defer cancel()
	resp := PR(new(R))
	if _, err := a.pass(ctx, c, region, noun, verb, req, resp); err != nil {
		return nil, err
	}
	return resp, nil
}

// anywhere makes a call about one sandbox answer for those of other regions too, and for
// those that are on their way from one to another.
func anywhere[Q, R any, PQ interface {
	*Q
	proto.Message
}, PR interface {
	*R
	proto.Message
}](a *API, noun, verb string, id func(PQ) string, call func(context.Context, caller, *Q) (*R, error)) func(context.Context, caller, *Q) (*R, error) {
	return func(ctx context.Context, c caller, req *Q) (*R, error) {
		until := time.Now().Add(arrivalTimeout)
		for pause := firstPause; ; pause *= 2 {
			resp, err := call(ctx, c, req)
			gone := new(goneError)
			left := errors.As(err, &gone)
			if fault.CodeOf(err) != fault.NotFound || len(a.env.Peers.Regions()) == 0 || c.forwarded && (!left || pause > firstPause) {
				return resp, err
			}
			if left {
				a.awaitArrival(ctx, gone.shadow)
			}
			if c.forwarded { // it may be here by now; else who asked here asks there
				continue
			}
			resp, moved, err := elsewhere[R, PR](ctx, a, c, noun, verb, id(req), PQ(req), err)
			switch {
			case !moved:
				return resp, err
			case !wait(ctx, pause, until):
				return nil, &fault.Fault{
					Code: fault.Unavailable, Scope: scopeRegion, RetryAfter: time.Second, Cause: err,
					Message: "sandbox " + id(req) + " is on its way from one region to another",
				}
			}
		}
	}
}

// firstPause is after what time a sandbox is looked for again that has gone on meanwhile:
// what is known of it may be a moment old wherever it is asked for.
const firstPause = 10 * time.Millisecond

// wait waits, and says false if there is no time for that.
func wait(ctx context.Context, d time.Duration, until time.Time) bool {
	if time.Now().Add(d).After(until) {
		return false
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// elsewhere has another region answer. moved: the sandbox was where it was looked for and
// has gone on, perhaps to this region. here is the error of looking for it here.
func elsewhere[R any, PR interface {
	*R
	proto.Message
}](ctx context.Context, a *API, c caller, noun, verb, id string, req proto.Message, here error) (resp *R, moved bool, err error) {
	// Where it has gone, or was seen last, is asked first.
	if region := a.lastSeen(c, id, here); region != "" {
		resp, err := passed[R, PR](ctx, a, c, region, noun, verb, req)
		if fault.CodeOf(err) != fault.NotFound {
			return resp, false, err
		}
		moved = hasMoved(err)
	}
	region, silent, left := a.locate(ctx, c, id)
	switch {
	case region != "":
		resp, err := passed[R, PR](ctx, a, c, region, noun, verb, req)
		return resp, hasMoved(err), err
	case len(silent) > 0:
		return nil, false, &fault.Fault{
			Code: fault.Unavailable, Scope: scopeRegion, RetryAfter: time.Second, Cause: here,
			Message: "sandbox " + id + " is in no region that answers; " + strings.Join(silent, ", ") + " can't be reached",
		}
	}
	return nil, moved || left, here
}

// arrivalTimeout bounds the time from a departure until the record is in the other
// region: a few milliseconds where nothing is wrong.
const arrivalTimeout = 3 * time.Second

// awaitArrival waits until a sandbox that has just left for another region is known there.
// One that is only announced here is where it was, and answers there.
func (a *API) awaitArrival(ctx context.Context, shadow *siroccov1.Sandbox) {
	if !lifecycle.Departed(shadow, shadow.GetMove().GetEpoch()) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, arrivalTimeout)
	defer cancel()
	_, _ = a.view.Await(ctx, shadow.GetId(), shadow, func(sb *siroccov1.Sandbox) bool {
		return sb.GetState() != siroccov1.State_STATE_MIGRATING
	})
}

// goneError says that a sandbox has moved to another region.
type goneError struct{ shadow *siroccov1.Sandbox }

func (e *goneError) Error() string {
	return "sandbox " + e.shadow.GetId() + " has moved to region " + e.region()
}

func (e *goneError) region() string { return e.shadow.GetPlacement().GetRegion() }

// Unwrap makes it a fault for whoever passed a request on: it asks everywhere then.
func (e *goneError) Unwrap() error {
	return &fault.Fault{Code: fault.NotFound, Message: e.Error(), RetryAfter: time.Millisecond}
}

// hasMoved says whether a region answered that a sandbox was there and has gone on: only
// then is something that was not found worth asking for again.
func hasMoved(err error) bool {
	f := fault.From(err)
	return f != nil && f.Code == fault.NotFound && f.RetryAfter > 0
}

// here returns a record that was found, unless it is the shadow of a sandbox that has
// moved to another region. Error: *goneError.
func (a *API) here(sb *siroccov1.Sandbox) (*siroccov1.Sandbox, error) {
	if lifecycle.Shadow(sb, a.env.Region) {
		return nil, &goneError{sb}
	}
	return sb, nil
}

// calls are those about one sandbox, wherever it is.
type calls struct {
	get         func(context.Context, caller, *siroccov1.GetSandboxRequest) (*siroccov1.Sandbox, error)
	terminate   func(context.Context, caller, *siroccov1.TerminateSandboxRequest) (*siroccov1.Sandbox, error)
	extend      func(context.Context, caller, *siroccov1.ExtendSandboxRequest) (*siroccov1.Sandbox, error)
	setTags     func(context.Context, caller, *siroccov1.SetTagsRequest) (*siroccov1.Sandbox, error)
	migrate     func(context.Context, caller, *siroccov1.MigrateSandboxRequest) (*siroccov1.Sandbox, error)
	createToken func(context.Context, caller, *siroccov1.CreateTokenRequest) (*siroccov1.SandboxToken, error)
	openTunnel  func(context.Context, caller, *siroccov1.OpenTunnelRequest) (*siroccov1.Tunnel, error)
	closeTunnel func(context.Context, caller, *siroccov1.CloseTunnelRequest) (*siroccov1.CloseTunnelResponse, error)
	listTunnels func(context.Context, caller, *siroccov1.ListTunnelsRequest) (*siroccov1.ListTunnelsResponse, error)
}

func (a *API) sandboxCalls() calls {
	const sandbox = subject.NounSandbox
	return calls{
		get:         a.remembering(anywhere(a, sandbox, subject.VerbGet, (*siroccov1.GetSandboxRequest).GetId, a.get)),
		terminate:   anywhere(a, sandbox, subject.VerbTerminate, (*siroccov1.TerminateSandboxRequest).GetId, a.terminate),
		extend:      anywhere(a, sandbox, subject.VerbExtend, (*siroccov1.ExtendSandboxRequest).GetId, a.extend),
		setTags:     anywhere(a, sandbox, subject.VerbSetTags, (*siroccov1.SetTagsRequest).GetId, a.setTags),
		migrate:     anywhere(a, sandbox, subject.VerbMigrate, (*siroccov1.MigrateSandboxRequest).GetId, a.migrate),
		createToken: anywhere(a, sandbox, subject.VerbCreateToken, (*siroccov1.CreateTokenRequest).GetId, a.createToken),
		openTunnel:  anywhere(a, sandbox, subject.VerbOpenTunnel, (*siroccov1.OpenTunnelRequest).GetSandboxId, a.openTunnel),
		closeTunnel: anywhere(a, sandbox, subject.VerbCloseTunnel, (*siroccov1.CloseTunnelRequest).GetSandboxId, a.closeTunnel),
		listTunnels: anywhere(a, subject.NounTunnel, "list", (*siroccov1.ListTunnelsRequest).GetSandboxId, a.listTunnels),
	}
}

// locate asks all other regions which of them has a sandbox: "" if none that answers in
// time; silent are those that do not. moved: it has left one of those that answered, which
// says so once it has arrived; where it is may have answered before.
func (a *API) locate(ctx context.Context, c caller, id string) (region string, silent []string, moved bool) {
	ctx, cancel := context.WithTimeout(ctx, locateTimeout)
	defer cancel()
	peers := a.env.Peers.Regions()
	type answer struct {
		region string
		err    error
	}
	answers := make(chan answer, len(peers))
	for _, name := range peers {
		go func() {
			_, err := a.pass(ctx, c, name, subject.NounSandbox, subject.VerbGet, &siroccov1.GetSandboxRequest{Id: id}, &siroccov1.Sandbox{})
			answers <- answer{name, err}
		}()
	}
	for range peers {
		switch got := <-answers; {
		case got.err == nil:
			return got.region, nil, false
		case fault.CodeOf(got.err) != fault.NotFound:
			silent = append(silent, got.region)
		default:
			moved = moved || hasMoved(got.err)
		}
	}
	slices.Sort(silent)
	return "", silent, moved
}

// createElsewhere makes a sandbox in another region if the weights, what the request
// allows, or its key say so. done is false if it is to be made here.
func (a *API) createElsewhere(ctx context.Context, c caller, req, spec *siroccov1.CreateSandboxRequest) (resp *siroccov1.CreateSandboxResponse, done bool, err error) {
	if c.forwarded || len(a.env.Peers.Regions()) == 0 {
		return nil, false, nil
	}
	key := spec.GetIdempotencyKey()
	var away []string
	for {
		region, err := a.pick(spec.GetRegions(), away)
		if err != nil {
			return nil, true, err
		}
		if region == a.env.Region {
			return nil, false, nil
		}
		var claimed uint64
		if !record.IsMinted(key) {
			if region, claimed, err = a.store.SendElsewhere(ctx, c.tenant, key, spec, region); err != nil {
				return nil, true, err
			}
			if region == "" {
				return nil, false, nil
			}
		}
		resp, certain, err := a.createIn(ctx, c, region, key, req)
		if !certain {
			return resp, true, err
		}
		if claimed != 0 {
			if err := a.store.TakeBack(ctx, c.tenant, key, claimed); err != nil {
				return nil, true, err
			}
		} else if !record.IsMinted(key) {
			return nil, true, mayBeThere(region, err)
		}
		a.log.InfoContext(ctx, "a region can't be reached; another is chosen", "peer", region, "err", err)
		away = append(away, region)
	}
}

// mayBeThere is the error of a create whose key was sent to another region by an earlier
// try, where err keeps this one from.
func mayBeThere(region string, err error) error {
	f := fault.From(err)
	if f.Code != fault.Unavailable {
		return err
	}
	return &fault.Fault{
		Code: f.Code, Scope: scopeRegion, RetryAfter: f.RetryAfter, Cause: err,
		Message: "an earlier create with this key may have arrived in region " + region + ", which does not answer: it is made nowhere else; ask again with the key once that is back",
	}
}

// createIn passes a create on. certain: it surely did not arrive.
func (a *API) createIn(ctx context.Context, c caller, region, key string, req *siroccov1.CreateSandboxRequest) (_ *siroccov1.CreateSandboxResponse, certain bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, a.startLimit(req)+2*bus.Patience)
	defer cancel()
	there := proto.CloneOf(req)
	if there.IdempotencyKey = key; record.IsMinted(key) {
		there.IdempotencyKey = newKey()
	}
	resp := &siroccov1.CreateSandboxResponse{}
	if certain, err = a.pass(ctx, c, region, subject.NounSandbox, subject.VerbCreate, there, resp); err != nil {
		return nil, certain, err
	}
	return resp, false, nil
}

// listAnywhere joins the pages of all regions: ids sort by time, wherever they were
// made. The answer names the regions that did not give theirs.
func (a *API) listAnywhere(ctx context.Context, c caller, req *siroccov1.ListSandboxesRequest) (*siroccov1.ListSandboxesResponse, error) {
	resp, err := a.list(ctx, c, req)
	peers := a.env.Peers.Regions()
	if err != nil || c.forwarded || len(peers) == 0 {
		return resp, err
	}
	ctx, cancel := context.WithTimeout(ctx, locateTimeout)
	defer cancel()
	pages := make([]*siroccov1.ListSandboxesResponse, len(peers))
	var asking sync.WaitGroup
	for i, name := range peers {
		asking.Go(func() {
			page := &siroccov1.ListSandboxesResponse{}
			if _, err := a.pass(ctx, c, name, subject.NounSandbox, subject.VerbList, req, page); err == nil {
				pages[i] = page
			}
		})
	}
	asking.Wait()
	more := resp.GetNextPageToken() != ""
	var silent []string
	for i, page := range pages {
		if page == nil {
			silent = append(silent, peers[i])
			continue
		}
		resp.Sandboxes = append(resp.Sandboxes, page.GetSandboxes()...)
		more = more || page.GetNextPageToken() != ""
	}
	if err := a.addRemembered(c, req, resp, silent); err != nil {
		return nil, err
	}
	resp.Sandboxes = onceEach(resp.Sandboxes)
	size := pageSize(req)
	if len(resp.Sandboxes) > size {
		resp.Sandboxes, more = resp.Sandboxes[:size], true
	}
	resp.NextPageToken = ""
	if more && len(resp.Sandboxes) > 0 {
		resp.NextPageToken = resp.Sandboxes[len(resp.Sandboxes)-1].GetId()
	}
	return resp, nil
}
