package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	sirocco "github.com/sirocco-run/sirocco/sdk/go"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

// Tunnel configures a measurement of tunnels.
type Tunnel struct {
	// Connections is how many are used at a time for throughput.
	Connections int
	// Duration is how long throughput is measured, each way.
	Duration time.Duration
	// WebSockets is how many idle ones are opened; 0 for none.
	WebSockets int
	// Programs are what a sandbox without a tunnel is made of.
	Programs Programs
	// Request is what the sandbox is made from.
	Request *siroccov1.CreateSandboxRequest
}

const (
	blobBytes = 1 << 20
	// pings is how many small requests are made one after the other, of which the
	// first warm up.
	pings, warmUp = 1000, 50
)

// blobServer is the command of an HTTP server with a file of blobBytes and a
// small one.
func blobServer() []string {
	return []string{"/bin/sh", "-c", fmt.Sprintf("mkdir -p /tmp/w && head -c %d /dev/urandom > /tmp/w/blob && echo ok > /tmp/w/small && exec httpd -q -p %d /tmp/w", blobBytes, serverPort)}
}

// way is a way to a server.
type way struct {
	name, plot string
	client     func(connections int) *http.Client
	url        string
}

// Tunnel compares a server reached through its tunnel with the same server
// reached without, and measures what idle WebSockets cost.
func (b *Bench) Tunnel(ctx context.Context, cfg Tunnel) (*Report, error) {
	if cfg.Connections < 1 || cfg.Duration <= 0 {
		return nil, errors.New("want at least one connection, for some time")
	}
	m := &tunnelRun{run: b.begin(ctx, "tunnel", fmt.Sprintf("%d connections for %s, %d idle WebSockets", cfg.Connections, cfg.Duration, cfg.WebSockets)), cfg: cfg}
	if err := m.measure(ctx); err != nil {
		return nil, err
	}
	return m.conclude(ctx, m.since()), nil
}

// webSocketBytes is what a WebSocket takes at most of its sandbox's memory: gVisor's
// sockets, and the server inside (measured: 100 KiB).
const webSocketBytes = 192 << 10

type tunnelRun struct {
	*run
	cfg Tunnel
}

func (m *tunnelRun) measure(ctx context.Context) error {
	req := proto.CloneOf(m.cfg.Request)
	req.MaxLifetime = durationpb.New(lifetime)
	req.Command = blobServer()
	req.Ports = []*siroccov1.Port{{Port: serverPort}, {Port: echoPort}}
	if req.Resources == nil {
		req.Resources = &siroccov1.Resources{}
	}
	if req.Resources.MemoryLimitBytes == 0 {
		req.Resources.MemoryLimitBytes = memoryDefault + int64(m.cfg.WebSockets)*webSocketBytes
	}
	o, err := open(ctx, m.Client, req, nil, time.Now())
	if o.Sandbox != nil {
		defer func() { m.failures.Add(end(ctx, o.Sandbox, time.Minute)) }()
	}
	if err != nil {
		return err
	}
	url, err := tunnelOf(o.Record)
	if err != nil {
		return err
	}
	// Before the services have had much to collect: memory is compared.
	if err := m.webSockets(ctx, o.Sandbox); err != nil {
		return err
	}
	ways := []way{{"through the tunnel", "latency", m.Tunnels.Client, url}}
	d, err := openDirect(ctx, m.cfg.Programs, blobServer())
	if err != nil {
		m.Note("nothing to compare with: %v", err)
		return m.compare(ctx, ways)
	}
	defer func() { m.failures.Add(d.close(ctx)) }()
	address, trust, stop, err := d.serveTLS(ctx)
	if err != nil {
		return err
	}
	defer stop()
	secure := func(connections int) *http.Client { return httpClient(connections, trust, dialTCP) }
	ways = append(ways, way{"by HTTPS without the tunnel", "latency-https", secure, "https://" + address}, way{"in plain without the tunnel", "latency-plain", d.plain, "http://direct"})
	m.Note("without the tunnel: the same server in a sandbox of this program, reached by gVisor's port-forward alone; no relay, no link, no agent. By HTTPS: TLS is taken off in front of it, as any HTTPS server does for itself; in plain: nothing is encrypted at all")
	return m.compare(ctx, ways)
}

// compare measures all ways; the first is the tunnel.
func (m *tunnelRun) compare(ctx context.Context, ways []way) error {
	var rates, medians []float64
	for _, w := range ways {
		rate, err := m.throughput(ctx, w)
		if err != nil {
			return err
		}
		times, err := m.pingTimes(ctx, w)
		if err != nil {
			return err
		}
		rates, medians = append(rates, rate), append(medians, Distribute(times).P50)
		m.Figure("throughput "+w.name, rate/(1<<20), "MiB/s", 0)
		m.Time("small request "+w.name, times, 0)
		p := LatencyPlot("A small request "+w.name, times)
		p.Name = w.plot
		m.Plots = append(m.Plots, p)
	}
	for i, w := range ways[1:] {
		m.Figure("throughput of the tunnel, of that "+w.name, 100*rates[0]/rates[i+1], "%", 0)
		m.Figure("latency added to that "+w.name+", p50", medians[0]-medians[i+1], "ms", 0)
	}
	return nil
}

