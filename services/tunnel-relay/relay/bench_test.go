package relay

import (
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

// BenchmarkLatency is one small request after another on one connection: to
// the app itself over plain HTTP, over TLS, and through relay and agent.
func BenchmarkLatency(b *testing.B) {
	server := httptest.NewServer(http.HandlerFunc(hello))
	defer server.Close()
	secure := httptest.NewTLSServer(http.HandlerFunc(hello))
	defer secure.Close()
	g := newRig(b, Config{})
	a := g.agent()
	sb := g.app(a, http.HandlerFunc(hello))
	for name, row := range map[string]struct {
		client *http.Client
		url    string
	}{
		"plain": {server.Client(), server.URL}, "tls": {secure.Client(), secure.URL},
		"relay-http1": {g.client(false), g.url(sb, "/")}, "relay-h2": {g.client(true), g.url(sb, "/")},
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				get(b, row.client, row.url)
			}
		})
	}
}

// BenchmarkThroughput downloads over many connections: from the app itself,
// plain and with TLS, and through relay and agent.
func BenchmarkThroughput(b *testing.B) {
	const size = 16 << 20
	chunk := make([]byte, 256<<10)
	big := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for range size / len(chunk) {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	})
	server, secure := httptest.NewServer(big), httptest.NewTLSServer(big)
	defer server.Close()
	defer secure.Close()
	g := newRig(b, Config{})
	a := g.agent()
	sb := g.accept(&siroccov1.Port{Port: 8000})
	a.listen(sb.GetId(), 8000, server.Listener.Addr().String())
	g.placed(sb, a)
	plain := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 100}}
	overTLS := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 100, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}} //nolint:gosec // a benchmark
	for _, row := range []struct {
		name   string
		client *http.Client
		url    string
	}{{"plain", plain, server.URL}, {"tls", overTLS, secure.URL}, {"relay", g.client(false), g.url(sb, "/")}} {
		for _, conns := range []int{1, 64} {
			b.Run(fmt.Sprintf("%s/%d", row.name, conns), func(b *testing.B) {
				b.SetBytes(size * int64(conns))
				for b.Loop() {
					var wg sync.WaitGroup
					for range conns {
						wg.Go(func() {
							resp, err := row.client.Get(row.url)
							if err != nil {
								b.Error(err)
								return
							}
							defer func() { _ = resp.Body.Close() }()
							if n, err := io.Copy(io.Discard, resp.Body); n != size || err != nil {
								b.Error(n, err)
							}
						})
					}
					wg.Wait()
				}
			})
		}
	}
}
