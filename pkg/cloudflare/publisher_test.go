package cloudflare_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/bustest"
	"github.com/sirocco-run/sirocco/pkg/cloudflare"
	"github.com/sirocco-run/sirocco/pkg/cloudflare/cloudflaretest"
	"github.com/sirocco-run/sirocco/pkg/cloudflare/plan"
	"github.com/sirocco-run/sirocco/pkg/program"
	"github.com/sirocco-run/sirocco/pkg/subject"
	"github.com/sirocco-run/sirocco/pkg/topology"
	noopmetric "go.opentelemetry.io/otel/metric/noop"
	nooptrace "go.opentelemetry.io/otel/trace/noop"
)

const (
	// every is the least time between two writes in these tests.
	every = 200 * time.Millisecond
	// leaseTTL is short, so that tests are.
	leaseTTL = 2 * time.Second
	domain   = "sandbox.example.com"
)

// childEnv holds what a publisher of its own process is told; see TestMain.
const childEnv = "TEST_CLOUDFLARE_PUBLISHER"

type child struct {
	NATS, URL string
	Want      plan.Desired
}

// TestMain is also the program of a publisher that can be killed.
func TestMain(m *testing.M) {
	if raw := os.Getenv(childEnv); raw != "" {
		if err := runChild(raw); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func runChild(raw string) error {
	var c child
	if err := json.Unmarshal([]byte(raw), &c); err != nil {
		return err
	}
	nc, err := nats.Connect(c.NATS)
	if err != nil {
		return err
	}
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	p, err := cloudflare.New(environment("child", nc, js, slog.New(slog.NewTextHandler(os.Stderr, nil))), config(c.URL))
	if err != nil {
		return err
	}
	p.Want(c.Want)
	return p.Run(context.Background())
}

func environment(name string, nc *nats.Conn, js jetstream.JetStream, log *slog.Logger) program.Env {
	return program.Env{
		Region: "eu", Instance: name, NC: nc, JS: js, Log: log,
		Tracer: nooptrace.NewTracerProvider(), Meter: noopmetric.NewMeterProvider(),
	}
}

func config(url string) cloudflare.Config {
	return cloudflare.Config{
		Token: cloudflaretest.Token, URL: url,
		Zone: cloudflaretest.Zone, Account: cloudflaretest.Account, LoadBalancer: cloudflaretest.LoadBalancer,
		Pools: map[string]string{"eu": cloudflaretest.PoolEU, "us": cloudflaretest.PoolUS, "ap": cloudflaretest.PoolAP},
		TTL:   60, Every: every, Timeout: 500 * time.Millisecond, Check: time.Hour,
	}
}

// bus starts a region's bus, whose leases are short.
func bus(t *testing.T) *server.Server {
	t.Helper()
	s := bustest.Server(t, nil)
	_, js := bustest.Connect(t, s)
	if err := topology.Ensure(t.Context(), js, topology.Options{}); err != nil {
		t.Fatal(err)
	}
	kv, err := js.KeyValue(t.Context(), subject.BucketLeases)
	if err != nil {
		t.Fatal(err)
	}
	status, err := kv.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	cfg := status.Config()
	cfg.TTL = leaseTTL
	if _, err := js.UpdateKeyValue(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	return s
}

// logged is a log that can be looked at.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// lines returns those that hold all of what.
func (l *logged) lines(what ...string) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var found []string
next:
	for line := range strings.Lines(l.b.String()) {
		for _, w := range what {
			if !strings.Contains(line, w) {
				continue next
			}
		}
		found = append(found, line)
	}
	return found
}

// running is a publisher that runs.
type running struct {
	*cloudflare.Publisher
	nc   *nats.Conn
	js   jetstream.JetStream
	log  *logged
	stop func()
}

// start starts a publisher, which the end of the test stops.
func start(t *testing.T, s *server.Server, name string, cfg cloudflare.Config) *running {
	t.Helper()
	nc, js := bustest.Connect(t, s)
	log := &logged{}
	p, err := cloudflare.New(environment(name, nc, js, slog.New(slog.NewTextHandler(log, nil))), cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := p.Run(ctx); err != nil && ctx.Err() == nil {
			t.Errorf("%s: %v", name, err)
		}
	}()
	stop := func() { cancel(); <-done }
	t.Cleanup(stop)
	return &running{Publisher: p, nc: nc, js: js, log: log, stop: stop}
}

// die ends a publisher without a word to the bus.
func (r *running) die() {
	r.nc.Close()
	r.stop()
}

func desired(eu, us, ap float64) plan.Desired {
	return plan.Desired{Weights: map[string]float64{"eu": eu, "us": us, "ap": ap}}
}

func has(srv *cloudflaretest.Server, eu, us, ap float64) func() bool {
	want := map[string]float64{cloudflaretest.PoolEU: eu, cloudflaretest.PoolUS: us, cloudflaretest.PoolAP: ap}
	return func() bool { return maps.Equal(srv.Weights(), want) }
}

func count(requests []cloudflaretest.Request, path string) int {
	n := 0
	for _, r := range requests {
		if strings.Contains(r.Path, path) {
			n++
		}
	}
	return n
}

// eventually waits until cond holds.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for limit := time.Now().Add(30 * time.Second); !cond(); <-tick.C {
		if time.Now().After(limit) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// meanwhile calls do until d is over: for what must not happen within it.
func meanwhile(d time.Duration, do func(i int)) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for i, end := 0, time.Now().Add(d); time.Now().Before(end); i++ {
		do(i)
		<-tick.C
	}
}

// spaced fails the test for writes that are too close.
func spaced(t *testing.T, writes []cloudflaretest.Request, least time.Duration) {
	t.Helper()
	for i := 1; i < len(writes); i++ {
		if gap := writes[i].At.Sub(writes[i-1].At); gap < least {
			t.Errorf("%v between %s %s and %s %s", gap, writes[i-1].Method, writes[i-1].Path, writes[i].Method, writes[i].Path)
		}
	}
}

// TestEverything: weights, pools and records get to Cloudflare and follow what is
// wanted; the status says so; writes keep their distance.
func TestEverything(t *testing.T) {
	srv := cloudflaretest.New(t)
	p := start(t, bus(t), "one", config(srv.URL()))
	d := desired(0.5, 0.3, 0.2)
	d.Domain = domain
	d.Relays = map[string][]string{"eu": {"192.0.2.1", "2001:db8::1"}, "us": {"192.0.2.2"}, "ap": {"relay.ap.example.net"}}
	d.Drained = map[string]bool{"ap": true}
	p.Want(d)
	srv.Wait("all parts", func() bool {
		return has(srv, 0.5, 0.3, 0)() && len(srv.Records()) == 7 && !srv.Enabled(cloudflaretest.PoolAP)
	})
	for _, r := range srv.Records() {
		if r.Comment != "managed by sirocco" || r.TTL != 60 || r.Proxied {
			t.Errorf("record %+v", r)
		}
	}
	d = desired(0, 0.8, 0.2)
	d.Domain, d.Relays = domain, map[string][]string{"us": {"192.0.2.9"}, "ap": {"192.0.2.3"}}
	p.Want(d)
	srv.Wait("the change", func() bool {
		return has(srv, 0, 0.8, 0.2)() && len(srv.Records()) == 4 && srv.Enabled(cloudflaretest.PoolAP)
	})
	eventually(t, "the status", func() bool {
		st, err := cloudflare.ReadStatus(t.Context(), p.js)
		if err != nil {
			t.Fatal(err)
		}
		return st.Writer == "one" && len(st.Problems) == 0 && time.Since(st.Sent) < time.Minute && len(st.Records) == 4 &&
			len(st.Drained) == 0 && maps.Equal(st.Weights, d.Weights) && maps.Equal(st.Wanted, d.Weights)
	})
	spaced(t, srv.Writes(), every)
}

// TestStorm: a storm of small changes sends nothing, one of large ones no more than
// there is time for, and the last word counts.
func TestStorm(t *testing.T) {
	srv := cloudflaretest.New(t)
	p := start(t, bus(t), "one", config(srv.URL()))
	p.Want(desired(0.5, 0.3, 0.2))
	srv.Wait("the first weights", has(srv, 0.5, 0.3, 0.2))
	before := len(srv.Requests())
	meanwhile(5*every, func(i int) {
		off := float64(i%39-19) / 1000
		p.Want(desired(0.5+off, 0.3-off, 0.2))
	})
	if now := len(srv.Requests()); now != before {
		t.Errorf("small changes: %d requests", now-before)
	}
	begun := time.Now()
	meanwhile(10*every, func(i int) {
		off := float64(i%5) / 20
		p.Want(desired(0.5-off, 0.3+off, 0.2))
	})
	p.Want(desired(0.1, 0.1, 0.8))
	srv.Wait("the last weights", has(srv, 0.1, 0.1, 0.8))
	writes := srv.Writes()
	if n, most := len(writes)-1, int(time.Since(begun)/every)+1; n > most || n < 3 {
		t.Errorf("large changes: %d writes within %v", n, time.Since(begun))
	}
	spaced(t, writes, every)
}

// TestKilledMidWrite: a publisher is killed while Cloudflare has not answered; the
// other takes over, looks what became of it, and sends what is missing and no more.
func TestKilledMidWrite(t *testing.T) {
	for _, applied := range []bool{true, false} {
		t.Run(fmt.Sprintf("applied=%v", applied), func(t *testing.T) {
			t.Parallel()
			srv, b := cloudflaretest.New(t), bus(t)
			srv.Fail(cloudflaretest.Fault{Method: http.MethodPatch, Stall: true, Applied: applied})
			want := desired(0.6, 0.4, 0)
			raw, err := json.Marshal(child{NATS: b.ClientURL(), URL: srv.URL(), Want: want})
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), os.Args[0])
			cmd.Env = append(os.Environ(), childEnv+"="+string(raw))
			cmd.Stderr = t.Output()
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			srv.Wait("the write", func() bool { return len(srv.Writes()) == 1 })
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			killed := time.Now()
			p := start(t, b, "other", config(srv.URL()))
			p.Want(want)
			eventually(t, "the other", func() bool {
				st, err := cloudflare.ReadStatus(t.Context(), p.js)
				return err == nil && st.Writer == "other" && has(srv, 0.6, 0.4, 0)() && maps.Equal(st.Weights, want.Weights)
			})
			if took := time.Since(killed); took > 5*leaseTTL {
				t.Errorf("it took %v", took)
			}
			meanwhile(2*every, func(int) {})
			patches, most := count(srv.Writes(), "zones/"), 1
			if !applied {
				most = 2
			}
			if patches != most {
				t.Errorf("%d writes of the weights, want %d: %+v", patches, most, srv.Requests())
			}
		})
	}
}

