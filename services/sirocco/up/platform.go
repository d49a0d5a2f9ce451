package up

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/gofrs/flock"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/busauth"
	"github.com/sirocco-run/sirocco/pkg/havoc"
	"github.com/sirocco-run/sirocco/pkg/natsserver"
	"github.com/sirocco-run/sirocco/pkg/peer"
	"github.com/sirocco-run/sirocco/pkg/pki"
	"github.com/sirocco-run/sirocco/pkg/program"
	"github.com/sirocco-run/sirocco/pkg/telemetry"
	"github.com/sirocco-run/sirocco/services/api/api"
	"github.com/sirocco-run/sirocco/services/node-agent/agent"
	"github.com/sirocco-run/sirocco/services/reaper/reaper"
	"github.com/sirocco-run/sirocco/services/scheduler/scheduler"
	"github.com/sirocco-run/sirocco/services/tunnel-relay/relay"
	"golang.org/x/sync/errgroup"
)

// flushTimeout bounds what is still sent when everything has ended.
const flushTimeout = 5 * time.Second

// Platform is all services of one machine.
type Platform struct {
	cfg    Config
	log    *slog.Logger
	stderr io.Writer

	api       api.Config
	scheduler scheduler.Config
	reaper    reaper.Config
	relay     relay.Config
	agents    []agent.Config
}

// New checks the configuration and builds nothing yet. Logs go to stderr.
func New(cfg Config, stderr io.Writer) (*Platform, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	p := &Platform{cfg: cfg, stderr: stderr}
	var errs [6]error
	p.api, errs[0] = p.cfg.api()
	p.scheduler, errs[1] = p.cfg.scheduler()
	p.reaper, errs[2] = p.cfg.reaper()
	p.relay, errs[3] = p.cfg.relay()
	p.agents, errs[4] = p.cfg.agents()
	p.log, errs[5] = cfg.Settings.Logger(stderr, "up")
	for _, err := range errs {
		if err != nil {
			return nil, err // they would repeat each other
		}
	}
	return p, nil
}

// part is a service that runs, and what it needs.
type part struct {
	name, instance string
	runner         program.Runner
	tele           *telemetry.Telemetry
	nc             *nats.Conn
	peers          *peer.Set
}

// Run runs everything until ctx ends, or until one service can't go on, whose
// error it returns. Services end together, then the bus. Sandboxes live on
// unless the configuration says otherwise.
//
// Concurrency: one goroutine for each service, one that waits for readiness,
// one that ends the sandboxes if that is wanted; Run waits for all.
func (p *Platform) Run(ctx context.Context) (err error) {
	telemetry.Propagate()
	if err := os.MkdirAll(p.cfg.Data, 0o700); err != nil {
		return p.cfg.unusable(err)
	}
	unlock, err := p.cfg.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if p.cfg.Check != nil {
		if err := p.cfg.Check(); err != nil {
			return err
		}
	}
	p.warnOfOthers()
	keys, err := pki.Open(p.cfg.Settings.Keys)
	if err != nil {
		return err
	}
	secrets, err := busauth.Load(p.cfg.Settings.Keys)
	if err != nil {
		return err
	}
	server, err := natsserver.Start(ctx, natsserver.Config{
		Dir: filepath.Join(p.cfg.Data, "bus"), Port: p.cfg.NATSPort, Log: p.log, Configure: secrets.ServerOptions, Gate: p.cfg.Faults,
	})
	if err != nil {
		return err
	}
	defer server.Close()
	if err := WriteSecret(urlFile(p.cfg.Data), server.URL()+"\n"); err != nil {
		return fmt.Errorf("keep the bus's address: %w", err)
	}

	var registry *prometheus.Registry
	if p.cfg.Settings.MetricsAddress != "" {
		registry = prometheus.NewRegistry()
	}
	s := &start{platform: p, server: server, password: secrets.ServicePassword, keys: keys, registry: registry, began: time.Now()}
	defer s.close()
	if err := s.build(ctx); err != nil {
		return err
	}
	stop, err := program.ServeMetrics(p.cfg.Settings.MetricsAddress, s.parts[0].tele.Handler(), s.parts[0].nc.IsConnected, p.log)
	if err != nil {
		return err
	}
	defer stop()
	return s.run(ctx)
}

// warnOfOthers tells of nodes that an earlier run had and this one has not: what
// still runs there is found by nobody.
func (p *Platform) warnOfOthers() {
	others, err := filepath.Glob(filepath.Join(p.cfg.Data, p.cfg.NodeName+"-*"))
	if err != nil {
		return
	}
	for _, dir := range others {
		n, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(dir), p.cfg.NodeName+"-"))
		if err == nil && n > p.cfg.Nodes {
			p.log.Warn("an earlier run had more nodes: sandboxes of this one are not found again; start with --nodes at least as large", "node", filepath.Base(dir))
		}
	}
}

// unusable says what to do about a state folder that can't be written to.
func (c Config) unusable(err error) error {
	advice := "name another with --data"
	if errors.Is(err, fs.ErrPermission) {
		advice = "run it as the folder's owner (real sandboxes need root), or " + advice
	}
	return fmt.Errorf("use the state folder %s: %w: %s", c.Data, err, advice)
}

