package relay

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"log" //nolint:depguard // pebble takes no other
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/letsencrypt/pebble/v2/ca"
	"github.com/letsencrypt/pebble/v2/db"
	"github.com/letsencrypt/pebble/v2/va"
	"github.com/letsencrypt/pebble/v2/wfe"
	"github.com/miekg/dns"
	"github.com/sirocco-run/sirocco/pkg/bustest"
)

// loopbackDNS answers every name with 127.0.0.1.
func loopbackDNS(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0") // the validator asks over TCP
	if err != nil {
		t.Fatal(err)
	}
	server := &dns.Server{Listener: listener, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		if len(q.Question) == 1 && q.Question[0].Qtype == dns.TypeA {
			m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET}, A: net.IPv4(127, 0, 0, 1)}}
		}
		_ = w.WriteMsg(m)
	})}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.ActivateAndServe() }()
	t.Cleanup(func() { _ = server.Shutdown(); <-done })
	return listener.Addr().String()
}

// A real ACME authority gives the certificate at the first handshake of a name
// that a living sandbox has, after it has looked at the relay itself (TLS-ALPN).
func TestACMECertificateOnDemand(t *testing.T) {
	t.Setenv("PEBBLE_VA_NOSLEEP", "1")
	t.Setenv("PEBBLE_WFE_NONCEREJECT", "0")
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := free.Addr().(*net.TCPAddr)
	_ = free.Close()
	logger, store := log.New(io.Discard, "", 0), db.NewMemoryStore()
	authority := ca.New(logger, store, "", "ecdsa", 0, 1, map[string]ca.Profile{"default": {}})
	validator := va.New(logger, 1, address.Port, false, loopbackDNS(t), store)
	front := wfe.New(logger, store, validator, authority, []string{"x.test"}, false, false, 1, 1)
	acme := httptest.NewTLSServer(front.Handler())
	t.Cleanup(acme.Close)

	nc, js := bustest.Start(t)
	g := buildRig(t, nc, js, Config{Listen: address.String(), ACME: true, ACMECA: acme.URL + wfe.DirectoryPath, ACMEDir: t.TempDir(), ACMEEmail: "op@sandbox.test"})
	g.relay.acmeRoots = x509.NewCertPool()
	g.relay.acmeRoots.AddCert(acme.Certificate())
	g.start()
	g.roots = x509.NewCertPool()
	g.roots.AddCert(authority.GetRootCert(0).Cert)
	sb := g.app(g.agent(), http.HandlerFunc(hello))
	for range 2 { // the second comes from the cache
		if resp, body := get(t, g.client(true), g.url(sb, "/")); body != "hello" || resp.TLS.PeerCertificates[0].DNSNames[0] != g.front.Host(8000, sb.GetId()) {
			t.Fatalf("%d %q %v", resp.StatusCode, body, resp.TLS.PeerCertificates[0].DNSNames)
		}
	}
	stranger := tls.Client(must(g.dial(t.Context(), "", "")), &tls.Config{ServerName: g.front.Host(8000, oldID), RootCAs: g.roots})
	if err := stranger.HandshakeContext(t.Context()); err == nil {
		t.Error("a name without a sandbox got a certificate")
	}
	_ = stranger.Close()
}
