package relay

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/link"
	"github.com/sirocco-run/sirocco/pkg/record"
	"github.com/sirocco-run/sirocco/pkg/sandboxid"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

// How long the view may be behind what a client or a node knows already: a
// sandbox that was created a moment ago, an epoch that has just ended.
//
// A relay whose NATS server is cut off from the others hears nothing and does not
// know it, so an id that is newer than unheardAge and unknown here may well exist:
// that is said in a way that lets clients ask again.
const (
	youngAge   = 5 * time.Second
	youngWait  = time.Second
	unheardAge = time.Minute
	staleWait  = 2 * time.Second
)

// dataPort is the port of a target that means the data services.
const dataPort = 0

// errStale says that a node does not run the epoch that the view shows.
var errStale = errors.New("relay: the route is old")

// errLeaving says that a node takes nothing for a sandbox just now, because it is
// being moved: away from there, or to there.
var errLeaving = errors.New("relay: the sandbox is being moved")

// want is what a client asks for.
type want struct {
	id   string
	port uint16 // dataPort for the data services
	// protocol in which the port must be published; not used for data.
	protocol siroccov1.Protocol
	// tenant that must own the sandbox; empty for tunnels, whose names are
	// public.
	tenant string
	// authorize checks a tunnel's token hash; nil where no token is possible.
	authorize func(hash string) bool
}

// decide is the whole routing decision: a target, a refusal, or neither, when
// the client is to be held.
func decide(sb *siroccov1.Sandbox, w want) (target, *refusal) {
	if sb == nil || w.tenant != "" && sb.GetTenant() != w.tenant {
		return target{}, noSuchSandbox(w.id)
	}
	if w.port != dataPort {
		p := published(sb, w.port, w.protocol)
		switch {
		case p == nil:
			return target{}, notPublished(w.id, w.port)
		case protocolOf(p) != w.protocol:
			return target{}, misdirected(w.id, w.port, protocolOf(p))
		case p.GetBearerToken() != "" && (w.authorize == nil || !w.authorize(p.GetBearerToken())):
			return target{}, unauthorized()
		}
	}
	switch s := sb.GetState(); {
	case (lifecycle.Ended(s) || s == siroccov1.State_STATE_STOPPING) && (w.port != dataPort || sb.GetPlacement() == nil):
		return target{}, ended(sb)
	case arriving(sb), leaving(sb):
		// Its node is asked, which knows more than the record: whether it runs there yet,
		// as the record here follows the other region's, or still, as it does while most of
		// it is on its way.
	case s < siroccov1.State_STATE_RUNNING, s > siroccov1.State_STATE_RUNNING && s < siroccov1.State_STATE_STOPPING:
		return target{}, nil
	}
	// The node keeps the last output of a sandbox's command after its end, so the
	// data services go there then too.
	return targetOf(sb, w.port), nil
}

// published returns the entry of a port, that of the wanted protocol first: a
// port may be published in two ways.
func published(sb *siroccov1.Sandbox, port uint16, protocol siroccov1.Protocol) *siroccov1.Port {
	var other *siroccov1.Port
	for _, p := range sb.GetSpec().GetPorts() {
		if p.GetPort() != uint32(port) {
			continue
		}
		if protocolOf(p) == protocol {
			return p
		}
		other = p
	}
	return other
}

func protocolOf(p *siroccov1.Port) siroccov1.Protocol {
	if p.GetProtocol() == siroccov1.Protocol_PROTOCOL_UNSPECIFIED {
		return siroccov1.Protocol_PROTOCOL_HTTPS
	}
	return p.GetProtocol()
}

// router finds where a sandbox is and opens streams to it. It asks the bus
// nothing: everything comes from the view, which stays when the bus is away.
type router struct {
	cfg    Config
	log    *slog.Logger
	dialer *link.Dialer
	// view is nil until the bus was first reached; ready is closed once it has
	// caught up.
	view  atomic.Pointer[record.View]
	ready chan struct{}
	// stopping ends with the relay: nobody is held any longer then.
	stopping context.Context
	held     atomic.Int64
	conns    *connSet
}

func (r *router) lookup(id string) *siroccov1.Sandbox {
	if v := r.view.Load(); v != nil {
		return v.Lookup(id)
	}
	return nil
}