// lock keeps a second platform away from the folder, and leaves the process id
// for `sirocco down`.
func (c Config) lock() (unlock func(), err error) {
	lock := flock.New(lockFile(c.Data))
	ok, err := lock.TryLock()
	if err != nil {
		return nil, c.unusable(err)
	}
	if !ok {
		pid, _ := readSecret(pidFile(c.Data))
		return nil, fmt.Errorf("another `sirocco up` (pid %s) uses %s: stop it, or name another folder with --data", pid, c.Data)
	}
	if err := WriteSecret(pidFile(c.Data), strconv.Itoa(os.Getpid())+"\n"); err != nil {
		return nil, errors.Join(c.unusable(err), lock.Unlock())
	}
	return func() {
		_ = os.Remove(pidFile(c.Data))
		_ = lock.Unlock()
	}, nil
}

// start is one run of a platform.
type start struct {
	platform *Platform
	server   *natsserver.Server
	password string
	keys     *pki.Folder
	registry *prometheus.Registry
	began    time.Time

	parts []*part
	api   *api.API
	relay *relay.Relay
}

// build makes every service, each with a connection of its own.
func (s *start) build(ctx context.Context) error {
	p := s.platform
	if err := s.add(ctx, nameAPI, "", func(env program.Env) (r program.Runner, err error) {
		s.api, err = api.New(env, p.api)
		return s.api, err
	}); err != nil {
		return err
	}
	for i := range p.cfg.Schedulers {
		if err := s.add(ctx, nameScheduler, "scheduler-"+strconv.Itoa(i+1), func(env program.Env) (program.Runner, error) {
			return scheduler.New(env, p.scheduler)
		}); err != nil {
			return err
		}
	}
	if err := s.add(ctx, nameReaper, "", func(env program.Env) (program.Runner, error) {
		return reaper.New(env, p.reaper)
	}); err != nil {
		return err
	}
	if err := s.add(ctx, nameRelay, "", func(env program.Env) (r program.Runner, err error) {
		s.relay, err = relay.New(env, p.relay)
		return s.relay, err
	}); err != nil {
		return err
	}
	for i, cfg := range p.agents {
		if err := s.add(ctx, nameAgent, p.cfg.nodeName(i), func(env program.Env) (program.Runner, error) {
			return agent.New(env, cfg)
		}); err != nil {
			return err
		}
	}
	return nil
}

func (s *start) add(ctx context.Context, name, instance string, build func(program.Env) (program.Runner, error)) error {
	settings := s.platform.cfg.Settings
	if instance != "" {
		settings.Instance = instance
	}
	log, err := settings.Logger(s.platform.stderr, name)
	if err != nil {
		return err
	}
	part := &part{name: name, instance: settings.Instance}
	part.tele, err = telemetry.Start(ctx, telemetry.Config{
		Service: name, Region: settings.Region, Instance: settings.Instance, Version: program.Version,
		Endpoint: settings.OTLPEndpoint, Registry: s.registry, Log: log,
	})
	if err != nil {
		return err
	}
	s.parts = append(s.parts, part)
	part.nc, err = bus.Connect(ctx, bus.Config{
		URL: s.server.URL(), InProcess: s.server, User: busauth.UserService, Password: s.password,
		Name: name + "/" + settings.Instance, Logger: log,
	})
	if err != nil {
		return err
	}
	env, err := settings.Env(part.nc, s.keys, log, part.tele)
	if err != nil {
		return err
	}
	if env.Peers, err = settings.PeerSet(name, busauth.UserService, s.password, log); err != nil {
		return err
	}
	part.peers = env.Peers
	if part.runner, err = build(env); err != nil {
		return fmt.Errorf("build %s: %w", name, err)
	}
	return nil
}

// run runs the services until ctx ends.
func (s *start) run(ctx context.Context) error {
	p := s.platform
	// Sandboxes can be ended only while the services still run.
	sctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	group, gctx := errgroup.WithContext(sctx)
	for _, part := range s.parts {
		group.Go(func() error {
			err := part.runner.Run(gctx)
			if gctx.Err() != nil {
				if err != nil && !errors.Is(err, context.Canceled) {
					p.log.Warn("a service ended with an error", "name", part.name, "of", part.instance, program.KeyError, err)
				}
				return nil
			}
			if err == nil {
				err = errors.New("it ended by itself")
			}
			return fmt.Errorf("%s (%s): %w", part.name, part.instance, err)
		})
	}
	if p.cfg.Faults {
		group.Go(func() error { return s.followFaults(gctx) })
	}
	group.Go(func() error {
		defer stop()
		if err := s.ready(ctx, gctx); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
		case <-gctx.Done():
			return nil
		}
		if !p.cfg.StopSandboxes {
			return nil
		}
		_, err := StopSandboxes(gctx, s.parts[0].nc)
		return err
	})
	return group.Wait()
}

// followFaults does to the bus what `sirocco fault bus` says, until ctx ends.
func (s *start) followFaults(ctx context.Context) error {
	js, err := jetstream.New(s.parts[0].nc)
	if err != nil {
		return err
	}
	return havoc.FollowBus(ctx, js, s.platform.cfg.Settings.Region, func(o havoc.BusOrder) {
		s.server.Hold(natsserver.Hold{StopFrom: o.StopFrom, Stop: o.StopUntil, Latency: o.Latency, Until: o.Until})
	})
}

// close takes down what build made.
func (s *start) close() {
	ctx, cancel := context.WithTimeout(context.Background(), flushTimeout)
	defer cancel()
	for _, part := range s.parts {
		part.peers.Close()
		if part.nc != nil {
			part.nc.Close()
		}
		if err := part.tele.Shutdown(ctx); err != nil {
			s.platform.log.Warn("telemetry was not flushed", program.KeyError, err)
		}
	}
}
