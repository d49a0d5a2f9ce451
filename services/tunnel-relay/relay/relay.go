// Package relay is the public face of a region: TLS and raw TCP from clients,
// streams to the node-agents that run their sandboxes.
//
//	<port>-<id>.<domain>   an HTTPS or TLS-passthrough port of a sandbox
//	data.<domain>          exec, files and logs of the sandbox that a token names
//	:<public port>         a raw TCP port of a sandbox
//
// Every route comes from a copy of the records in memory: no request asks the
// bus, and the relay goes on when the bus is away. A client whose sandbox is
// starting, waking or moving is held, not refused. Only the newest epoch is
// served: streams to an older one end as soon as a newer one is known.
//
// While a sandbox moves, what is new waits; what is under way goes on where it is
// and is answered there (the node waits for that); and what was cut off before its
// answer is sent again to the new place, if it may be.
//
// Concurrency: Run owns every goroutine. Each connection of a client has its
// own; joined raw connections have two.
package relay

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log" //nolint:depguard // http.Server takes no other
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"sync"
	"time"

	"github.com/sirocco-run/sirocco/pkg/link"
	"github.com/sirocco-run/sirocco/pkg/program"
	"github.com/sirocco-run/sirocco/pkg/record"
	"github.com/sirocco-run/sirocco/pkg/topology"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

// Relay is one relay. Make it with New.
type Relay struct {
	env      program.Env
	cfg      Config
	log      *slog.Logger
	errorLog *log.Logger
	tracer   trace.Tracer
	meters   *meters

	router *router
	gate   *gate
	ports  *portSet
	proxy  *httputil.ReverseProxy
	// apps speaks HTTP/1.1 to apps, appsH2 h2c to gRPC apps and to agents.
	apps, appsH2 *http.Transport

	tlsConfig *tls.Config
	tokenKey  ed25519.PublicKey
	acmeRoots *x509.CertPool
	https     *handoff

	// streams lives until the drain is over; clients are those who use it.
	streams context.Context
	clients crew

	listening chan struct{}
	address   net.Addr
}

// New builds a relay without I/O. The error says what in the configuration is
// wrong.
func New(env program.Env, cfg Config) (*Relay, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	r := &Relay{env: env, cfg: cfg, log: env.Log, tracer: env.Tracer.Tracer(scope), listening: make(chan struct{})}
	r.errorLog = slog.NewLogLogger(env.Log.Handler(), slog.LevelDebug)
	r.router = &router{cfg: cfg, log: env.Log, ready: make(chan struct{}), conns: newConnSet()}
	var err error
	r.meters, err = newMeters(env.Meter, r.router.held.Load, r.router.conns.count.Load, func() int64 { return r.gate.len() })
	if err != nil {
		return nil, err
	}
	r.gate = newGate(cfg, r.meters)
	r.ports = newPortSet(cfg.TCPBind, env.Front, func(ctx context.Context, l net.Listener, o owner) {
		r.accept(ctx, l, func(c *clientConn) { r.serveRaw(c, o.id, o.port) })
	}, func(port uint16, err error) {
		r.log.Warn("a public TCP port can't be opened; trying again", "port", port, "err", err)
	})
	r.proxy = r.newProxy()
	r.apps, r.appsH2 = r.newTransport(false), r.newTransport(true)
	return r, nil
}

// Listening is closed once the relay takes connections; Addr is known then.
func (r *Relay) Listening() <-chan struct{} { return r.listening }

// Ready is closed once the relay has heard of every sandbox for the first time.
// Requests that come before are held.
func (r *Relay) Ready() <-chan struct{} { return r.router.ready }

// Addr is the address of the TLS listener, after Listening.
func (r *Relay) Addr() net.Addr { return r.address }

// Run listens and serves until ctx ends, then lets what is under way finish for
// the time of the drain. The error says why the relay could not start, or go
// on; nil when ctx ended it.
func (r *Relay) Run(ctx context.Context) error {
	// What serves clients outlives ctx by the drain.
	live, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	r.streams, r.router.stopping = live, ctx
	stopCerts, err := r.prepare()
	if err != nil {
		return err
	}
	defer stopCerts()
	defer r.router.dialer.Close()
	config := net.ListenConfig{KeepAlive: 15 * time.Second}
	listener, err := config.Listen(ctx, "tcp", r.cfg.Listen)
	if err != nil {
		return fmt.Errorf("listen for --tunnel-listen: %w", err)
	}
	r.address, r.https = listener.Addr(), newHandoff(listener.Addr())
	server := r.newServer()

	var own sync.WaitGroup
	failed := make(chan error, 1)
	own.Go(func() {
		if err := server.Serve(r.https); err != nil && !errors.Is(err, http.ErrServerClosed) {
			failed <- fmt.Errorf("serve HTTPS: %w", err)
		}
	})
	own.Go(func() { r.accept(ctx, listener, r.serveTLS) })
	own.Go(func() { r.ports.run(ctx) })
	own.Go(func() { r.follow(live) })
	r.log.Info("listening", "address", listener.Addr().String(), "domain", r.env.Front.Domain)
	close(r.listening)

	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	_ = listener.Close()
	r.drain(server)
	cancel()
	r.gate.closeAll()
	r.clients.close()
	r.apps.CloseIdleConnections()
	r.appsH2.CloseIdleConnections()
	own.Wait()
	return err
}

