package regions

import (
	"context"
	"crypto/tls"
	"log/slog"
	"math"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/bustest"
	"github.com/sirocco-run/sirocco/pkg/cloudflare"
	"github.com/sirocco-run/sirocco/pkg/cloudflare/cloudflaretest"
	"github.com/sirocco-run/sirocco/pkg/peer"
	"github.com/sirocco-run/sirocco/pkg/pki"
	"github.com/sirocco-run/sirocco/pkg/program"
	"github.com/sirocco-run/sirocco/pkg/subject"
	"github.com/sirocco-run/sirocco/pkg/topology"
	"github.com/sirocco-run/sirocco/pkg/tunnel"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/spf13/pflag"
	"go.opentelemetry.io/otel/metric/noop"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// region is a region's bus with one controller. Time is the test's: it calls step.
type region struct {
	*Controller
	nodes *siroccov1.RegionReport
	url   string
	end   func()
}

// world makes regions that know each other.
func world(t *testing.T, names ...string) map[string]*region {
	t.Helper()
	all, urls := map[string]*region{}, map[string]string{}
	keys, err := pki.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		server := bustest.Server(t, nil)
		r := &region{nodes: &siroccov1.RegionReport{
			ReadyNodes: 2, Nodes: 2, CapacitySandboxes: 100, FreeSandboxes: 100, WarmSandboxes: 100,
		}, url: server.ClientURL(), end: server.Shutdown}
		nc, js := bustest.Connect(t, server)
		if err := topology.Ensure(t.Context(), js, topology.Options{}); err != nil {
			t.Fatal(err)
		}
		var cfg Config
		cfg.Flags(pflag.NewFlagSet("", pflag.ContinueOnError))
		env := program.Env{
			Region: name, NC: nc, JS: js, Keys: keys, Log: slog.New(slog.DiscardHandler), Meter: noop.NewMeterProvider(),
			Front: relay(t, keys),
		}
		urls[name], all[name] = r.url, r
		r.Controller, err = New(env, cfg, func() *siroccov1.RegionReport { return proto.CloneOf(r.nodes) })
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, r := range all {
		r.env.Peers = peer.NewSet(name, urls, func(url string) (*nats.Conn, error) {
			return nats.Connect(url, nats.MaxReconnects(-1), nats.ReconnectWait(10*time.Millisecond))
		})
		t.Cleanup(r.env.Peers.Close)
		var err error
		if r.probe, err = newProber(r.env.Keys.PublicCAPath()); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// relay serves what a probe asks, and returns where.
func relay(t *testing.T, keys *pki.Folder) tunnel.Front {
	t.Helper()
	pair, err := keys.PublicTLS([]string{"*.sandbox.localhost"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	server.StartTLS()
	t.Cleanup(server.Close)
	address, err := netip.ParseAddrPort(server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return tunnel.Front{Domain: "sandbox.localhost", Port: address.Port()}
}

// run lets a time pass, in steps of all regions given.
func run(t *testing.T, now *time.Time, length time.Duration, regions ...*region) {
	t.Helper()
	for end := now.Add(length); now.Before(end); *now = now.Add(every) {
		for _, r := range regions {
			if err := r.step(t.Context(), *now); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// weights returns what a region has decided.
func (r *region) weights(t *testing.T) map[string]*siroccov1.Region {
	t.Helper()
	bucket, err := r.env.JS.KeyValue(t.Context(), subject.BucketRegions)
	if err != nil {
		t.Fatal(err)
	}
	w, _, err := readWeights(t.Context(), bucket, r.env.Region)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]*siroccov1.Region{}
	for _, one := range w.GetRegions() {
		all[one.GetName()] = one
	}
	return all
}

func near(a, b float64) bool { return math.Abs(a-b) < 0.02 }

// TestARegionThatFails: traffic slides away from a region whose starts fail, each region
// seeing it for itself, and back when they succeed again.
func TestARegionThatFails(t *testing.T) {
	all := world(t, "eu", "us")
	eu, us := all["eu"], all["us"]
	now := time.Now().Truncate(time.Second)
	run(t, &now, 20*time.Second, eu, us)
	if w := eu.weights(t); !near(w["us"].GetWeight(), 0.5) {
		t.Fatalf("two equal regions: us has %.2f: %v", w["us"].GetWeight(), w["us"].GetReasons())
	}
	for range 60 {
		us.nodes.StartFailures += 10
		run(t, &now, time.Second, eu, us)
	}
	for _, from := range []*region{eu, us} {
		if w := from.weights(t)["us"]; w.GetWeight() > 0.3 || !w.GetAlive() || len(w.GetReasons()) < 2 {
			t.Errorf("seen from %s, a region that fails has %.2f: %v", from.env.Region, w.GetWeight(), w.GetReasons())
		}
	}
	for range 400 {
		us.nodes.Starts += 10
		run(t, &now, time.Second, eu, us)
	}
	if w := eu.weights(t)["us"]; !near(w.GetWeight(), 0.5) {
		t.Errorf("well again, it has %.2f: %v", w.GetWeight(), w.GetReasons())
	}
}

// TestARegionThatDies gets nothing as soon as it has been silent for long enough, also
// when its bus is gone altogether, and comes back slowly.
func TestARegionThatDies(t *testing.T) {
	all := world(t, "eu", "us")
	eu, us := all["eu"], all["us"]
	now := time.Now().Truncate(time.Second)
	run(t, &now, 10*time.Second, eu, us)
	before := eu.weights(t)["us"].GetWeight()
	run(t, &now, eu.cfg.DeadAfter, eu)
	if w := eu.weights(t)["us"]; !w.GetAlive() || w.GetWeight() == 0 {
		t.Errorf("silent for %v, it is dead already", eu.cfg.DeadAfter)
	}
	run(t, &now, 3*time.Second, eu)
	if w := eu.weights(t); w["us"].GetAlive() || w["us"].GetWeight() != 0 || w["eu"].GetWeight() != 1 {
		t.Errorf("silent for longer, it has %.2f of %.2f", w["us"].GetWeight(), before)
	}
	run(t, &now, 2*time.Second, eu, us)
	if w := eu.weights(t)["us"]; !w.GetAlive() || w.GetWeight() > 0.1 {
		t.Errorf("heard of again, it has %.2f at once", w.GetWeight())
	}
	us.end()
	run(t, &now, eu.cfg.DeadAfter+3*time.Second, eu)
	if w := eu.weights(t)["us"]; w.GetAlive() || w.GetWeight() != 0 {
		t.Errorf("without a bus, it has %.2f", w.GetWeight())
	}
}

// TestTwoSchedulersMakeOneStep: of two controllers of a region one makes each step, and
// either goes on from the other's.
func TestTwoSchedulersMakeOneStep(t *testing.T) {
	all := world(t, "eu", "us")
	first := all["eu"]
	second := &region{Controller: &Controller{env: first.env, cfg: first.cfg, log: first.log, local: first.local, meters: first.meters, probe: first.probe, edge: first.edge, seen: map[string]*seen{}}}
	bucket, err := first.env.JS.KeyValue(t.Context(), subject.BucketRegions)
	if err != nil {
		t.Fatal(err)
	}
	revisions := func() uint64 { return lastWeights(t, bucket) }
	now := time.Now().Truncate(time.Second)
	run(t, &now, 5*time.Second, first, second, all["us"])
	last := revisions()
	if err := first.step(t.Context(), now); err != nil {
		t.Fatal(err)
	}
	made := revisions()
	if made == last {
		t.Fatal("no step was made")
	}
	if err := second.step(t.Context(), now.Add(100*time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if revisions() != made {
		t.Error("the same step was made twice")
	}
	now = now.Add(time.Second)
	run(t, &now, 5*time.Second, second, all["us"])
	if revisions() == made {
		t.Error("the second does not go on alone")
	}
}

func lastWeights(t *testing.T, bucket jetstream.KeyValue) uint64 {
	t.Helper()
	entry, err := bucket.Get(t.Context(), subject.RegionKey(subject.RegionWeights, "eu"))
	if err != nil {
		t.Fatal(err)
	}
	return entry.Revision()
}

// TestAWordHolds until it ends, and what can't be read is no word.
func TestAWordHolds(t *testing.T) {
	all := world(t, "eu", "us")
	eu, us := all["eu"], all["us"]
	bucket, err := eu.env.JS.KeyValue(t.Context(), subject.BucketRegions)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().Truncate(time.Second)
	say := func(value []byte) {
		t.Helper()
		if _, err := bucket.Put(context.Background(), subject.RegionKey(subject.RegionWord, "us"), value); err != nil {
			t.Fatal(err)
		}
	}
	run(t, &now, 5*time.Second, eu, us)
	word, err := proto.Marshal(&siroccov1.RegionWord{Weight: 0, Until: timestamppb.New(now.Add(10 * time.Second))})
	if err != nil {
		t.Fatal(err)
	}
	say(word)
	run(t, &now, 5*time.Second, eu, us)
	if w := eu.weights(t)["us"]; w.GetWeight() != 0 || w.SetWeight == nil || w.GetCause() != "override" {
		t.Errorf("closed by a person, it has %.2f (%s)", w.GetWeight(), w.GetCause())
	}
	if w := us.weights(t)["us"]; w.GetWeight() == 0 {
		t.Error("a word in another region's bucket was followed")
	}
	run(t, &now, 60*time.Second, eu, us)
	if w := eu.weights(t)["us"]; w.GetWeight() == 0 || w.SetWeight != nil {
		t.Errorf("the word has ended, it has %.2f", w.GetWeight())
	}
	say([]byte{0xff})
	run(t, &now, 2*time.Second, eu, us)
	if w := eu.weights(t)["us"]; w.GetWeight() == 0 {
		t.Error("what can't be read closed a region")
	}
}

// TestConfig: what can't work is refused, with the flag's name.
func TestConfig(t *testing.T) {
	for _, change := range []func(*Config){
		func(c *Config) { c.DeadAfter = every }, func(c *Config) { c.NodeStartRate = 0 },
		func(c *Config) { c.NodeStartRate = math.NaN() }, func(c *Config) { c.Cloudflare.DryRun = true }, func(c *Config) { c.Weight.OutBelow = 2 },
	} {
		var cfg Config
		cfg.Flags(pflag.NewFlagSet("", pflag.ContinueOnError))
		change(&cfg)
		if _, err := New(program.Env{Log: slog.Default(), Meter: noop.NewMeterProvider()}, cfg, nil); err == nil {
			t.Errorf("%+v was taken", cfg)
		}
	}
}

// TestOneRegionSpeaks to Cloudflare: the first that is alive, and when it dies the next.
func TestOneRegionSpeaks(t *testing.T) {
	edge := cloudflaretest.New(t)
	all := world(t, "eu", "us")
	eu, us := all["eu"], all["us"]
	for _, r := range all {
		cfg := cloudflare.Config{
			Token: cloudflaretest.Token, URL: edge.URL(), Zone: cloudflaretest.Zone, Account: cloudflaretest.Account,
			LoadBalancer: cloudflaretest.LoadBalancer, Pools: map[string]string{"eu": cloudflaretest.PoolEU, "us": cloudflaretest.PoolUS},
			TTL: 60, Every: 10 * time.Millisecond, Timeout: 5 * time.Second, Check: time.Hour,
		}
		var err error
		if r.edge, err = cloudflare.New(r.env, cfg); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.edge.Run(ctx) }()
		t.Cleanup(func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
	now := time.Now().Truncate(time.Second)
	run(t, &now, 3*time.Second, eu, us)
	edge.Wait("half for each", func() bool {
		w := edge.Weights()
		return near(w[cloudflaretest.PoolEU], 0.5) && near(w[cloudflaretest.PoolUS], 0.5)
	})
	run(t, &now, us.cfg.DeadAfter+5*time.Second, us)
	edge.Wait("all for us, by us", func() bool {
		w := edge.Weights()
		return near(w[cloudflaretest.PoolUS], 1) && !edge.Enabled(cloudflaretest.PoolEU)
	})
}
