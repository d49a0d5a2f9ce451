package relay

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/bustest"
	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/link"
	"github.com/sirocco-run/sirocco/pkg/pki"
	"github.com/sirocco-run/sirocco/pkg/program"
	"github.com/sirocco-run/sirocco/pkg/record"
	"github.com/sirocco-run/sirocco/pkg/sandboxid"
	"github.com/sirocco-run/sirocco/pkg/tunnel"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	tracenoop "go.opentelemetry.io/otel/trace/noop"
	"google.golang.org/protobuf/types/known/durationpb"
)

const (
	https       = siroccov1.Protocol_PROTOCOL_HTTPS
	rawTCP      = siroccov1.Protocol_PROTOCOL_TCP
	passthrough = siroccov1.Protocol_PROTOCOL_TLS_PASSTHROUGH
)

// rig is a region with a bus, a relay and one or more agents.
type rig struct {
	t     testing.TB
	nc    *nats.Conn
	js    jetstream.JetStream
	store *record.Store
	keys  *pki.Folder
	front tunnel.Front
	relay *Relay
	roots *x509.CertPool
	stop  func() // stops the relay and returns when it has
}

func newRig(t testing.TB, cfg Config) *rig {
	t.Helper()
	nc, js := bustest.Start(t)
	return newRigOn(t, nc, js, cfg)
}

func newRigOn(t testing.TB, nc *nats.Conn, js jetstream.JetStream, cfg Config) *rig {
	t.Helper()
	g := buildRig(t, nc, js, cfg)
	g.start()
	if !cfg.ACME && cfg.CertFile == "" {
		pem, err := os.ReadFile(g.keys.PublicCAPath())
		if err != nil {
			t.Fatal(err)
		}
		g.roots = x509.NewCertPool()
		g.roots.AppendCertsFromPEM(pem)
	}
	return g
}

// buildRig is newRigOn without starting the relay.
func buildRig(t testing.TB, nc *nats.Conn, js jetstream.JetStream, cfg Config) *rig {
	t.Helper()
	g := &rig{t: t, nc: nc, js: js, front: tunnel.Front{Domain: "sandbox.test", Port: 7443, TCPFirst: 20000, TCPLast: 20999}}
	var err error
	if g.keys, err = pki.Open(t.TempDir()); err != nil {
		t.Fatal(err)
	}
	if g.store, err = record.Open(t.Context(), js); err != nil {
		t.Fatal(err)
	}
	if cfg.Listen == "" {
		cfg.Listen = "127.0.0.1:0"
	}
	if cfg.Drain == 0 {
		cfg.Drain = 200 * time.Millisecond
	}
	g.relay, err = New(g.env(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func (g *rig) env() program.Env {
	return program.Env{
		Region: "test", Instance: "relay-1", NC: g.nc, JS: g.js, Keys: g.keys, Front: g.front,
		Log: slog.New(slog.DiscardHandler), Tracer: tracenoop.NewTracerProvider(), Meter: metricnoop.NewMeterProvider(),
	}
}

func (g *rig) start() {
	g.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.relay.Run(ctx) }()
	g.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			g.t.Errorf("Run: %v", err)
		}
		noLeaks(g.t, g.relay)
	})
	g.t.Cleanup(g.stop)
	select {
	case <-g.relay.Listening():
	case err := <-done:
		g.t.Fatalf("Run: %v", err)
	}
	<-g.relay.Ready()
}

// noLeaks checks that a stopped relay left nothing behind.
func noLeaks(t testing.TB, r *Relay) {
	t.Helper()
	if n := r.gate.len(); n != 0 {
		t.Errorf("%d connections of clients are left", n)
	}
	eventually(t, "no goroutine of the relay is left", func() bool {
		buf := make([]byte, 4<<20)
		for g := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
			if strings.Contains(g, "relay.(*Relay)") || strings.Contains(g, "relay.splice") || strings.Contains(g, "relay.(*portSet)") {
				return false
			}
		}
		return r.router.conns.count.Load() == 0
	})
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(15 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<20)
			t.Fatalf("not in 15 s: %s\n%s", what, buf[:runtime.Stack(buf, true)])
		}
		<-tick.C
	}
}

// agent is an agent's end of the link, with ports that lead to local servers.
type agent struct {
	t       testing.TB
	address string
	serve   func(net.Listener) // until stop
	stop    func()

	mu      sync.Mutex
	runs    map[string]uint64            // sandbox: epoch
	ports   map[string]map[uint16]string // sandbox: port: local address
	headers []link.Header
	flows   map[*flow]struct{}
	shut    map[string]uint64 // up to which epoch sandboxes take no requests
	data    http.Handler
	feed    *handoff
}

func (g *rig) agent() *agent { return g.agentAt("127.0.0.1:0") }