// TestCrashBeforeSent: what was wanted and could not be sent is sent by the next
// publisher, which nobody has told anything.
func TestCrashBeforeSent(t *testing.T) {
	srv, b := cloudflaretest.New(t), bus(t)
	srv.Fail(cloudflaretest.Fault{Method: http.MethodPatch, Status: http.StatusServiceUnavailable, Code: 1005, Message: "unavailable", Times: -1})
	one := start(t, b, "one", config(srv.URL()))
	one.Want(desired(0.7, 0.2, 0.1))
	srv.Wait("a failed write", func() bool { return len(srv.Writes()) > 0 })
	one.die()
	srv.Heal()
	start(t, b, "two", config(srv.URL()))
	srv.Wait("the weights", has(srv, 0.7, 0.2, 0.1))
}

// TestTakesTurns: of two publishers one sends; when it ends, the other goes on and
// does not send again what is there.
func TestTakesTurns(t *testing.T) {
	srv, b := cloudflaretest.New(t), bus(t)
	one, two := start(t, b, "one", config(srv.URL())), start(t, b, "two", config(srv.URL()))
	all := []*running{one, two}
	for _, p := range all {
		p.Want(desired(0.5, 0.5, 0))
	}
	srv.Wait("the weights", has(srv, 0.5, 0.5, 0))
	sent := func(p *running) int { return len(p.log.lines("sent to Cloudflare", "part=weights")) }
	eventually(t, "the log", func() bool { return sent(one)+sent(two) == 1 })
	first, second := one, two
	if sent(two) == 1 {
		first, second = two, one
	}
	first.stop()
	before := len(srv.Writes())
	eventually(t, "the other", func() bool { return len(second.log.lines("lease got")) == 1 })
	meanwhile(3*every, func(int) { second.Want(desired(0.5, 0.5, 0)) })
	if n := len(srv.Writes()); n != before {
		t.Errorf("%d writes of what was there", n-before)
	}
	second.Want(desired(0.4, 0.6, 0))
	srv.Wait("the other's weights", has(srv, 0.4, 0.6, 0))
	spaced(t, srv.Writes(), every)
}