// throughput reads the file over all connections for a while and returns bytes a
// second.
func (m *tunnelRun) throughput(ctx context.Context, w way) (float64, error) {
	client := w.client(m.cfg.Connections)
	defer client.CloseIdleConnections()
	if err := reachable(ctx, client, w.url+"/small"); err != nil {
		return 0, err
	}
	rctx, cancel := context.WithTimeout(ctx, m.cfg.Duration)
	defer cancel()
	var count counter
	var wg sync.WaitGroup
	began := time.Now()
	for range m.cfg.Connections {
		wg.Go(func() {
			for rctx.Err() == nil {
				if err := get(rctx, client, w.url+"/blob", &count); err != nil && rctx.Err() == nil {
					m.failures.Add(fmt.Errorf("%s: %w", w.name, err))
					return
				}
				m.Progress.Say("tunnel: %s, %.0f MiB/s", w.name, float64(count.n.Load())/(1<<20)/time.Since(began).Seconds())
			}
		})
	}
	wg.Wait()
	return float64(count.n.Load()) / time.Since(began).Seconds(), ctx.Err()
}

// reachable waits until a server answers.
func reachable(ctx context.Context, client *http.Client, url string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		err := get(ctx, client, url, io.Discard)
		if err == nil {
			return nil
		}
		if !until(ctx, time.Now().Add(20*time.Millisecond)) {
			return err
		}
	}
}

// counter counts what is written to it, from any number of goroutines.
type counter struct{ n atomic.Int64 }

// Write implements io.Writer.
func (c *counter) Write(b []byte) (int, error) {
	c.n.Add(int64(len(b)))
	return len(b), nil
}

// pingTimes makes small requests one after the other over one connection.
func (m *tunnelRun) pingTimes(ctx context.Context, w way) ([]Sample, error) {
	client := w.client(1)
	defer client.CloseIdleConnections()
	var times Samples
	began := time.Now()
	for i := range pings {
		at := time.Now()
		if err := get(ctx, client, w.url+"/small", io.Discard); err != nil {
			return nil, fmt.Errorf("%s: %w", w.name, err)
		}
		if i >= warmUp {
			times.Add(at.Sub(began), time.Since(at))
		}
		m.Progress.Say("tunnel: %s, %d of %d small requests", w.name, i+1, pings)
	}
	return times.All(), nil
}

// webSockets opens idle ones to a server that it starts in the sandbox.
func (m *tunnelRun) webSockets(ctx context.Context, s *sirocco.Sandbox) error {
	if m.cfg.WebSockets == 0 {
		return nil
	}
	url, err := startEcho(ctx, s)
	if err != nil {
		return err
	}
	before, err := m.memory()
	if err != nil {
		return err
	}
	began := time.Now()
	conns, err := m.openEchoes(ctx, url)
	defer conns.close()
	if err != nil {
		return err
	}
	opened := time.Since(began)
	if !until(ctx, time.Now().Add(calm)) {
		return ctx.Err()
	}
	m.Figure("WebSockets open", float64(conns.count()), fmt.Sprintf("of %d", m.cfg.WebSockets), 0)
	m.Figure("  opened in", opened.Seconds(), "s", 0)
	after, err := m.memory()
	if err != nil {
		return err
	}
	if m.Local == nil {
		m.Note("memory of the WebSockets: not available, the platform is not on this machine (%v)", m.LocalError)
		return nil
	}
	m.Figure("memory of idle WebSockets in the services", float64(after.Anonymous-before.Anonymous)/(1<<20), "MiB", 0)
	m.Figure("  each", float64(after.Anonymous-before.Anonymous)/(1<<10)/float64(max(conns.count(), 1)), "KiB", 0)
	m.Figure("  descriptors, each", float64(after.Descriptors-before.Descriptors)/float64(max(conns.count(), 1)), "", 0)
	m.Note("memory of WebSockets: what the process of all services grew by; the relay's part and the agent's are in it")
	return m.rest(ctx, conns)
}

// rest measures the CPU of the idle ones, and asks each once more.
func (m *tunnelRun) rest(ctx context.Context, conns *echoes) error {
	before, err := m.memory()
	if err != nil {
		return err
	}
	began := time.Now()
	m.Progress.Say("tunnel: %d WebSockets idle", conns.count())
	if !until(ctx, began.Add(DefaultRest/2)) {
		return ctx.Err()
	}
	after, err := m.memory()
	if err != nil {
		return err
	}
	m.Figure("  CPU while idle, services", 100*(after.Services-before.Services).Seconds()/time.Since(began).Seconds(), "% of a core", 0)
	m.failures.Add(conns.ask(ctx))
	return nil
}

func (m *tunnelRun) memory() (Usage, error) {
	if m.Local == nil {
		return Usage{}, nil
	}
	return m.Local.Usage()
}
