package relay

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/pki"
	"github.com/sirocco-run/sirocco/pkg/sandboxid"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/spf13/pflag"
	"pgregory.net/rapid"
)

func TestConfig(t *testing.T) {
	var c Config
	fs := pflag.NewFlagSet("x", pflag.ContinueOnError)
	c.Flags(fs)
	if c != defaults() {
		t.Errorf("flags default to %+v", c)
	}
	if (Config{}).withDefaults() != defaults() {
		t.Error("the zero value is not the default")
	}
	for flag, bad := range map[string]Config{
		"--tunnel-listen": {Listen: "x"}, "--tcp-bind": {TCPBind: "x"}, "--cert": {CertFile: "x"}, "--acme": {ACME: true, CertFile: "x", KeyFile: "y"},
		"--start-wait": {StartWait: -1}, "--max-header-bytes": {MaxHeaderBytes: 1}, "--max-conns": {MaxConns: -1},
	} {
		if err := bad.Validate(); err == nil || !strings.Contains(err.Error(), flag) {
			t.Errorf("%s: %v", flag, err)
		}
	}
}

func TestPreferred(t *testing.T) {
	for accept, want := range map[string]string{
		"": "text/plain", "*/*": "text/plain", "application/json": "application/json", "application/problem+json, text/html": "application/json",
		"text/html;q=0.1": "text/html", "text/plain, text/html": "text/plain", ";;,,": "text/plain",
	} {
		if got := preferred(accept); got != want {
			t.Errorf("%q: %s, want %s", accept, got, want)
		}
	}
}

func TestTargetHostRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := target{
			id: sandboxid.New(), epoch: rapid.Uint64().Draw(t, "epoch"), port: rapid.Uint16().Draw(t, "port"),
			phase: phase{siroccov1.State(rapid.Int32().Draw(t, "state")), rapid.Int64().Draw(t, "at")},
		}
		if got, err := parseTargetHost(net.JoinHostPort(want.host(), "80")); err != nil || got != want {
			t.Fatalf("%+v %v", got, err)
		}
	})
}

// Whatever the record, a client gets exactly one of: a target, a refusal, or
// the wait. A target is only ever the newest epoch of a running sandbox of the
// right tenant, on a published port, with the token where there is one; the
// data services go to the node of one that has ended, too.
func TestDecide(t *testing.T) {
	states := []siroccov1.State{10, 20, 30, 40, 42, 44, 46, 48, 50, 60, 70}
	rapid.Check(t, func(t *rapid.T) {
		sb := &siroccov1.Sandbox{
			Id: "sb-1", Tenant: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "tenant"), State: rapid.SampledFrom(states).Draw(t, "state"),
			Placement: &siroccov1.Placement{Epoch: 3, NodeAddress: "n:1"},
			Spec: &siroccov1.CreateSandboxRequest{Ports: []*siroccov1.Port{{
				Port: 80, Protocol: siroccov1.Protocol(rapid.IntRange(0, 3).Draw(t, "protocol")), BearerToken: rapid.SampledFrom([]string{"", "hash"}).Draw(t, "token"),
			}}},
		}
		w := want{id: "sb-1", port: uint16(rapid.SampledFrom([]int{0, 80, 81}).Draw(t, "port")), protocol: https,
			tenant: rapid.SampledFrom([]string{"", "a"}).Draw(t, "wanted tenant"), authorize: func(h string) bool { return h == "hash" }}
		if rapid.Bool().Draw(t, "no token") {
			w.authorize = func(string) bool { return false }
		}
		got, f := decide(sb, w)
		p := sb.GetSpec().GetPorts()[0]
		may := w.tenant == "" || w.tenant == sb.GetTenant()
		may = may && (w.port == 0 || w.port == 80 && protocolOf(p) == https && (p.GetBearerToken() == "" || w.authorize("hash")))
		switch {
		case !may:
			if f == nil || f.status < 400 || f.status >= 500 {
				t.Fatalf("%v", f)
			}
		case (lifecycle.Ended(sb.GetState()) || sb.GetState() == siroccov1.State_STATE_STOPPING) && w.port != dataPort:
			if f == nil || f.reason != ReasonEnded {
				t.Fatalf("%v", f)
			}
		case sb.GetState() == siroccov1.State_STATE_RUNNING, sb.GetState() >= siroccov1.State_STATE_STOPPING:
			if f != nil || got.epoch != 3 || got.address != "n:1" || got.port != w.port {
				t.Fatalf("%+v %v", got, f)
			}
		default:
			if f != nil || got.id != "" {
				t.Fatalf("%+v %v", got, f)
			}
		}
	})
}