func (g *rig) agentAt(at string) *agent {
	g.t.Helper()
	a := &agent{t: g.t, runs: map[string]uint64{}, ports: map[string]map[uint16]string{}, flows: map[*flow]struct{}{}, shut: map[string]uint64{}}
	cfg, err := g.keys.ServerTLS()
	if err != nil {
		g.t.Fatal(err)
	}
	listener, err := net.Listen("tcp", at)
	if err != nil {
		g.t.Fatal(err)
	}
	a.address, a.feed = listener.Addr().String(), newHandoff(listener.Addr())
	data := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { a.data.ServeHTTP(w, r) }), Protocols: new(http.Protocols)}
	data.Protocols.SetHTTP1(true)
	data.Protocols.SetUnencryptedHTTP2(true)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = data.Serve(a.feed) })
	a.serve = func(l net.Listener) {
		wg.Go(func() {
			if err := link.Serve(ctx, l, cfg, slog.New(slog.DiscardHandler), a.handle); err != nil {
				g.t.Errorf("link.Serve: %v", err)
			}
		})
	}
	a.serve(listener)
	a.stop = sync.OnceFunc(func() { cancel(); _ = data.Close(); wg.Wait() })
	g.t.Cleanup(a.stop)
	return a
}

// listenLocal makes the agent listen on a socket of this machine too.
func (a *agent) listenLocal() (socket string) {
	a.t.Helper()
	dir, err := os.MkdirTemp("", "link") // shorter than the test's own
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { _ = os.RemoveAll(dir) })
	local, err := link.ListenLocal(filepath.Join(dir, "l"))
	if err != nil {
		a.t.Fatal(err)
	}
	a.serve(local)
	return local.Addr().String()
}

// waitClose lets link.Serve hold the stream until the data server closes it.
type waitClose struct {
	net.Conn
	done chan struct{}
	once sync.Once
}

func (c *waitClose) Close() error {
	c.once.Do(func() { close(c.done) })
	return c.Conn.Close()
}

func (a *agent) handle(ctx context.Context, h link.Header) (func(net.Conn), error) {
	a.mu.Lock()
	a.headers = append(a.headers, h)
	epoch, runs := a.runs[h.Sandbox]
	local := a.ports[h.Sandbox][h.Port]
	shut := h.Epoch <= a.shut[h.Sandbox]
	a.mu.Unlock()
	if shut {
		return nil, link.Leaving(h.Sandbox)
	}
	if !runs || epoch != h.Epoch {
		return nil, link.NotHere(h.Sandbox, h.Epoch)
	}
	if h.Kind == link.KindData {
		return func(c net.Conn) {
			w := &waitClose{Conn: c, done: make(chan struct{})}
			a.feed.hand(w)
			select {
			case <-w.done:
			case <-ctx.Done():
			}
		}, nil
	}
	if local == "" {
		return nil, link.NothingListens(h.Port)
	}
	app, err := net.Dial("tcp", local)
	if err != nil {
		return nil, link.NothingListens(h.Port)
	}
	return func(c net.Conn) {
		defer func() { _ = app.Close() }()
		tcp := app.(*net.TCPConn)
		stop := context.AfterFunc(ctx, func() { _ = app.Close() })
		defer stop()
		f := a.flow(h, c)
		defer a.over(f)
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := pump(tcp, inwards{f}); err != nil {
				_ = tcp.SetLinger(0)
				_ = tcp.Close()
			}
			_ = tcp.CloseWrite()
		})
		_ = pump(outwards{f}, tcp)
		if hc, ok := c.(interface{ CloseWrite() error }); ok {
			_ = hc.CloseWrite()
		}
		wg.Wait()
	}, nil
}

// lastHeader returns the header of the newest stream.
func (a *agent) lastHeader() link.Header {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.headers[len(a.headers)-1]
}

// run makes the agent run an epoch of a sandbox, 0 for no more.
func (a *agent) run(id string, epoch uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if epoch == 0 {
		delete(a.runs, id)
		return
	}
	a.runs[id] = epoch
}

// listen makes a port of a sandbox lead to a local address, "" for none.
func (a *agent) listen(id string, port uint16, local string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ports[id] == nil {
		a.ports[id] = map[uint16]string{}
	}
	a.ports[id][port] = local
}

// accept writes the record of an accepted sandbox.
func (g *rig) accept(ports ...*siroccov1.Port) *siroccov1.Sandbox {
	g.t.Helper()
	id := sandboxid.New()
	spec := &siroccov1.CreateSandboxRequest{Ports: ports, MaxLifetime: durationpb.New(time.Hour)}
	first := lifecycle.Accept(id, "acme", "key-"+id, spec, time.Now())
	for i, p := range ports {
		first.Tunnels = append(first.Tunnels, g.front.Tunnel(id, p, freePort(g.t, i, p)))
	}
	sb, err := g.store.Create(g.t.Context(), first)
	if err != nil {
		g.t.Fatal(err)
	}
	return sb
}