// prepare reads keys and certificates.
func (r *Relay) prepare() (stop func(), err error) {
	client, err := r.env.Keys.ClientTLS()
	if err != nil {
		return nil, err
	}
	if r.tokenKey, err = r.env.Keys.TokenPublic(); err != nil {
		return nil, err
	}
	r.tlsConfig = &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}, GetConfigForClient: r.decide}
	if r.cfg.ACME {
		r.tlsConfig.NextProtos = append(r.tlsConfig.NextProtos, "acme-tls/1")
		r.tlsConfig.GetCertificate, stop = r.newACME()
	} else {
		own := ownCerts(r.env.Keys, []string{"*." + r.env.Front.Domain, r.env.Front.Domain}, r.log)
		if r.cfg.CertFile != "" {
			own = fileCerts(r.cfg.CertFile, r.cfg.KeyFile, r.log)
		}
		if err := own.refresh(); err != nil {
			return nil, err
		}
		r.tlsConfig.GetCertificate = own.get
		ctx, cancel := context.WithCancel(r.streams)
		done := make(chan struct{})
		go func() { defer close(done); own.run(ctx) }()
		stop = func() { cancel(); <-done }
	}
	r.router.dialer = link.NewDialer(client, r.log)
	return stop, nil
}

func (r *Relay) newServer() *http.Server {
	return &http.Server{
		Handler:           r,
		ConnContext:       withCork,
		ReadHeaderTimeout: r.cfg.HeaderTimeout,
		IdleTimeout:       r.cfg.IdleTimeout,
		MaxHeaderBytes:    r.cfg.MaxHeaderBytes,
		ErrorLog:          r.errorLog,
		// OPTIONS * is the app's to answer.
		DisableGeneralOptionsHandler: true,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: 250,
			// A client that vanished is noticed, though nothing is sent.
			SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second,
			MaxReceiveBufferPerConnection: 4 << 20, MaxReceiveBufferPerStream: 1 << 20,
		},
	}
}

// follow keeps the view fresh. It never gives up: without a bus the relay
// serves what it knows.
func (r *Relay) follow(ctx context.Context) {
	for ctx.Err() == nil {
		err := topology.Wait(ctx, r.env.JS)
		var store *record.Store
		if err == nil {
			store, err = record.Open(ctx, r.env.JS)
		}
		if err != nil {
			select {
			case <-time.After(250 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		}
		view := record.NewView(store, record.ViewOptions{KeepEnded: true, OnChange: r.changed})
		r.router.view.Store(view)
		var wg sync.WaitGroup
		wg.Go(func() {
			select {
			case <-view.Ready():
				close(r.router.ready)
			case <-ctx.Done():
			}
		})
		wg.Go(func() { r.followNodes(ctx) })
		_ = view.Run(ctx) // it ends only with ctx
		wg.Wait()
		return
	}
}

// changed is called by the view for each record, in order.
func (r *Relay) changed(old, now *siroccov1.Sandbox) {
	r.ports.changed(old, now)
	if old == nil || now == nil {
		return
	}
	if is := phaseOf(now); is != phaseOf(old) {
		r.router.conns.retire(now.GetId(), is)
	}
	if epoch := now.GetPlacement().GetEpoch(); epoch > old.GetPlacement().GetEpoch() {
		if n := r.router.conns.leave(now.GetId(), epoch); n > 0 {
			r.meters.parted(n)
		}
	}
}

// drain lets requests and streams finish, but not for longer than configured.
func (r *Relay) drain(server *http.Server) {
	ctx, cancel := context.WithTimeout(r.streams, r.cfg.Drain)
	defer cancel()
	_ = server.Shutdown(ctx) // GOAWAY, and no more requests on kept connections
	select {
	case <-r.clients.wait():
	case <-ctx.Done():
	}
	_ = server.Close()
}

// startSpan starts the relay's span and returns it with its traceparent, "" if
// nothing is traced.
func (r *Relay) startSpan(ctx context.Context, name string) (context.Context, trace.Span, string) {
	ctx, span := r.tracer.Start(ctx, name, trace.WithSpanKind(trace.SpanKindServer))
	if !span.SpanContext().IsValid() {
		return ctx, span, ""
	}
	carrier := propagation.MapCarrier{}
	otel.GetTextMapPropagator().Inject(ctx, carrier)
	return ctx, span, carrier["traceparent"]
}
