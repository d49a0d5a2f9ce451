package fleet

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/program"
	"github.com/sirocco-run/sirocco/pkg/subject"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/sirocco-run/sirocco/services/sirocco/bench"
	"github.com/sirocco-run/sirocco/services/sirocco/up"
	"google.golang.org/protobuf/proto"
)

// startLimit bounds the start of the control plane, and that of all nodes.
const startLimit = 3 * time.Minute

// site says what a region is started with.
type site struct {
	program string
	// dir is the home of its programs and where their logs go, data the folder of its
	// state.
	dir, data string
	// region is its name, prefix what the names of its nodes start with.
	region, prefix string
	// peers are all regions and their buses; "" if there is one. They share keys.
	peers, keys string
	ports       ports
	// count is how many nodes it has.
	count, schedulers int
	retained          int
	eventBytes        int64
	set               []string
}

// ports are those of a region, on loopback.
type ports struct{ api, bus, tunnels, metrics, nodes string }

// region is what is measured: a control plane and nodes, each in a process.
type region struct {
	site
	// args are those of the control plane, for its next start.
	args []string
	// control is swapped by a restart while others look at it; nil before the start.
	control atomic.Pointer[bench.Process]
	// ready is what the control plane said of itself.
	ready up.Ready
	nodes *bench.Process
	nc    *nats.Conn
	js    jetstream.JetStream
}

// startRegion starts everything and returns once every node is ready.
func startRegion(ctx context.Context, s site) (r *region, err error) {
	r = &region{site: s}
	defer func() {
		if err != nil {
			r.stop()
		}
	}()
	r.args = []string{
		"up", "--json", "--region", s.region, "--data", s.data, "--keys", s.keys, "--peers", s.peers, "--nodes", "0", "--runtime", "sim",
		"--schedulers", strconv.Itoa(s.schedulers),
		"--listen", "127.0.0.1:" + s.ports.api, "--nats-port", s.ports.bus, "--tunnel-port", s.ports.tunnels, "--tcp-ports", "20000-20001",
		"--domain", s.domain(),
		"--set", "api.create-rate=0", // it is this rate that is measured
		"--metrics-listen", "127.0.0.1:" + s.ports.metrics,
		"--set", "reaper.retained=" + strconv.Itoa(s.retained), "--set", "api.event-bytes=" + strconv.FormatInt(s.eventBytes, 10),
	}
	for _, s := range s.set {
		r.args = append(r.args, "--set", s)
	}
	if err := r.startControl(ctx); err != nil {
		return nil, err
	}
	access, err := up.BusAccess(s.data)
	if err != nil {
		return nil, err
	}
	r.nc, err = access.Connect(ctx, "bench", slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	if r.js, err = jetstream.New(r.nc); err != nil {
		return nil, err
	}
	began := time.Now()
	r.nodes, err = bench.StartProcess(s.dir, s.log("nodes"), s.program, "bench", "nodes", "--data", s.data, "--keys", s.keys, "--peers", s.peers,
		"--region", s.region, "--domain", s.domain(), "--tunnel-port", s.ports.tunnels, "--node-name", s.prefix, "--nodes", strconv.Itoa(s.count),
		"--metrics-listen", "127.0.0.1:"+s.ports.nodes)
	if err != nil {
		return nil, err
	}
	lctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	if _, err := r.nodes.FirstLine(lctx); err != nil {
		return nil, err
	}
	err = r.awaitNodes(lctx, began)
	return r, err
}

// log names the log of a program of this region.
func (s *site) log(program string) string { return s.region + "-" + program }

// domain is that of its relay: regions have one each.
func (s *site) domain() string { return s.region + "." + program.DefaultDomain }

// nodeNames are those of its nodes.
func (s *site) nodeNames() (names []string) {
	for i := range s.count {
		names = append(names, nodeName(s.prefix, i))
	}
	return names
}

// startControl starts the control plane and returns once it says that it serves.
func (r *region) startControl(ctx context.Context) (err error) {
	control, err := bench.StartProcess(r.dir, r.log("control"), r.program, r.args...)
	if err != nil {
		return err
	}
	r.control.Store(control)
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	return control.FirstJSON(ctx, &r.ready)
}

// awaitNodes waits until every node has said since began that it is ready.
func (r *region) awaitNodes(ctx context.Context, began time.Time) error {
	kv, err := r.js.KeyValue(ctx, subject.BucketNodes)
	if err != nil {
		return err
	}
	watch, err := kv.WatchAll(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = watch.Stop() }()
	ready := map[string]bool{}
	for len(ready) < r.count {
		select {
		case entry := <-watch.Updates():
			if entry == nil {
				continue
			}
			n := &siroccov1.Node{}
			if proto.Unmarshal(entry.Value(), n) == nil && n.GetReady() && n.GetSeenAt().AsTime().After(began) {
				ready[n.GetName()] = true
			}
		case <-ctx.Done():
			return fmt.Errorf("wait for %d nodes, %d are ready: %w: %s", r.count, len(ready), context.Cause(ctx), r.nodes.Tail())
		}
	}
	return nil
}

// restart ends the control plane and all agents and starts them again. It returns
// once the control plane says that it serves, and when it was started.
func (r *region) restart(ctx context.Context) (began time.Time, err error) {
	r.control.Load().Stop()
	if err := r.nodes.Signal(syscall.SIGHUP); err != nil {
		return began, fmt.Errorf("let the agents start again: %w", err)
	}
	began = time.Now()
	return began, r.startControl(ctx)
}

// stop ends everything.
func (r *region) stop() {
	if r.nc != nil {
		r.nc.Close()
	}
	for _, p := range []*bench.Process{r.nodes, r.control.Load()} {
		if p != nil {
			p.Stop()
		}
	}
}

// freePlaces returns for each of n regions ports that are free now.
func freePlaces(n int) ([]ports, error) {
	free, err := freePorts(5 * n)
	if err != nil {
		return nil, err
	}
	var all []ports
	for p := range slices.Chunk(free, 5) {
		all = append(all, ports{p[0], p[1], p[2], p[3], p[4]})
	}
	return all, nil
}

// freePorts returns ports of loopback that are free now.
func freePorts(n int) ([]string, error) {
	var ports []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer func() { _ = l.Close() }()
		_, port, err := net.SplitHostPort(l.Addr().String())
		if err != nil {
			return nil, err
		}
		ports = append(ports, port)
	}
	return ports, nil
}