func freePort(t testing.TB, _ int, p *siroccov1.Port) uint16 {
	if p.GetProtocol() != rawTCP {
		return 0
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

func (g *rig) step(sb *siroccov1.Sandbox, step lifecycle.Step) *siroccov1.Sandbox {
	g.t.Helper()
	out, err := g.store.Update(g.t.Context(), sb.GetTenant(), sb.GetId(), nil, step)
	if err != nil {
		g.t.Fatal(err)
	}
	return out
}

// swap changes a record in a way that has no step yet.
func (g *rig) swap(sb *siroccov1.Sandbox, change func(*siroccov1.Sandbox)) *siroccov1.Sandbox {
	g.t.Helper()
	now, err := g.store.Get(g.t.Context(), sb.GetTenant(), sb.GetId())
	if err != nil {
		g.t.Fatal(err)
	}
	change(now)
	if now, err = g.store.Swap(g.t.Context(), now, true); err != nil {
		g.t.Fatal(err)
	}
	return now
}

// place puts an accepted sandbox on an agent and makes it run.
func (g *rig) place(sb *siroccov1.Sandbox, a *agent) *siroccov1.Sandbox {
	g.t.Helper()
	sb = g.step(sb, lifecycle.Place{Region: "test", Node: "n", Address: a.address})
	epoch := sb.GetPlacement().GetEpoch()
	a.run(sb.GetId(), epoch)
	return g.step(sb, lifecycle.Run{Observed: &siroccov1.Observed{Epoch: epoch}})
}

// app makes a running sandbox whose port 8000 is served by h.
func (g *rig) app(a *agent, h http.Handler) *siroccov1.Sandbox {
	g.t.Helper()
	server := httptest.NewUnstartedServer(h)
	server.Config.Protocols = new(http.Protocols)
	server.Config.Protocols.SetHTTP1(true)
	server.Config.Protocols.SetUnencryptedHTTP2(true)
	server.Start()
	g.t.Cleanup(server.Close)
	sb := g.accept(&siroccov1.Port{Port: 8000, Protocol: https})
	a.listen(sb.GetId(), 8000, server.Listener.Addr().String())
	return g.placed(sb, a)
}

// placed is place, and waits until the relay knows.
func (g *rig) placed(sb *siroccov1.Sandbox, a *agent) *siroccov1.Sandbox {
	g.t.Helper()
	return g.known(g.place(sb, a))
}

// known waits until the relay has heard of a record.
func (g *rig) known(sb *siroccov1.Sandbox) *siroccov1.Sandbox {
	g.t.Helper()
	eventually(g.t, "the relay knows the record", func() bool {
		return g.relay.router.lookup(sb.GetId()).GetRevision() >= sb.GetRevision()
	})
	return sb
}

func (g *rig) url(sb *siroccov1.Sandbox, path string) string { return g.urlPort(sb, 8000, path) }

func (g *rig) urlPort(sb *siroccov1.Sandbox, port uint32, path string) string {
	return "https://" + g.front.Host(port, sb.GetId()) + path
}

// dial connects to the relay, whatever the address says.
func (g *rig) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", g.relay.Addr().String())
}

func (g *rig) client(h2 bool) *http.Client {
	tr := &http.Transport{
		DialContext: g.dial, TLSClientConfig: &tls.Config{RootCAs: g.roots}, DisableCompression: true,
		Protocols: new(http.Protocols), MaxIdleConnsPerHost: 100,
	}
	tr.Protocols.SetHTTP1(!h2)
	tr.Protocols.SetHTTP2(h2)
	g.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// tls opens a TLS connection to the relay under a server name.
func (g *rig) tls(name string, protos ...string) *tls.Conn {
	g.t.Helper()
	raw, err := g.dial(g.t.Context(), "", "")
	if err != nil {
		g.t.Fatal(err)
	}
	conn := tls.Client(raw, &tls.Config{RootCAs: g.roots, ServerName: name, NextProtos: protos})
	g.t.Cleanup(func() { _ = conn.Close() })
	if err := conn.HandshakeContext(g.t.Context()); err != nil {
		g.t.Fatalf("handshake for %s: %v", name, err)
	}
	return conn
}

func get(t testing.TB, c *http.Client, url string, header ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	return do(t, c, req)
}

func do(t testing.TB, c *http.Client, req *http.Request) (*http.Response, string) {
	t.Helper()
	resp, err := c.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", req.Method, req.URL, err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil && !errors.Is(err, io.EOF) {
		t.Fatalf("%s %s: body: %v", req.Method, req.URL, err)
	}
	return resp, string(body)
}

func wantReason(t testing.TB, resp *http.Response, status int, reason string) {
	t.Helper()
	if resp.StatusCode != status || resp.Header.Get(HeaderError) != reason {
		t.Errorf("status %d, reason %q; want %d, %q", resp.StatusCode, resp.Header.Get(HeaderError), status, reason)
	}
}
