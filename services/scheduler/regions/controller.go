// Package regions sees how the regions are and decides how much of what is new each
// gets. It runs in the schedulers of every region, each for itself: regions agree on
// nothing, and what one decides holds for the requests that come to it.
//
// Once a second a scheduler writes what its own region says of itself into the region's
// bucket, reads what the others say of themselves over their buses, tries their relays,
// and takes one step of package weight. State and result are one entry of the bucket,
// written by compare-and-swap: of several schedulers whichever comes first makes the
// step, and any of them, started now, goes on from there.
//
// Safety: what can't be seen for DeadAfter is dead and gets nothing new. Liveness: no
// step waits for another region longer than askTimeout.
package regions

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/cloudflare"
	"github.com/sirocco-run/sirocco/pkg/cloudflare/plan"
	"github.com/sirocco-run/sirocco/pkg/program"
	"github.com/sirocco-run/sirocco/pkg/subject"
	"github.com/sirocco-run/sirocco/pkg/weight"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

const (
	// every is the time between two steps.
	every = time.Second
	// askTimeout bounds how long a step waits for another region.
	askTimeout = 700 * time.Millisecond
)

// Config shapes a controller.
type Config struct {
	Weight weight.Config
	// DeadAfter is after what silence a region is dead.
	DeadAfter time.Duration
	// RelayProbeAddress is the host:port at which other regions try this one's relay;
	// empty: the name and port of its domain.
	RelayProbeAddress string
	// RelayAddresses are the public addresses of this region's relays, for DNS records
	// at Cloudflare; none leaves these as they are.
	RelayAddresses []string
	// Cloudflare says how the weights get to Cloudflare, if they do.
	Cloudflare cloudflare.Config
	// CloudflareDomain is below which the tunnels are whose wildcard record leads to
	// the relays; empty leaves the records as they are.
	CloudflareDomain string
	// NodeStartRate is how many sandboxes a node can start in a second, which bounds
	// how fast a region gets a larger share.
	NodeStartRate float64
}

// Flags adds the flags, with their defaults.
func (c *Config) Flags(fs *pflag.FlagSet) {
	c.Weight = weight.DefaultConfig()
	fs.DurationVar(&c.Weight.Taus.Out, "weight-tau-out", c.Weight.Taus.Out, "time constant with which traffic slides away from a region that degrades")
	fs.DurationVar(&c.Weight.Taus.In, "weight-tau-in", c.Weight.Taus.In, "time constant with which it slides back")
	fs.DurationVar(&c.Weight.DwellOut, "weight-dwell-out", c.Weight.DwellOut, "least time for which a region that began to drain, or was dead, does not come back")
	fs.DurationVar(&c.Weight.DwellIn, "weight-dwell-in", c.Weight.DwellIn, "least time for which a region that came back does not drain")
	fs.Float64Var(&c.Weight.OutBelow, "weight-out-below", c.Weight.OutBelow, "`score` below which a region begins to drain")
	fs.Float64Var(&c.Weight.InAbove, "weight-in-above", c.Weight.InAbove, "`score` above which it comes back")
	fs.Float64Var(&c.Weight.Slew, "weight-slew", c.Weight.Slew, "`share` of all traffic that a region may gain in a second")
	fs.DurationVar(&c.DeadAfter, "region-dead-after", 4*time.Second, "after what silence a region gets nothing new")
	fs.StringVar(&c.RelayProbeAddress, "relay-probe-address", "", "`host:port` at which other regions try this region's relay (default: as its clients do, data.<domain> and the tunnel port)")
	fs.StringSliceVar(&c.RelayAddresses, "relay-addresses", nil, "public IP `addresses` of this region's relays, or one host name, for DNS records at Cloudflare")
	fs.StringVar(&c.CloudflareDomain, "cloudflare-domain", "", "`domain` of the tunnels, whose records at Cloudflare are to lead to the relays; empty leaves them as they are")
	c.Cloudflare.Flags(fs)
	fs.Float64Var(&c.NodeStartRate, "node-start-rate", 10, "how `many` sandboxes a node can start in a second; bounds how fast a region gets more traffic")
}