// TestOvertaken: a publisher whose state somebody else has written does not write
// before it has read that.
func TestOvertaken(t *testing.T) {
	srv, b := cloudflaretest.New(t), bus(t)
	p := start(t, b, "one", config(srv.URL()))
	p.Want(desired(0.5, 0.5, 0))
	srv.Wait("the weights", has(srv, 0.5, 0.5, 0))
	eventually(t, "the bucket", func() bool {
		st, err := cloudflare.ReadStatus(t.Context(), p.js)
		return err == nil && st.Weights["eu"] == 0.5
	})
	kv, err := p.js.KeyValue(t.Context(), subject.BucketCloudflare)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kv.Put(t.Context(), subject.KeyCloudflare, []byte(`{"holder":"another"}`)); err != nil {
		t.Fatal(err)
	}
	before := len(srv.Requests())
	p.Want(desired(0.3, 0.7, 0))
	srv.Wait("the new weights", has(srv, 0.3, 0.7, 0))
	if after := srv.Requests()[before:]; after[0].Write() {
		t.Errorf("it wrote first: %+v", after)
	}
	if len(p.log.lines("another publisher has taken over")) != 1 {
		t.Error("it did not notice")
	}
}

// TestRecovers: whatever Cloudflare or the network does to a write, it is noticed,
// told once, tried again no more often than it should, and sent in the end.
func TestRecovers(t *testing.T) {
	for name, c := range map[string]struct {
		fault cloudflaretest.Fault
		told  string
		pause time.Duration
		sent  int
	}{
		"limited":      {fault: cloudflaretest.Fault{Status: 429, Code: 10429, Message: "Too many requests", RetryAfter: 2}, told: "429 Too Many Requests: Too many requests (10429)", pause: 2 * time.Second, sent: 2},
		"unavailable":  {fault: cloudflaretest.Fault{Status: 503, Code: 1005, Message: "unavailable"}, told: "503 Service Unavailable", pause: time.Second / 2, sent: 2},
		"a page":       {fault: cloudflaretest.Fault{Status: 502, Page: "<html>bad gateway</html>"}, told: "502 Bad Gateway", pause: time.Second / 2, sent: 2},
		"half a page":  {fault: cloudflaretest.Fault{Status: 200, Page: "<html>welcome</html>"}, told: "the answer is not usable", pause: time.Second / 2, sent: 2},
		"stalled":      {fault: cloudflaretest.Fault{Stall: true}, told: "context deadline exceeded", pause: time.Second / 2, sent: 2},
		"stalled late": {fault: cloudflaretest.Fault{Stall: true, Applied: true}, told: "context deadline exceeded", pause: time.Second / 2, sent: 1},
		"cut":          {fault: cloudflaretest.Fault{Cut: true}, told: "EOF", pause: time.Second / 2, sent: 2},
		"cut late":     {fault: cloudflaretest.Fault{Cut: true, Applied: true}, told: "EOF", pause: time.Second / 2, sent: 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv := cloudflaretest.New(t)
			c.fault.Method = http.MethodPatch
			srv.Fail(c.fault)
			cfg := config(srv.URL())
			cfg.Account = "" // weights alone
			p := start(t, bus(t), "one", cfg)
			want := desired(0.5, 0.25, 0.25)
			p.Want(want)
			eventually(t, "the weights", func() bool {
				st, err := cloudflare.ReadStatus(t.Context(), p.js)
				return err == nil && has(srv, 0.5, 0.25, 0.25)() && maps.Equal(st.Weights, want.Weights) && len(st.Problems) == 0
			})
			if n := len(srv.Writes()); n != c.sent {
				t.Errorf("%d writes, want %d: %+v", n, c.sent, srv.Requests())
			}
			if lines := p.log.lines("level=WARN", c.told); len(lines) != 1 {
				t.Errorf("told %d times", len(lines))
			}
			requests := srv.Requests()
			for i, r := range requests[:len(requests)-1] {
				if !r.Write() {
					continue
				}
				if gap := requests[i+1].At.Sub(r.At); gap < c.pause {
					t.Errorf("tried again after %v, want %v", gap, c.pause)
				}
				break
			}
		})
	}
}