func TestStripCookie(t *testing.T) {
	h := http.Header{"Cookie": {"a=1;" + CookieTunnelToken + "=x ; b=\"2\"", CookieTunnelToken + "=y"}}
	stripCookie(h)
	if got := h["Cookie"]; len(got) != 1 || got[0] != `a=1; b="2"` {
		t.Errorf("%q", got)
	}
}

func TestUpgradeOf(t *testing.T) {
	for up, want := range map[string]string{"websocket": "websocket", "WebSocket": "WebSocket", "h2c": "", "HTTP/2.0": "", "TLS/1.0": "", "tcp": "tcp", "a\r\nb": ""} {
		req := &http.Request{ProtoMajor: 1, Header: http.Header{"Connection": {"keep-alive, Upgrade"}, "Upgrade": {up}}}
		if got := upgradeOf(req); got != want {
			t.Errorf("%q: %q, want %q", up, got, want)
		}
	}
}

func writePair(t *testing.T, folder *pki.Folder, name, certFile, keyFile string) {
	t.Helper()
	cert, err := folder.PublicTLS([]string{name}, nil)
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: cert.Certificate[0]}, keyFile: {Type: "PRIVATE KEY", Bytes: key}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestFileCertsAreReadAgain(t *testing.T) {
	folder, err := pki.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	c := fileCerts(certFile, keyFile, slog.New(slog.DiscardHandler))
	if err := c.refresh(); err == nil {
		t.Error("missing files: no error")
	}
	writePair(t, folder, "one.test", certFile, keyFile)
	if err := c.refresh(); err != nil {
		t.Fatal(err)
	}
	name := func() string { cert, _ := c.get(nil); return cert.Leaf.DNSNames[0] }
	writePair(t, folder, "two.test", certFile, keyFile)
	_ = os.Chtimes(certFile, time.Now(), time.Now().Add(time.Minute))
	if err := c.refresh(); err != nil || name() != "two.test" {
		t.Errorf("%v, %s", err, name())
	}
	if err := os.WriteFile(certFile, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.refresh(); err == nil || name() != "two.test" {
		t.Errorf("a broken file: %v, %s", err, name())
	}
	writePair(t, folder, "three.test", certFile, keyFile)
	if err := c.refresh(); err != nil || name() != "three.test" {
		t.Errorf("repaired: %v, %s", err, name())
	}
}

func TestOwnCertIsRenewed(t *testing.T) {
	folder, err := pki.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	c := ownCerts(folder, []string{"*.x.test"}, slog.New(slog.DiscardHandler))
	if err := c.refresh(); err != nil {
		t.Fatal(err)
	}
	first, _ := c.get(nil)
	if err := c.refresh(); err != nil {
		t.Fatal(err)
	}
	if again, _ := c.get(nil); again != first {
		t.Error("a fresh certificate was made anew")
	}
	first.Leaf.NotAfter = time.Now().Add(renewBefore - time.Hour)
	if err := c.refresh(); err != nil {
		t.Fatal(err)
	}
	if again, _ := c.get(nil); again == first {
		t.Error("a certificate near its end was kept")
	}
}

func TestACMEAsksOnlyForLivingNames(t *testing.T) {
	g := newRig(t, Config{ACME: true, ACMECA: "https://127.0.0.1:1/directory", ACMEDir: t.TempDir()})
	a := g.agent()
	live := g.placed(g.accept(&siroccov1.Port{Port: 80}), a)
	dead := g.known(g.step(g.placed(g.accept(&siroccov1.Port{Port: 80}), a), lifecycle.Finish{Epoch: 1}))
	for name, ok := range map[string]bool{
		g.front.DataHost(): true, g.front.Host(80, live.GetId()): true, g.front.Host(80, dead.GetId()): false, g.front.Host(80, oldID): false,
		"www.sandbox.test": false, "sandbox.test": false, "evil.example": false, "*.sandbox.test": false, "": false,
	} {
		if err := g.relay.mayIssue(context.Background(), name); (err == nil) != ok {
			t.Errorf("%q: %v", name, err)
		}
	}
	// A handshake for a name that may not have one fails at once, and asks
	// nobody.
	conn := tls.Client(must(g.dial(t.Context(), "", "")), &tls.Config{ServerName: "www.sandbox.test"})
	if err := conn.HandshakeContext(t.Context()); err == nil {
		t.Error("a handshake for a stranger's name succeeded")
	}
	_ = conn.Close()
}

// FuzzClientHello feeds what comes before any authentication: bytes to the TLS
// front. It must never crash or write to a client that is passed on, and what
// it passes on must be the bytes that came.
func FuzzClientHello(f *testing.F) {
	for _, name := range []string{"8443-" + oldID + ".sandbox.test", "x.sandbox.test", ""} {
		a, b := net.Pipe()
		go func() {
			_ = tls.Client(a, &tls.Config{ServerName: name, InsecureSkipVerify: true}).Handshake() //nolint:gosec // only the hello is wanted
		}()
		buf := make([]byte, 4096)
		n, _ := b.Read(buf)
		_ = a.Close()
		_ = b.Close()
		f.Add(buf[:n])
	}
	f.Add([]byte{22, 3, 1, 0, 5, 1, 0, 0, 1, 0})
	folder, err := pki.Open(f.TempDir())
	if err != nil {
		f.Fatal(err)
	}
	cert, err := folder.PublicTLS([]string{"*.sandbox.test"}, nil)
	if err != nil {
		f.Fatal(err)
	}
	m := &meters{}
	f.Fuzz(func(t *testing.T, raw []byte) {
		conn := &scripted{in: raw}
		hello := newHelloConn(&clientConn{Conn: conn, gate: &gate{meters: m, stall: time.Hour}})
		cfg := &tls.Config{Certificates: []tls.Certificate{cert}, GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			if strings.HasPrefix(h.ServerName, "8443-") {
				hello.pass()
				return nil, errPassthrough
			}
			hello.terminate()
			return nil, nil
		}} //nolint:gosec // the default version is fine
		_ = tls.Server(hello, cfg).Handshake()
		if hello.passing && (conn.wrote > 0 || !strings.HasPrefix(string(raw), hello.hello.String())) {
			t.Fatalf("wrote %d bytes; kept %d of %d", conn.wrote, hello.hello.Len(), len(raw))
		}
	})
}

// scripted is a connection that says in and then ends.
type scripted struct {
	net.Conn
	in    []byte
	wrote int
}

func (c *scripted) Read(b []byte) (int, error) {
	if len(c.in) == 0 {
		return 0, net.ErrClosed
	}
	n := copy(b, c.in)
	c.in = c.in[n:]
	return n, nil
}

func (c *scripted) Write(b []byte) (int, error)      { c.wrote += len(b); return len(b), nil }
func (c *scripted) Close() error                     { return nil }
func (c *scripted) SetWriteDeadline(time.Time) error { return nil }
func (c *scripted) SetDeadline(time.Time) error      { return nil }
