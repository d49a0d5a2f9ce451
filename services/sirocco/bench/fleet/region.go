package fleet

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/subject"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/sirocco-run/sirocco/services/sirocco/bench"
	"github.com/sirocco-run/sirocco/services/sirocco/up"
	"google.golang.org/protobuf/proto"
)

// startLimit bounds the start of the control plane, and that of all nodes.
const startLimit = 3 * time.Minute

// region is what is measured: a control plane and nodes, each in a process.
type region struct {
	cfg Config
	dir string
	// args are those of the control plane, for its next start.
	args []string
	// control is swapped by a restart while others look at it; nil before the start.
	control atomic.Pointer[bench.Process]
	nodes   *bench.Process
	nc      *nats.Conn
	js      jetstream.JetStream
}

// startRegion starts everything and returns once every node is ready.
func startRegion(ctx context.Context, cfg Config) (r *region, err error) {
	dir, err := os.MkdirTemp("", "sirocco-fleet-")
	if err != nil {
		return nil, err
	}
	r = &region{cfg: cfg, dir: dir}
	defer func() {
		if err != nil {
			r.stop()
		}
	}()
	ports, err := freePorts(4)
	if err != nil {
		return nil, err
	}
	r.args = []string{
		"up", "--json", "--data", r.data(), "--nodes", "0", "--runtime", "sim", "--schedulers", strconv.Itoa(cfg.Schedulers),
		"--listen", "127.0.0.1:" + ports[0], "--nats-port", ports[1], "--tunnel-port", ports[2], "--tcp-ports", "20000-20001",
		"--set", "api.create-rate=0", // it is this rate that is measured
		"--metrics-listen", "127.0.0.1:" + ports[3],
		"--set", "reaper.retained=" + strconv.Itoa(cfg.Retained), "--set", "api.event-bytes=" + strconv.FormatInt(cfg.EventBytes, 10),
	}
	for _, s := range cfg.Set {
		r.args = append(r.args, "--set", s)
	}
	if err := r.startControl(ctx); err != nil {
		return nil, err
	}
	access, err := up.BusAccess(r.data())
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
	r.nodes, err = bench.StartProcess(dir, "nodes", cfg.Program, "bench", "nodes", "--data", r.data(), "--nodes", strconv.Itoa(cfg.Nodes))
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

func (r *region) data() string { return filepath.Join(r.dir, "data") }

// startControl starts the control plane and returns once it says that it serves.
func (r *region) startControl(ctx context.Context) (err error) {
	control, err := bench.StartProcess(r.dir, "control", r.cfg.Program, r.args...)
	if err != nil {
		return err
	}
	r.control.Store(control)
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	line, err := control.FirstLine(ctx)
	if err == nil && !json.Valid([]byte(line)) && line != "{" {
		err = fmt.Errorf("the control plane said %q", line)
	}
	return err
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
	for len(ready) < r.cfg.Nodes {
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
			return fmt.Errorf("wait for %d nodes, %d are ready: %w: %s", r.cfg.Nodes, len(ready), context.Cause(ctx), r.nodes.Tail())
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

// stop ends everything and removes the folder.
func (r *region) stop() {
	if r.nc != nil {
		r.nc.Close()
	}
	for _, p := range []*bench.Process{r.nodes, r.control.Load()} {
		if p != nil {
			p.Stop()
		}
	}
	if !r.cfg.Keep {
		_ = os.RemoveAll(r.dir)
	}
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