// find returns a record, nil if there is none. It waits for the view's first
// fill, and a moment for a sandbox that is younger than the view may be.
func (r *router) find(ctx context.Context, id string) (*siroccov1.Sandbox, *refusal) {
	if sb := r.lookup(id); sb != nil {
		return sb, nil
	}
	select {
	case <-r.ready:
	default:
		release, f := r.hold()
		if f != nil {
			return nil, f
		}
		defer release()
		wait, cancel := context.WithTimeout(ctx, r.cfg.StartWait)
		defer cancel()
		select {
		case <-r.ready:
		case <-r.stopping.Done():
			return nil, draining()
		case <-wait.Done():
			f := draining()
			f.late = true
			f.reason, f.title, f.text = ReasonStillStarting, "The relay is starting", "This relay has not heard from the bus yet."
			return nil, f
		}
		if sb := r.lookup(id); sb != nil {
			return sb, nil
		}
	}
	made, err := sandboxid.Time(id)
	age := time.Since(made)
	if err != nil || age > unheardAge || age < -youngAge {
		return nil, nil
	}
	if age > youngAge {
		return nil, unheardOf(id)
	}
	sb, f := r.await(ctx, id, nil, youngWait, func(*siroccov1.Sandbox) bool { return true })
	if f != nil && !f.late {
		return nil, f
	}
	if sb == nil {
		return nil, unheardOf(id)
	}
	return sb, nil
}

func (r *router) hold() (release func(), f *refusal) {
	if r.held.Add(1) > int64(r.cfg.MaxHeld) {
		r.held.Add(-1)
		return nil, overloaded()
	}
	return func() { r.held.Add(-1) }, nil
}

// await holds the caller until the record satisfies done.
func (r *router) await(ctx context.Context, id string, from *siroccov1.Sandbox, limit time.Duration, done func(*siroccov1.Sandbox) bool) (*siroccov1.Sandbox, *refusal) {
	release, f := r.hold()
	if f != nil {
		return from, f
	}
	defer release()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	defer context.AfterFunc(r.stopping, cancel)()
	sb, err := r.view.Load().Await(ctx, id, from, done)
	switch {
	case err == nil:
		return sb, nil
	case r.stopping.Err() != nil:
		return sb, draining()
	}
	return sb, stillStarting(sb, limit)
}

// resolve returns where a request goes, after holding it as long as its
// sandbox starts, wakes or moves.
func (r *router) resolve(ctx context.Context, w want) (target, *refusal) {
	sb, f := r.find(ctx, w.id)
	if f != nil {
		return target{}, f
	}
	for {
		t, f := decide(sb, w)
		if f != nil || t.id != "" {
			return t, f
		}
		limit := r.cfg.StartWait
		if sb.GetState() == siroccov1.State_STATE_MIGRATING {
			limit = r.cfg.MoveWait
		}
		sb, f = r.await(ctx, w.id, sb, limit, func(sb *siroccov1.Sandbox) bool {
			t, f := decide(sb, w)
			return f != nil || t.id != ""
		})
		if f != nil {
			return target{}, f
		}
	}
}

// again returns the newer target after one was found to be stale.
func (r *router) again(ctx context.Context, w want, old target) (target, *refusal) {
	sb, f := r.await(ctx, w.id, r.lookup(w.id), staleWait, func(sb *siroccov1.Sandbox) bool { return sb.GetRevision() > old.revision })
	if f != nil {
		if f.late {
			f = nodeUnreachable(w.id, errStale)
		}
		return target{}, f
	}
	if t, f := decide(sb, w); f != nil || t.id != "" {
		return t, f
	}
	return r.resolve(ctx, w)
}

// attempts is what was tried in vain for one request or connection.
type attempts struct {
	stale, leaving int
	since          time.Time // of the first refusal for a move
}

// The pauses between two tries at a sandbox that is being moved, if the record
// tells nothing new.
const (
	firstPause = 20 * time.Millisecond
	lastPause  = 250 * time.Millisecond
)

