// Package api is the public door of a region: it serves the contract
// (proto/sirocco/v1) over gRPC, Connect, REST and the bus, finds out who asks,
// validates, and turns requests into records and commands, and records into
// answers. It decides no placement and carries no exec, file or tunnel traffic.
//
// Safety: a request that was answered well is durable. Liveness: one that this
// process took and did not finish is finished by the reaper and the schedulers.
package api

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	openapi "github.com/sirocco-run/sirocco/docs/api"
	"github.com/sirocco-run/sirocco/pkg/apikey"
	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/evacuation"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/mirror"
	"github.com/sirocco-run/sirocco/pkg/node"
	"github.com/sirocco-run/sirocco/pkg/program"
	"github.com/sirocco-run/sirocco/pkg/record"
	"github.com/sirocco-run/sirocco/pkg/rpc"
	"github.com/sirocco-run/sirocco/pkg/subject"
	"github.com/sirocco-run/sirocco/pkg/topology"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/sirocco-run/sirocco/services/api/abroad"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/trace"
	tracenoop "go.opentelemetry.io/otel/trace/noop"
	"golang.org/x/sync/errgroup"
)

// grace is how long requests under way may take to end when the service does.
const grace = 5 * time.Second

// nodeTimeout bounds an ask of a node.
const nodeTimeout = 2 * time.Second

// API is the service. What New leaves empty is filled by Run before anything
// is served.
type API struct {
	env     program.Env
	cfg     Config
	log     *slog.Logger
	tracer  trace.Tracer
	metrics *metrics
	openapi []byte

	contract *rpc.Contract
	routed   *rpc.Routes
	door     http.Handler
	signer   ed25519.PrivateKey

	store       *record.Store
	view        *record.View
	hosts       *node.Client
	keyStore    *apikey.Store
	keys        *apikey.View
	nodes       *mirror.Mirror[*siroccov1.Node]
	orders      *mirror.Mirror[*siroccov1.Node]
	orderBucket jetstream.KeyValue
	pools       *mirror.Mirror[*siroccov1.Pool]
	poolBucket  jetstream.KeyValue
	quotas      *mirror.Mirror[*siroccov1.QuotaLimits]
	quotaBucket jetstream.KeyValue
	images      jetstream.ObjectStore
	weights     *mirror.Mirror[*siroccov1.RegionWeights]
	evacuations *evacuation.Store
	drains      *mirror.Mirror[*siroccov1.Evacuation]
	seats       *seats
	calls       calls
	// abroad is what other regions last said of their sandboxes.
	abroad *abroad.Regions

	// stopping ends the streams that would never end by themselves.
	stopping chan struct{}
	ready    chan struct{}
	addr     net.Addr
}

// New builds the service, without I/O.
func New(env program.Env, cfg Config) (*API, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if env.NC == nil || env.JS == nil || env.Keys == nil {
		return nil, errors.New("build api: the bus and the key folder are needed")
	}
	if env.Log == nil {
		env.Log = slog.New(slog.DiscardHandler)
	}
	if env.Tracer == nil {
		env.Tracer = tracenoop.NewTracerProvider()
	}
	if env.Meter == nil {
		env.Meter = metricnoop.NewMeterProvider()
	}
	a := &API{
		env: env, cfg: cfg, log: env.Log, tracer: env.Tracer.Tracer("github.com/sirocco-run/sirocco/services/api"),
		nodes: mirror.New(decode[siroccov1.Node]), orders: mirror.New(decode[siroccov1.Node]), pools: mirror.New(decode[siroccov1.Pool]), quotas: mirror.New(decode[siroccov1.QuotaLimits]),
		weights: mirror.New(decodeWeights), drains: mirror.New(decodeDrain),
		stopping: make(chan struct{}), ready: make(chan struct{}),
	}
	a.seats = newSeats(a.limitsOf)
	a.calls = a.sandboxCalls()
	var err error
	if a.abroad, err = abroad.New(env.Peers, cfg.RegionLostAfter, a.log); err != nil {
		return nil, fmt.Errorf("build api: %w", err)
	}
	if a.metrics, err = newMetrics(env.Meter); err != nil {
		return nil, err
	}
	if a.openapi, err = openapi.JSON(); err != nil {
		return nil, err
	}
	a.contract, err = rpc.New(rpc.Config{
		Log: a.log, Tracer: env.Tracer, Meter: env.Meter, MaxBody: maxBody,
		Observe: func(ctx context.Context, transport, procedure string) func(fault.Code) {
			return a.metrics.begin(ctx, transport, procedure).end
		},
	})
	if err != nil {
		return nil, err
	}
	if a.routed, err = a.routes(); err != nil {
		return nil, err
	}
	a.door = a.contract.Door(a.serve)
	return a, nil
}