// Controller is one scheduler's part in this.
type Controller struct {
	env program.Env
	cfg Config
	log *slog.Logger
	// local says what this region's nodes are like; only what a scheduler knows is
	// filled in.
	local func() *siroccov1.RegionReport

	probe  *prober
	meters *meters
	// edge tells Cloudflare.
	edge *cloudflare.Publisher
	// seen is what is known of each region, own one included. Only Run uses it.
	seen       map[string]*seen
	busLatency time.Duration
	// began is the time of the first step.
	began time.Time
}

// New builds a controller, without I/O.
func New(env program.Env, cfg Config, local func() *siroccov1.RegionReport) (*Controller, error) {
	if err := cfg.Weight.Validate(); err != nil {
		return nil, err
	}
	if cfg.DeadAfter <= every {
		return nil, fmt.Errorf("--region-dead-after %v is not usable: want more than %v", cfg.DeadAfter, every)
	}
	if !(cfg.NodeStartRate > 0) {
		return nil, fmt.Errorf("--node-start-rate %v is not usable: want more than 0", cfg.NodeStartRate)
	}
	meters, err := newMeters(env.Meter)
	if err != nil {
		return nil, err
	}
	edge, err := cloudflare.New(env, cfg.Cloudflare)
	if err != nil {
		return nil, err
	}
	return &Controller{env: env, cfg: cfg, log: env.Log, local: local, meters: meters, edge: edge, seen: map[string]*seen{}}, nil
}

// Run takes steps until ctx ends, and then returns nil. What fails is logged and tried
// again by the next step.
//
// Concurrency: one goroutine for the steps, one for what Cloudflare is told; Run waits
// for both.
func (c *Controller) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return c.edge.Run(ctx) })
	group.Go(func() error { return c.steps(ctx) })
	return group.Wait()
}