// next returns where to try next after a try has failed with cause: a refusal, which
// it returns, errLeaving, or anything else for a placement that is old.
func (r *router) next(ctx context.Context, w want, old target, cause error, tried *attempts) (target, *refusal) {
	var f *refusal
	if errors.As(cause, &f) {
		return target{}, f
	}
	if !errors.Is(cause, errLeaving) {
		if tried.stale++; tried.stale > maxStale {
			return target{}, nodeUnreachable(w.id, cause)
		}
		return r.again(ctx, w, old)
	}
	// The node is ahead of the record, or, where a move was called off, behind it.
	if tried.leaving++; tried.leaving == 1 {
		tried.since = time.Now()
	}
	if waited := time.Since(tried.since); waited > r.cfg.MoveWait || ctx.Err() != nil {
		return target{}, stillMoving(w.id, waited)
	}
	sb, limit := r.lookup(w.id), min(firstPause<<min(tried.leaving-1, 10), lastPause)
	done := func(sb *siroccov1.Sandbox) bool { return sb.GetRevision() > old.revision }
	if leaving(sb) {
		// Its node lets nothing in before the record says how the move went.
		epoch := sb.GetMove().GetEpoch()
		limit = r.cfg.MoveWait - time.Since(tried.since)
		done = func(sb *siroccov1.Sandbox) bool { return !leaving(sb) || sb.GetMove().GetEpoch() != epoch }
	}
	sb, f = r.await(ctx, w.id, sb, limit, done)
	if f != nil && !f.late {
		return target{}, f
	}
	if t, f := decide(sb, w); f != nil || t.id != "" {
		return t, f
	}
	return r.resolve(ctx, w)
}

// passed says whether a placement is not, or soon not, that of the sandbox.
func (r *router) passed(t target) bool {
	sb := r.lookup(t.id)
	return sb.GetPlacement().GetEpoch() > t.epoch || leaving(sb)
}

// open opens a stream to a target. It tries again for a while where nothing
// listens yet. The error is errStale, errLeaving or a *refusal.
func (r *router) open(ctx context.Context, t target, u use, client, trace string) (*routeConn, error) {
	h := link.Header{
		Kind: link.KindPort, Tenant: t.tenant, Sandbox: t.id, Epoch: t.epoch, Port: t.port, Client: client, Trace: trace,
		Requests: u != useRaw, HTTP2: u == usePoolH2,
	}
	if t.port == dataPort {
		h.Kind = link.KindData
	}
	// Both ends of the grace count: a clock that is wrong must not hold for ever.
	grace := min(time.Until(t.since.Add(r.cfg.ListenGrace)), r.cfg.ListenGrace)
	deadline := time.Now().Add(grace)
	for pause := 20 * time.Millisecond; ; pause = min(2*pause, 250*time.Millisecond) {
		conn, err := r.dialer.Open(ctx, t.address, h)
		switch {
		case err == nil:
			c := r.conns.add(t, conn, u)
			// What retires and parts with streams may have come before add.
			if now := r.lookup(t.id); now.GetPlacement().GetEpoch() != t.epoch || phaseOf(now) != t.phase {
				_ = c.Close()
				return nil, errStale
			}
			return c, nil
		case link.IsNothingListens(err):
			if time.Now().After(deadline) {
				return nil, nothingListens(t.id, t.port)
			}
			select {
			case <-time.After(pause):
			case <-ctx.Done():
				return nil, nothingListens(t.id, t.port)
			case <-r.stopping.Done():
				return nil, draining()
			}
			if now := r.lookup(t.id); now.GetPlacement().GetEpoch() != t.epoch || phaseOf(now) != t.phase {
				return nil, errStale
			}
		case link.IsLeaving(err), t.arriving:
			return nil, errLeaving
		case link.IsNotHere(err):
			return nil, errStale
		case r.passed(t):
			return nil, errStale // it has gone, and so has its node
		default:
			if f := fault.From(err); f.Code == fault.Internal {
				r.log.Warn("an agent refused a stream", "sandbox_id", t.id, "node", t.address, "err", err, "error_id", f.ErrorID)
			}
			return nil, nodeUnreachable(t.id, err)
		}
	}
}

// connect resolves and opens, for tunnels that are no HTTP.
func (r *router) connect(ctx context.Context, w want, client, trace string) (*routeConn, *refusal) {
	t, f := r.resolve(ctx, w)
	for tried := (attempts{}); f == nil; {
		conn, err := r.open(ctx, t, useRaw, client, trace)
		if err == nil {
			return conn, nil
		}
		t, f = r.next(ctx, w, t, err, &tried)
	}
	return nil, f
}

// maxStale bounds how many old routes in a row one request follows.
const maxStale = 5