// Ready is closed once the api serves.
func (a *API) Ready() <-chan struct{} { return a.ready }

// Addr is the address of the HTTP listener; it is known once Ready is closed.
func (a *API) Addr() net.Addr { return a.addr }

// Run serves until ctx ends, and then returns nil once the requests under way
// have ended. It sets up the streams and buckets of the region first. It
// returns an error when the bus can't be set up or the address can't be
// listened on. It may be called once.
//
// Concurrency: Run owns every goroutine of the service; one follows each
// bucket, each request has one, and Run waits for all of them.
func (a *API) Run(ctx context.Context) error {
	if err := a.open(ctx); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return a.view.Run(ctx) })
	group.Go(func() error { return a.keys.Run(ctx) })
	group.Go(func() error { return a.nodes.Run(ctx, a.env.JS, subject.BucketNodes) })
	group.Go(func() error { return a.orders.Run(ctx, a.env.JS, subject.BucketNodeOrders) })
	group.Go(func() error { return a.pools.Run(ctx, a.env.JS, subject.BucketPools) })
	group.Go(func() error { return a.quotas.Run(ctx, a.env.JS, subject.BucketQuotas) })
	for _, name := range a.env.Peers.Regions() {
		p, err := a.env.Peers.Get(name)
		if err != nil {
			return err
		}
		group.Go(func() error { return a.keyStore.Follow(ctx, p.JS, name, a.log) })
	}
	group.Go(func() error { return a.abroad.Run(ctx) })
	group.Go(func() error { return a.weights.Run(ctx, a.env.JS, subject.BucketRegions) })
	group.Go(func() error { return a.drains.Run(ctx, a.env.JS, subject.BucketEvacuations) })
	group.Go(func() error {
		for _, caughtUp := range []<-chan struct{}{a.view.Ready(), a.keys.Ready(), a.nodes.Ready(), a.orders.Ready(), a.pools.Ready(), a.quotas.Ready(), a.weights.Ready(), a.drains.Ready()} {
			select {
			case <-caughtUp:
			case <-ctx.Done():
				return nil
			}
		}
		return a.serveAll(ctx)
	})
	return group.Wait()
}

// open ensures the region's streams and binds to them.
func (a *API) open(ctx context.Context) (err error) {
	if err := topology.Ensure(ctx, a.env.JS, a.cfg.Topology); err != nil {
		return err
	}
	if a.signer, err = a.env.Keys.TokenKey(); err != nil {
		return err
	}
	if a.store, err = record.Open(ctx, a.env.JS); err != nil {
		return err
	}
	a.hosts = node.NewClient(a.env.NC, a.store, nodeTimeout)
	a.view = record.NewView(a.store, record.ViewOptions{KeepEnded: true, OnChange: a.seats.change})
	keys, err := apikey.Open(ctx, a.env.JS)
	if err != nil {
		return err
	}
	a.keyStore, a.keys = keys, apikey.NewView(keys)
	for name, bucket := range map[string]*jetstream.KeyValue{
		subject.BucketNodeOrders: &a.orderBucket, subject.BucketPools: &a.poolBucket, subject.BucketQuotas: &a.quotaBucket,
	} {
		opened, err := a.env.JS.KeyValue(ctx, name)
		if err != nil {
			return fmt.Errorf("open bucket %s: %w", name, err)
		}
		*bucket = bus.Patient(opened)
	}
	if a.evacuations, err = evacuation.Open(ctx, a.env.JS); err != nil {
		return err
	}
	if a.images, err = a.env.JS.ObjectStore(ctx, subject.BucketImages); err != nil {
		return fmt.Errorf("open object store %s: %w", subject.BucketImages, err)
	}
	return nil
}

// untilStop is ctx that ends when the service begins to stop, too.
func (a *API) untilStop(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		select {
		case <-a.stopping:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}