func (c *Controller) steps(ctx context.Context) error {
	var err error
	if c.probe, err = newProber(c.env.Keys.PublicCAPath()); err != nil {
		return err
	}
	defer c.probe.close()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if err := c.step(ctx, time.Now()); err != nil && ctx.Err() == nil {
			c.log.Warn("the weights of the regions stay as they are", "err", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// step looks at all regions once and decides.
func (c *Controller) step(ctx context.Context, now time.Time) error {
	if c.began.IsZero() {
		c.began = now
	}
	own := c.local()
	own.Region, own.At, own.Relay = c.env.Region, timestamppb.New(now), c.env.Front.DataURL()
	own.RelayAddresses, own.RelayProbeAddress = c.cfg.RelayAddresses, c.cfg.RelayProbeAddress
	bucket, err := c.env.JS.KeyValue(ctx, subject.BucketRegions)
	if err != nil {
		return fmt.Errorf("open bucket %s: %w", subject.BucketRegions, err)
	}
	if err := c.publish(ctx, bucket, own); err != nil {
		return err
	}
	c.of(c.env.Region).hear(own, now, c.cfg.DeadAfter)
	c.lookAround(ctx, now)
	if !c.complete() && now.Sub(c.began) < c.cfg.DeadAfter {
		return nil // who has just begun has not heard of everybody: nobody is dead for that
	}
	last, revision, err := readWeights(ctx, bucket, c.env.Region)
	if err != nil {
		return err
	}
	// Another scheduler of this region may have made this step.
	if since := now.Sub(last.GetAt().AsTime()); since >= 0 && since < every*9/10 {
		return nil
	}
	state, err := weight.ParseState(last.GetState())
	if err != nil {
		if len(last.GetState()) > 0 {
			c.log.Warn("the weights begin anew", "err", err)
		}
		state = weight.State{}
	}
	words, err := c.words(ctx, bucket)
	if err != nil {
		return err
	}
	next, err := c.decide(state, words, now)
	if err != nil {
		return err
	}
	value, err := proto.Marshal(next)
	if err != nil {
		return fmt.Errorf("encode weights: %w", err)
	}
	_, err = bucket.Update(ctx, subject.RegionKey(subject.RegionWeights, c.env.Region), value, revision)
	if bus.IsConflict(err) {
		return nil
	}
	if err == nil {
		c.tellEdge(next.GetRegions())
	}
	return err
}

// tellEdge has Cloudflare follow the weights. Of all regions the first that is alive, by
// name, speaks: others would tell the same a moment earlier or later, and undo it. Where
// two can't reach each other both may speak, for each sees the other dead, until they
// can.
func (c *Controller) tellEdge(regions []*siroccov1.Region) {
	want := plan.Desired{Weights: map[string]float64{}, Drained: map[string]bool{}, Domain: c.cfg.CloudflareDomain}
	speaker := ""
	for _, r := range regions {
		want.Weights[r.GetName()] = r.GetWeight()
		want.Drained[r.GetName()] = r.GetWeight() == 0
		if addresses := r.GetReport().GetRelayAddresses(); len(addresses) > 0 {
			if want.Relays == nil {
				want.Relays = map[string][]string{}
			}
			want.Relays[r.GetName()] = addresses
		}
		if r.GetAlive() && (speaker == "" || r.GetName() < speaker) {
			speaker = r.GetName()
		}
	}
	if speaker != c.env.Region {
		c.edge.Mute()
		return
	}
	c.edge.Want(want)
}

// decide takes the step itself.
func (c *Controller) decide(state weight.State, words map[string]*weight.Override, now time.Time) (*siroccov1.RegionWeights, error) {
	names := append(c.env.Peers.Regions(), c.env.Region)
	slices.Sort(names)
	var in []weight.Region
	health := map[string]weight.Health{}
	for _, name := range names {
		r, h := c.of(name).input(name, c.cfg, now)
		r.Override = words[name]
		in = append(in, r)
		health[name] = h
	}
	state, decisions := c.cfg.Weight.Step(state, in, now)
	text, err := encodeState(state)
	if err != nil {
		return nil, err
	}
	out := &siroccov1.RegionWeights{At: timestamppb.New(now), State: text}
	for _, d := range decisions {
		r := &siroccov1.Region{
			Name: d.Region, Here: d.Region == c.env.Region, Alive: d.Alive(), Weight: d.Weight, Score: d.Score, Level: d.Level, Cause: string(d.Cause),
			Reasons: reasons(d, health[d.Region]), Report: c.of(d.Region).report,
		}
		if o := words[d.Region]; o != nil && now.Before(o.Until) {
			r.SetWeight, r.SetUntil = proto.Float64(o.Level), timestamppb.New(o.Until)
		}
		out.Regions = append(out.Regions, r)
	}
	c.meters.record(out.GetRegions())
	return out, nil
}

// reasons explain a decision, the most costly signal first after the decision itself.
func reasons(d weight.Decision, h weight.Health) []string {
	why := []string{d.Text()}
	for _, p := range h.Parts {
		if p.Contribution < 0 {
			why = append(why, fmt.Sprintf("%s %+.2f: %s", p.Signal, p.Contribution, p.Text))
		}
	}
	return why
}

// lookAround asks the other regions how they are, all at once.
func (c *Controller) lookAround(ctx context.Context, now time.Time) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var asking sync.WaitGroup
	for _, name := range c.env.Peers.Regions() {
		s := c.of(name)
		asking.Go(func() { s.look(ctx, c, name, now) })
	}
	asking.Wait()
}

// complete says whether every region has been heard of once.
func (c *Controller) complete() bool {
	for _, name := range c.env.Peers.Regions() {
		if c.of(name).report == nil {
			return false
		}
	}
	return true
}

func (c *Controller) of(name string) *seen {
	s := c.seen[name]
	if s == nil {
		s = &seen{}
		c.seen[name] = s
	}
	return s
}

// words reads what people said about the regions.
func (c *Controller) words(ctx context.Context, bucket jetstream.KeyValue) (map[string]*weight.Override, error) {
	words := map[string]*weight.Override{}
	for _, name := range append(c.env.Peers.Regions(), c.env.Region) {
		entry, err := bucket.Get(ctx, subject.RegionKey(subject.RegionWord, name))
		if errors.Is(err, jetstream.ErrKeyNotFound) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read the word about %s: %w", name, err)
		}
		word := &siroccov1.RegionWord{}
		if err := proto.Unmarshal(entry.Value(), word); err != nil {
			c.log.Warn("a word about a region can't be read", "peer", name, "err", err)
			continue
		}
		words[name] = &weight.Override{Level: word.GetWeight(), Until: word.GetUntil().AsTime()}
	}
	return words, nil
}
