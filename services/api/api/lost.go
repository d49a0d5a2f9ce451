package api

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/sirocco-run/sirocco/services/api/abroad"
	"google.golang.org/protobuf/proto"
)

// A region that does not answer has sandboxes all the same, and its neighbours know
// what it said of them last. What is asked to be shown is answered with that, and with
// Sandbox.lost, which says since when nothing is known. What is to be changed is
// refused: only the region itself can.

// scopeRegion is the scope of the errors of a region that can't be reached.
const scopeRegion = "region"

// Bounds of when a caller is told to try again: half as long as the silence has been.
const (
	leastAwayRetry = time.Second
	mostAwayRetry  = 30 * time.Second
)

// isAway is the error of what only a silent region can do.
func isAway(l *siroccov1.RegionLoss) *fault.Fault {
	retry := time.Since(l.GetSince().AsTime()) / 2
	return &fault.Fault{
		Code: fault.Unavailable, Scope: scopeRegion, Message: l.GetNote() + ": what is there can't be changed until it is back",
		RetryAfter: min(max(retry, leastAwayRetry), mostAwayRetry).Truncate(time.Second),
	}
}

// lastSeen says in which other region a sandbox was last, if that is known: by what it
// left here, or by what the others said. err is that of looking for it here.
func (a *API) lastSeen(c caller, id string, err error) string {
	var gone *goneError
	if errors.As(err, &gone) {
		return gone.region()
	}
	_, region := a.abroad.Find(c.tenant, id)
	return region
}

// remembering makes a get answer with what is remembered when nobody answers who has
// the record.
func (a *API) remembering(get func(context.Context, caller, *siroccov1.GetSandboxRequest) (*siroccov1.Sandbox, error)) func(context.Context, caller, *siroccov1.GetSandboxRequest) (*siroccov1.Sandbox, error) {
	return func(ctx context.Context, c caller, req *siroccov1.GetSandboxRequest) (*siroccov1.Sandbox, error) {
		if c.forwarded || len(a.env.Peers.Regions()) == 0 {
			return get(ctx, c, req)
		}
		limited, cancel := context.WithTimeout(ctx, locateTimeout)
		defer cancel()
		sb, err := get(limited, c, req)
		if code := fault.CodeOf(err); code != fault.Unavailable && code != fault.Deadline {
			return sb, err
		}
		if known := a.remembered(c.tenant, req.GetId()); known != nil {
			return known, nil
		}
		if limited.Err() != nil && ctx.Err() == nil {
			return nil, &fault.Fault{Code: fault.Unavailable, Scope: scopeRegion, Message: "sandbox " + req.GetId() + " is in no region that answers", RetryAfter: leastAwayRetry, Cause: err}
		}
		return nil, err
	}
}

// remembered returns a sandbox of another region as it was last known; nil if it is not.
func (a *API) remembered(tenant, idOrName string) *siroccov1.Sandbox {
	sb, region := a.abroad.Find(tenant, idOrName)
	if sb != nil {
		a.markLost(sb, a.abroad.Lost(region))
		return sb
	}
	// It has gone there, and the region was lost before it said so.
	left := a.view.Lookup(idOrName)
	if left.GetTenant() != tenant || !lifecycle.Shadow(left, a.env.Region) {
		return nil
	}
	loss := a.abroad.Lost(left.GetPlacement().GetRegion())
	if loss == nil {
		return nil
	}
	sb = proto.CloneOf(left)
	a.markLost(sb, loss)
	return sb
}

// markLost fills in Sandbox.lost; loss may be nil.
func (a *API) markLost(sb *siroccov1.Sandbox, loss *siroccov1.RegionLoss) {
	if loss != nil {
		sb.Lost = abroad.About(loss, sb, time.Now())
	}
}

// addRemembered adds to a page what is remembered of the regions that did not give
// theirs, and says of which there is nothing.
func (a *API) addRemembered(c caller, req *siroccov1.ListSandboxesRequest, resp *siroccov1.ListSandboxesResponse, silent []string) error {
	if len(silent) == 0 {
		return nil
	}
	match, err := filter(c.tenant, req)
	if err != nil {
		return err
	}
	losses := map[string]*siroccov1.RegionLoss{}
	for _, region := range silent {
		loss := a.abroad.Lost(region)
		if losses[region] = loss; loss != nil {
			resp.LostRegions = append(resp.LostRegions, loss)
		}
		if !a.abroad.Known(region) {
			resp.MissingRegions = append(resp.MissingRegions, region)
		}
		a.abroad.Each(c.tenant, region, func(sb *siroccov1.Sandbox) {
			if match(sb) {
				a.markLost(sb, loss)
				resp.Sandboxes = append(resp.Sandboxes, sb)
			}
		})
	}
	a.view.Each(func(sb *siroccov1.Sandbox) bool {
		if loss := losses[sb.GetPlacement().GetRegion()]; loss != nil && match(sb) && lifecycle.Shadow(sb, a.env.Region) {
			sb = proto.CloneOf(sb)
			a.markLost(sb, loss)
			resp.Sandboxes = append(resp.Sandboxes, sb)
		}
		return true
	})
	return nil
}

// onceEach sorts sandboxes, newest first, and leaves one record of each: that of its
// newest place, and of two of one place the one that was not only remembered, or the
// newer.
func onceEach(all []*siroccov1.Sandbox) []*siroccov1.Sandbox {
	rank := func(sb *siroccov1.Sandbox) []uint64 {
		answered := uint64(0)
		if sb.GetLost() == nil {
			answered = 1
		}
		return []uint64{sb.GetPlacement().GetEpoch(), answered, uint64(sb.GetState())} //nolint:gosec // states are not negative
	}
	slices.SortFunc(all, func(x, y *siroccov1.Sandbox) int {
		if by := strings.Compare(y.GetId(), x.GetId()); by != 0 {
			return by
		}
		return slices.Compare(rank(y), rank(x))
	})
	return slices.CompactFunc(all, func(x, y *siroccov1.Sandbox) bool { return x.GetId() == y.GetId() })
}