// TestNearTheLimit: when Cloudflare says that few requests remain, the rest is left
// to others until the limit starts anew.
func TestNearTheLimit(t *testing.T) {
	srv := cloudflaretest.New(t)
	p := start(t, bus(t), "one", config(srv.URL()))
	srv.SetLimit(`"burst";r=90;t=60, "default";r=1;t=2`)
	p.Want(desired(0.5, 0.5, 0))
	srv.Wait("a request", func() bool { return len(srv.Requests()) == 1 })
	srv.SetLimit(`"default";r=1000;t=300`)
	srv.Wait("the weights", has(srv, 0.5, 0.5, 0))
	if gap := srv.Requests()[1].At.Sub(srv.Requests()[0].At); gap < 2*time.Second {
		t.Errorf("asked again after %v", gap)
	}
}

// TestRefused: what waiting can't mend is told once and not sent again, though what
// is wanted goes on changing; a new publisher tries anew, with the token that is
// then in the file.
func TestRefused(t *testing.T) {
	srv, b := cloudflaretest.New(t), bus(t)
	cfg := config(srv.URL())
	cfg.Token, cfg.TokenFile = "", filepath.Join(t.TempDir(), "token")
	write := func(token string) {
		if err := os.WriteFile(cfg.TokenFile, []byte(token+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("wrong")
	p := start(t, b, "one", cfg)
	meanwhile(8*every, func(i int) { p.Want(desired(float64(i%2), 1-float64(i%2), 0)) })
	if requests := srv.Requests(); len(requests) != 4 || len(srv.Writes()) != 0 {
		t.Errorf("want one try for each of four parts: %+v", requests)
	}
	if lines := p.log.lines("level=ERROR", "weights: 403 Forbidden: Authentication error (10000)"); len(lines) != 1 {
		t.Errorf("told %d times: %q", len(lines), lines)
	}
	st, err := cloudflare.ReadStatus(t.Context(), p.js)
	if err != nil || !st.Problems[plan.Weights].Refused {
		t.Errorf("status %+v, %v", st, err)
	}
	p.stop()
	write(cloudflaretest.Token)
	start(t, b, "two", cfg).Want(desired(0.5, 0.5, 0))
	srv.Wait("the weights", has(srv, 0.5, 0.5, 0))
}

// TestOneRefusedPart: what is refused of one part does not keep the others back.
func TestOneRefusedPart(t *testing.T) {
	srv := cloudflaretest.New(t)
	srv.Fail(cloudflaretest.Fault{Path: "dns_records", Status: 400, Code: 1004, Message: "DNS Validation Error", Times: -1})
	p := start(t, bus(t), "one", config(srv.URL()))
	d := desired(0.5, 0.5, 0)
	d.Domain, d.Relays = domain, map[string][]string{"eu": {"192.0.2.1"}}
	p.Want(d)
	srv.Wait("the weights", func() bool { return has(srv, 0.5, 0.5, 0)() && count(srv.Requests(), "dns_records") > 0 })
	d.Weights = map[string]float64{"eu": 0.3, "us": 0.7, "ap": 0}
	p.Want(d)
	srv.Wait("new weights", has(srv, 0.3, 0.7, 0))
	if n := count(srv.Requests(), "dns_records"); n != 1 {
		t.Errorf("%d requests for records", n)
	}
}

// TestRecordsOfOthers: records that are not of Sirocco are never touched; one that
// is in the way is told.
func TestRecordsOfOthers(t *testing.T) {
	srv := cloudflaretest.New(t)
	others := []cloudflaretest.Record{
		{Name: "*." + domain, Type: "A", Content: "198.51.100.1", TTL: 300},
		{Name: "www." + domain, Type: "CNAME", Content: "example.net", TTL: 1},
		{Name: "relay-xx." + domain, Type: "A", Content: "198.51.100.2", TTL: 300},
	}
	for _, r := range others {
		srv.AddRecord(r)
	}
	p := start(t, bus(t), "one", config(srv.URL()))
	p.Want(plan.Desired{Domain: domain, Relays: map[string][]string{"eu": {"192.0.2.1"}}})
	eventually(t, "the complaint", func() bool {
		return len(p.log.lines("level=ERROR", "*."+domain+" has the record A 198.51.100.1, which is not of Sirocco")) == 1
	})
	if got := srv.Records(); len(got) != len(others) || len(srv.Writes()) != 0 {
		t.Errorf("%+v, %+v", got, srv.Writes())
	}
}

// TestSomebodyElseChanged: what somebody changed at the dashboard is noticed and
// changed back.
func TestSomebodyElseChanged(t *testing.T) {
	srv := cloudflaretest.New(t)
	cfg := config(srv.URL())
	cfg.Check = 2 * every
	p := start(t, bus(t), "one", cfg)
	p.Want(desired(0.5, 0.5, 0))
	srv.Wait("the weights", has(srv, 0.5, 0.5, 0))
	srv.SetWeights(map[string]float64{cloudflaretest.PoolEU: 1})
	srv.Wait("the weights again", has(srv, 0.5, 0.5, 0))
}

// TestMute: while another region speaks nothing is sent; afterwards Cloudflare is
// read first, since it has been written.
func TestMute(t *testing.T) {
	srv := cloudflaretest.New(t)
	p := start(t, bus(t), "one", config(srv.URL()))
	p.Want(desired(0.5, 0.5, 0))
	srv.Wait("the weights", has(srv, 0.5, 0.5, 0))
	p.Mute()
	eventually(t, "silence in the bucket", func() bool {
		st, err := cloudflare.ReadStatus(t.Context(), p.js)
		return err == nil && len(st.Wanted) == 0
	})
	srv.SetWeights(map[string]float64{cloudflaretest.PoolEU: 0, cloudflaretest.PoolUS: 0.2, cloudflaretest.PoolAP: 0.8})
	before := len(srv.Requests())
	meanwhile(3*every, func(int) {})
	if n := len(srv.Requests()); n != before {
		t.Errorf("%d requests while muted", n-before)
	}
	p.Want(desired(0.5, 0.5, 0))
	srv.Wait("the weights again", has(srv, 0.5, 0.5, 0))
	if after := srv.Requests()[before:]; after[0].Write() {
		t.Errorf("it wrote first: %+v", after)
	}
}

// TestNothingLeft: a state that would send all traffic nowhere is not sent.
func TestNothingLeft(t *testing.T) {
	srv := cloudflaretest.New(t)
	p := start(t, bus(t), "one", config(srv.URL()))
	p.Want(desired(0.5, 0.5, 0))
	srv.Wait("the weights", has(srv, 0.5, 0.5, 0))
	d := desired(0, 0, 0)
	d.Drained = map[string]bool{"eu": true, "us": true, "ap": true}
	p.Want(d)
	eventually(t, "the complaint in the status", func() bool {
		st, err := cloudflare.ReadStatus(t.Context(), p.js)
		return err == nil && len(st.Untold) == 2
	})
	meanwhile(3*every, func(int) { p.Want(d) })
	if !has(srv, 0.5, 0.5, 0)() || !srv.Enabled(cloudflaretest.PoolEU) {
		t.Errorf("Cloudflare holds %v", srv.Weights())
	}
	if n := len(p.log.lines("level=ERROR", "no region would be left")); n != 2 {
		t.Errorf("told %d times", n)
	}
}

// TestDryRun: it prints the requests and makes none, without a token, and leaves
// the bucket and the lease alone.
func TestDryRun(t *testing.T) {
	srv, b := cloudflaretest.New(t), bus(t)
	cfg := config(srv.URL())
	out := &logged{}
	cfg.Token, cfg.DryRun, cfg.Out = "", true, out
	p := start(t, b, "one", cfg)
	d := desired(0.5, 0.3, 0.2)
	d.Domain, d.Relays = domain, map[string][]string{"eu": {"192.0.2.1"}}
	p.Want(d)
	eventually(t, "the records", func() bool { return len(out.lines("POST", "dns_records/batch")) == 1 })
	eventually(t, "the weights", func() bool {
		return len(out.lines("PATCH zones/"+cloudflaretest.Zone+"/load_balancers/"+cloudflaretest.LoadBalancer,
			`"`+cloudflaretest.PoolEU+`":0.5`, `"steering_policy":"random"`)) == 1
	})
	eventually(t, "the pools", func() bool { return len(out.lines("PATCH accounts/", `{"enabled":true}`)) == 3 })
	p.Want(desired(0.505, 0.295, 0.2))
	p.Want(desired(0, 0.8, 0.2))
	eventually(t, "the change", func() bool { return len(out.lines(`"`+cloudflaretest.PoolEU+`":0,`)) == 1 })
	p.stop()
	if n := len(out.lines("PATCH zones/")); n != 2 {
		t.Errorf("%d lines about weights", n)
	}
	if requests := srv.Requests(); len(requests) != 0 {
		t.Errorf("it sent %+v", requests)
	}
	st, err := cloudflare.ReadStatus(t.Context(), p.js)
	if err != nil || st.Writer != "" || len(st.Wanted) != 0 {
		t.Errorf("%+v, %v", st, err)
	}
}

// TestOff: without a token nothing is done, and nothing else is asked of the
// configuration.
func TestOff(t *testing.T) {
	t.Setenv(cloudflare.TokenEnv, "")
	p := start(t, bus(t), "one", cloudflare.Config{})
	p.Want(desired(1, 0, 0))
	eventually(t, "a word about it", func() bool { return len(p.log.lines("nothing is sent to Cloudflare", cloudflare.TokenEnv)) == 1 })
	st, err := cloudflare.ReadStatus(t.Context(), p.js)
	if err != nil || st.Writer != "" {
		t.Errorf("%+v, %v", st, err)
	}
}
