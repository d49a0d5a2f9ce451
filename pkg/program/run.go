package program

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/peer"
	"github.com/sirocco-run/sirocco/pkg/pki"
	"github.com/sirocco-run/sirocco/pkg/telemetry"
)

// flushTimeout bounds what is still sent after the service has ended.
const flushTimeout = 5 * time.Second

// run makes the service's surroundings, runs it, and takes them down again.
func run(ctx context.Context, s Service, settings *Settings, log *slog.Logger) (err error) {
	telemetry.Propagate()
	var registry *prometheus.Registry
	if settings.MetricsAddress != "" {
		registry = prometheus.NewRegistry()
	}
	tele, err := telemetry.Start(ctx, telemetry.Config{
		Service: s.Name, Region: settings.Region, Instance: settings.Instance, Version: Version,
		Endpoint: settings.OTLPEndpoint, Registry: registry, Log: log,
	})
	if err != nil {
		return err
	}
	defer func() {
		fctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTimeout)
		defer cancel()
		if terr := tele.Shutdown(fctx); terr != nil {
			log.Warn("telemetry was not flushed", KeyError, terr)
		}
	}()
	keys, err := pki.Open(settings.Keys)
	if err != nil {
		return err
	}
	password, err := settings.password()
	if err != nil {
		return err
	}
	nc, err := settings.connect(ctx, s.Name, password, log)
	if err != nil {
		return err
	}
	defer func() {
		_ = nc.FlushTimeout(flushTimeout)
		nc.Close()
	}()
	env, err := settings.Env(nc, keys, log, tele)
	if err != nil {
		return err
	}
	if env.Peers, err = settings.PeerSet(s.Name, settings.NATSUser, password, log); err != nil {
		return err
	}
	defer env.Peers.Close()
	runner, err := s.New(env)
	if err != nil {
		return fmt.Errorf("build %s: %w", s.Name, err)
	}
	stop, err := ServeMetrics(settings.MetricsAddress, tele.Handler(), nc.IsConnected, log)
	if err != nil {
		return err
	}
	defer stop()
	log.Info("starting", "version", Version)
	err = runner.Run(ctx)
	log.Info("stopped")
	return err
}

// Connect connects to the bus as the flags say. service is shown in the
// server's list of connections. It waits for the bus until ctx ends.
func (s *Settings) Connect(ctx context.Context, service string, log *slog.Logger) (*nats.Conn, error) {
	password, err := s.password()
	if err != nil {
		return nil, err
	}
	return s.connect(ctx, service, password, log)
}

func (s *Settings) connect(ctx context.Context, service, password string, log *slog.Logger) (*nats.Conn, error) {
	tlsConfig, err := s.busTLS()
	if err != nil {
		return nil, err
	}
	return bus.Connect(ctx, bus.Config{
		URL: s.NATSURL, User: s.NATSUser, Password: password, TLS: tlsConfig,
		Name: service + "/" + s.Instance, Logger: log,
	})
}

// PeerSet returns the other regions, whose buses take the same user and password as
// the own one. Nothing is connected yet.
func (s *Settings) PeerSet(service, user, password string, log *slog.Logger) (*peer.Set, error) {
	urls, err := peer.Parse(s.Peers)
	if err != nil {
		return nil, fmt.Errorf("read --peers: %w", err)
	}
	tlsConfig, err := s.busTLS()
	if err != nil {
		return nil, err
	}
	return peer.NewSet(s.Region, urls, func(url string) (*nats.Conn, error) {
		return bus.Connect(context.Background(), bus.Config{
			URL: url, User: user, Password: password, TLS: tlsConfig, NoWait: true,
			Name: service + "/" + s.Instance + " of " + s.Region, Logger: log.With("peer", url),
		})
	}), nil
}

// Env puts together what a service is given.
func (s *Settings) Env(nc *nats.Conn, keys *pki.Folder, log *slog.Logger, tele *telemetry.Telemetry) (Env, error) {
	front, err := s.Front()
	if err != nil {
		return Env{}, err
	}
	js, err := jetstream.New(nc)
	if err != nil {
		return Env{}, fmt.Errorf("open JetStream: %w", err)
	}
	return Env{
		Region: s.Region, Instance: s.Instance, NC: nc, JS: js, Keys: keys, Front: front,
		Log: log, Tracer: tele.Tracer, Meter: tele.Meter,
	}, nil
}

// ServeMetrics listens on address until stop is called and serves /metrics,
// /debug/pprof (profiles of this process, for `go tool pprof`), /healthz (200: it
// lives) and /readyz (200 while ready, else 503). A service
// that can't reach the bus lives: started anew it would serve nothing until the
// bus is back. With an empty address it does nothing.
func ServeMetrics(address string, metrics http.Handler, ready func() bool, log *slog.Logger) (stop func(), err error) {
	if address == "" {
		return func() {}, nil
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen for --metrics-listen: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metrics)
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !ready() {
			http.Error(w, "the bus is away", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ready")
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := server.Serve(listener); err != nil && !errors.Is(err, http.ErrServerClosed) {
			log.Error("the metrics listener ended", KeyError, err)
		}
	}()
	return func() {
		_ = server.Close()
		<-done
	}, nil
}
