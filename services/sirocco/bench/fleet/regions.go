package fleet

import (
	"context"
	"fmt"
	"math"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/sirocco-run/sirocco/pkg/busauth"
	"github.com/sirocco-run/sirocco/pkg/pki"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	sirocco "github.com/sirocco-run/sirocco/sdk/go"
	"github.com/sirocco-run/sirocco/services/sirocco/up"
	"golang.org/x/sync/errgroup"
)

const (
	// calmLimit is how long regions may take to trust each other: slow in.
	calmLimit = 5 * time.Minute
	// evenly is by how much the weights of regions may differ that get the same: all
	// rise together, so it need not be waited until each is all the way up.
	evenly, calmLevel = 0.05, 0.6
)

// regions are several that name each other as peers, each with a bus of its own.
type regions struct {
	all []*region
	// clients are of the public API, one for each region.
	clients []*sirocco.Client
}

// startRegions starts the regions of a measurement in a folder, and returns once all
// serve and send each other what is new.
func startRegions(ctx context.Context, cfg Evacuation, dir string) (_ *regions, err error) {
	data := filepath.Join(dir, "data")
	keys := up.KeysDir(data)
	if err := os.MkdirAll(data, 0o700); err != nil {
		return nil, err
	}
	// All share them, so they are made before all.
	if _, err := pki.Open(keys); err != nil {
		return nil, err
	}
	if _, err := busauth.Load(keys); err != nil {
		return nil, err
	}
	free, err := freePlaces(cfg.Regions)
	if err != nil {
		return nil, err
	}
	var peers []string
	for i, p := range free {
		peers = append(peers, regionNames[i]+"=nats://"+net.JoinHostPort("127.0.0.1", p.bus))
	}
	r := &regions{all: make([]*region, cfg.Regions)}
	defer func() {
		if err != nil {
			r.stop()
		}
	}()
	group, gctx := errgroup.WithContext(ctx)
	for i := range r.all {
		name := regionNames[i]
		group.Go(func() (err error) {
			r.all[i], err = startRegion(gctx, site{
				program: cfg.Program, dir: dir, data: filepath.Join(data, name), keys: keys, region: name, prefix: name,
				peers: strings.Join(peers, ";"), ports: free[i], schedulers: cfg.Schedulers,
				count:    cfg.Nodes*(i+1)/cfg.Regions - cfg.Nodes*i/cfg.Regions,
				retained: cfg.Retained, eventBytes: cfg.EventBytes, set: cfg.Set,
			})
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return r, err
	}
	for _, one := range r.all {
		client, err := sirocco.New(sirocco.Config{API: one.ready.API, Key: one.ready.Key, CAFile: one.ready.CA})
		if err != nil {
			return r, err
		}
		r.clients = append(r.clients, client)
	}
	err = r.calm(ctx)
	return r, err
}

// calm waits until every region takes all to be healthy, and gives them the same.
func (r *regions) calm(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, calmLimit)
	defer cancel()
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for i := 0; i < len(r.clients); {
		why := ""
		all, err := r.seenFrom(ctx, i)
		if err != nil {
			why = err.Error()
		} else if len(all) < len(r.all) {
			why = fmt.Sprintf("it knows %d regions", len(all))
		}
		for _, other := range all {
			if off := other.GetWeight() - 1/float64(len(r.all)); !other.GetAlive() || other.GetLevel() < calmLevel || math.Abs(off) > evenly {
				why = fmt.Sprintf("%s has the weight %.2f and the level %.2f (%s): %s",
					other.GetName(), other.GetWeight(), other.GetLevel(), other.GetCause(), strings.Join(other.GetReasons(), "; "))
			}
		}
		if why == "" {
			i++
			continue
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("wait until region %s takes all to be healthy: %w: %s", r.all[i].region, context.Cause(ctx), why)
		}
	}
	return nil
}

// seenFrom returns how the i-th region sees all.
func (r *regions) seenFrom(ctx context.Context, i int) ([]*siroccov1.Region, error) {
	resp, err := r.clients[i].Regions().List(ctx, connect.NewRequest(&siroccov1.ListRegionsRequest{}))
	if err != nil {
		return nil, err
	}
	return resp.Msg.GetRegions(), nil
}

// cpu is what the control planes, and the nodes, have used so far.
func (r *regions) cpu() (used [2]time.Duration) {
	for _, one := range r.all {
		used[0] += one.control.Load().Usage().CPU
		used[1] += one.nodes.Usage().CPU
	}
	return used
}

// stop ends all of them.
func (r *regions) stop() {
	for _, c := range r.clients {
		c.Close()
	}
	var group errgroup.Group
	for _, one := range r.all {
		if one != nil {
			group.Go(func() error { one.stop(); return nil })
		}
	}
	_ = group.Wait()
}
