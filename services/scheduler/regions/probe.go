package regions

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/sirocco-run/sirocco/sdk/go/localhost"
)

// prober tries relays as a client would: a connection, TLS, a request and an answer.
type prober struct{ client *http.Client }

// newProber trusts the machine's authorities and the regions' own, which may not exist
// yet.
func newProber(caFile string) (*prober, error) {
	roots, err := x509.SystemCertPool()
	if err != nil {
		roots = x509.NewCertPool()
	}
	raw, err := os.ReadFile(caFile)
	if err != nil && !os.IsNotExist(err) {
		return nil, fmt.Errorf("read the authority of the relays: %w", err)
	}
	roots.AppendCertsFromPEM(raw)
	dialer := &net.Dialer{Timeout: askTimeout}
	return &prober{&http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			address = localhost.Address(address)
			if at, ok := ctx.Value(probeAt{}).(string); ok {
				address = at
			}
			return dialer.DialContext(ctx, network, address)
		},
		MaxIdleConnsPerHost: 1, IdleConnTimeout: 30 * time.Second,
	}}}, nil
}

// probeAt is the address to connect to, in a context.
type probeAt struct{}

// try asks for nothing in particular: any answer of less than 500 shows that the relay
// serves. at is the host:port to connect to instead of the URL's; empty for that.
func (p *prober) try(ctx context.Context, url, at string) error {
	if at != "" {
		ctx = context.WithValue(ctx, probeAt{}, at)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := p.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
	if resp.StatusCode >= http.StatusInternalServerError {
		return fmt.Errorf("it answers %s", resp.Status)
	}
	return nil
}

func (p *prober) close() { p.client.CloseIdleConnections() }
