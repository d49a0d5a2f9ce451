package fleet

import (
	"context"
	"errors"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/record"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/sirocco-run/sirocco/services/sirocco/bench"
	"golang.org/x/sync/errgroup"
)

// shareOver is over how much time the share of the creates is taken.
const shareOver = 5 * time.Second

// sampler looks at the regions once a second.
type sampler struct {
	regions *regions
	load    *load
	views   []*record.View

	// live and weight are of each region, share how many percent of what is new it got.
	live, weight, share []*bench.Series
	// done are moves a second, the others counts.
	done, underWay, failed, errors bench.Series

	mu sync.Mutex
	// made counts what was made where, by region's name; before are older counts, one
	// a second.
	made   map[string]int
	before []map[string]int
	// order is how far the evacuation is, nil before it; peak is the most memory of a
	// control plane.
	order *siroccov1.Evacuation
	peak  int64
}

func newSampler(r *regions, l *load) *sampler {
	s := &sampler{regions: r, load: l, made: map[string]int{}}
	for range r.all {
		s.live, s.weight, s.share = append(s.live, &bench.Series{}), append(s.weight, &bench.Series{}), append(s.share, &bench.Series{})
	}
	l.created = func(sb *siroccov1.Sandbox) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.made[sb.GetPlacement().GetRegion()]++
	}
	return s
}

// run looks until ctx ends.
func (s *sampler) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, r := range s.regions.all {
		store, err := record.Open(ctx, r.js)
		if err != nil {
			return err
		}
		view := record.NewView(store, record.ViewOptions{})
		s.views = append(s.views, view)
		group.Go(func() error { return view.Run(ctx) })
	}
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			if err := group.Wait(); err != nil && !errors.Is(err, context.Canceled) {
				return err
			}
			return nil
		case <-tick.C:
			s.look(ctx)
		}
	}
}

// look takes one sample.
func (s *sampler) look(ctx context.Context) {
	at := time.Since(s.load.began)
	for i, n := range s.count() {
		s.live[i].Add(at, float64(n))
	}
	s.errors.Add(at, float64(s.load.failures.Count()))
	// As the last region sees them, which is not the one that is evacuated.
	last := len(s.regions.all) - 1
	if seen, err := s.regions.seenFrom(ctx, last); err == nil {
		for _, r := range seen {
			for i := range s.regions.all {
				if s.regions.all[i].region == r.GetName() {
					s.weight[i].Add(at, 100*r.GetWeight())
				}
			}
		}
	}
	s.shares(at)
	for _, r := range s.regions.all {
		peak := r.control.Load().Usage().Peak
		s.mu.Lock()
		s.peak = max(s.peak, peak)
		s.mu.Unlock()
	}
	s.follow(ctx, at)
}

// count returns how many sandboxes live in each region.
func (s *sampler) count() []int {
	all := make([]int, len(s.views))
	for i, v := range s.views {
		v.Each(func(sb *siroccov1.Sandbox) bool {
			if home(sb, s.regions.all[i].region) {
				all[i]++
			}
			return true
		})
	}
	return all
}

// home says whether a record of a region is that of a sandbox that is there.
func home(sb *siroccov1.Sandbox, region string) bool {
	return !lifecycle.Ended(sb.GetState()) && !lifecycle.Shadow(sb, region)
}

func (s *sampler) shares(at time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, total := map[string]int{}, 0
	var then map[string]int
	if n := len(s.before) - int(shareOver/lookEvery); n >= 0 {
		then = s.before[n]
	}
	for region, n := range s.made {
		now[region] = n
		total += n - then[region]
	}
	s.before = append(s.before, now)
	for i, r := range s.regions.all {
		if total > 0 {
			s.share[i].Add(at, 100*float64(now[r.region]-then[r.region])/float64(total))
		}
	}
}

// follow looks how far the evacuation is.
func (s *sampler) follow(ctx context.Context, at time.Duration) {
	before := s.progress()
	if before == nil {
		return
	}
	region := before.GetRegion()
	resp, err := s.regions.clients[len(s.regions.clients)-1].Regions().GetEvacuation(ctx, connect.NewRequest(&siroccov1.GetEvacuationRequest{Region: region}))
	if err != nil {
		s.load.failures.Add(err)
		return
	}
	now := resp.Msg
	s.done.Add(at, float64(now.GetMoved()-before.GetMoved())/lookEvery.Seconds())
	s.underWay.Add(at, float64(now.GetUnderWay()))
	s.failed.Add(at, float64(now.GetFailed()))
	s.ordered(now)
}

// ordered notes the evacuation, progress returns it as it was seen last.
func (s *sampler) ordered(order *siroccov1.Evacuation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.order = order
}

func (s *sampler) progress() *siroccov1.Evacuation {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.order
}

// lines are one for each region.
func (s *sampler) lines(of []*bench.Series) (lines []bench.Line) {
	for i, series := range of {
		lines = append(lines, bench.Line{Name: s.regions.all[i].region, Points: series.Points()})
	}
	return lines
}

// plots are what the report shows.
func (s *sampler) plots(creates []bench.Sample) []bench.Plot {
	latency := bench.LatencyPlot("Creates until they run", creates)
	const seconds = "seconds since the start"
	return []bench.Plot{
		{Name: "live", Title: "Live sandboxes of each region", X: seconds, Y: "sandboxes", Lines: s.lines(s.live)},
		{Name: "share", Title: "Where new sandboxes go, over 5 s", X: seconds, Y: "% of the creates", Lines: s.lines(s.share)},
		{Name: "weights", Title: "Weights of the regions", X: seconds, Y: "%", Lines: s.lines(s.weight)},
		{Name: "moves", Title: "Moves and errors", X: seconds, Y: "moves, calls", Lines: []bench.Line{
			{Name: "moved a second", Points: s.done.Points()}, {Name: "failed calls", Points: s.errors.Points()},
			{Name: "under way", Points: s.underWay.Points()}, {Name: "failed moves", Points: s.failed.Points()},
		}},
		latency,
	}
}
