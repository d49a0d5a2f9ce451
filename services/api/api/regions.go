package api

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/regionword"
	"github.com/sirocco-run/sirocco/pkg/subject"
	"github.com/sirocco-run/sirocco/pkg/weight"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// How long a person's word about a weight holds.
const (
	defaultWord = time.Hour
	maxWord     = 7 * 24 * time.Hour
	// tellTimeout bounds how long another region may take to answer about an order.
	tellTimeout = 2 * time.Second
)

// knownRegions returns every region as the controller sees it, by name; this one alone
// while no controller has spoken. Where there are no others everything goes here, whatever
// its score.
func (a *API) knownRegions() []*siroccov1.Region {
	weights, ok := a.weights.Get(subject.RegionKey(subject.RegionWeights, a.env.Region))
	if ok && len(a.env.Peers.Regions()) > 0 {
		return weights.GetRegions()
	}
	only := &siroccov1.Region{Name: a.env.Region, Here: true, Alive: true, Weight: 1, Score: 1, Level: 1, Cause: string(weight.CauseSteady)}
	for _, r := range weights.GetRegions() {
		if r.GetName() == only.GetName() {
			only.Score, only.Reasons, only.Report = r.GetScore(), r.GetReasons(), r.GetReport()
		}
	}
	return []*siroccov1.Region{only}
}

// pick chooses the region of a new sandbox among those that its request allows.
// except are those that could not be reached just now.
func (a *API) pick(allowed, except []string) (string, error) {
	var known []weight.Decision
	for _, r := range a.knownRegions() {
		d := weight.Decision{Region: r.GetName(), Weight: r.GetWeight(), Level: r.GetLevel(), Score: r.GetScore(), Cause: weight.Cause(r.GetCause())}
		if slices.Contains(except, d.Region) {
			d.Cause = weight.CauseDead
		}
		known = append(known, d)
	}
	region, _, err := weight.Pick(known, weight.Request{Allowed: allowed, Nearest: a.env.Region, Random: rand.Float64()})
	if err != nil {
		f := &fault.Fault{Code: fault.NoCapacity, Message: err.Error(), Scope: "region", RetryAfter: noCapacityRetry, Cause: err}
		return "", f
	}
	return region, nil
}

func (a *API) listRegions(context.Context, caller, *siroccov1.ListRegionsRequest) (*siroccov1.ListRegionsResponse, error) {
	regions := slices.Clone(a.knownRegions())
	slices.SortFunc(regions, func(x, y *siroccov1.Region) int { return strings.Compare(x.GetName(), y.GetName()) })
	return &siroccov1.ListRegionsResponse{Regions: regions}, nil
}

// setRegionWeight writes a person's word into this region's bucket and into those of
// all that can be reached: each controller follows its own.
func (a *API) setRegionWeight(ctx context.Context, c caller, req *siroccov1.SetRegionWeightRequest) (*siroccov1.SetRegionWeightResponse, error) {
	if err := c.mustOperate(); err != nil {
		return nil, err
	}
	peers := a.env.Peers.Regions()
	if req.GetRegion() != a.env.Region && !slices.Contains(peers, req.GetRegion()) {
		return nil, fault.New(fault.NotFound, "no region %s: there are %s", req.GetRegion(), strings.Join(append([]string{a.env.Region}, peers...), ", "))
	}
	var word *siroccov1.RegionWord
	if req.Weight != nil {
		var err error
		if word, err = wordOf(req); err != nil {
			return nil, err
		}
	}
	if err := a.standing(ctx, req.GetRegion()); err != nil {
		return nil, err
	}
	if err := regionword.Say(ctx, a.env.JS, req.GetRegion(), word); err != nil {
		return nil, away("set the weight of "+req.GetRegion(), err)
	}
	resp := &siroccov1.SetRegionWeightResponse{}
	for _, name := range peers {
		p, err := a.env.Peers.Get(name)
		if err == nil {
			err = regionword.Say(ctx, p.JS, req.GetRegion(), word)
		}
		if err != nil {
			a.log.WarnContext(ctx, "a region was not told of a weight", "peer", name, "err", err)
			resp.Unreached = append(resp.Unreached, name)
		}
	}
	return resp, nil
}

func wordOf(req *siroccov1.SetRegionWeightRequest) (*siroccov1.RegionWord, error) {
	if w := req.GetWeight(); !(w >= 0 && w <= 1) { // not a number is neither
		return nil, fault.Invalid("weight", "%v is out of range: 0 to 1", w)
	}
	hold := defaultWord
	if req.GetHold() != nil {
		hold = req.GetHold().AsDuration()
		if !req.GetHold().IsValid() || hold <= 0 || hold > maxWord {
			return nil, fault.Invalid("hold", "%v is out of range: up to %v", hold, maxWord)
		}
	}
	return &siroccov1.RegionWord{Weight: req.GetWeight(), Until: timestamppb.New(time.Now().Add(hold))}, nil
}

// decodeWeights reads the entries of the bucket of regions that hold weights.
func decodeWeights(key string, value []byte) (*siroccov1.RegionWeights, error) {
	kind, _, err := subject.ParseRegionKey(key)
	if err != nil || kind != subject.RegionWeights {
		return nil, errors.Join(errNotWeights, err)
	}
	return decode[siroccov1.RegionWeights](key, value)
}

var errNotWeights = errors.New("it holds no weights")
