package bench

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/sirocco-run/sirocco/sdk/go/localhost"
)

// Tunnels speaks HTTPS to published ports.
type Tunnels struct {
	tls *tls.Config
}

// NewTunnels makes a client that trusts the authorities of a PEM file besides the
// system's; "" for those alone.
func NewTunnels(caFile string) (*Tunnels, error) {
	t := &Tunnels{tls: &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}}}
	if caFile == "" {
		return t, nil
	}
	raw, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("read the CA file: %w", err)
	}
	if t.tls.RootCAs, err = x509.SystemCertPool(); err != nil {
		t.tls.RootCAs = x509.NewCertPool()
	}
	if !t.tls.RootCAs.AppendCertsFromPEM(raw) {
		return nil, fmt.Errorf("%s holds no PEM certificate", caFile)
	}
	return t, nil
}

// Client makes an HTTP/1.1 client with at most so many connections to each host,
// which are kept. Its CloseIdleConnections must be called.
func (t *Tunnels) Client(connections int) *http.Client {
	return httpClient(connections, t.tls, dialTCP)
}

func httpClient(connections int, config *tls.Config, dial func(ctx context.Context, network, address string) (net.Conn, error)) *http.Client {
	return &http.Client{Transport: &http.Transport{
		TLSClientConfig: config, DialContext: dial, MaxConnsPerHost: connections, MaxIdleConnsPerHost: connections,
		IdleConnTimeout: time.Minute, DisableCompression: true,
	}}
}

// dialTCP connects as the SDK does: names below localhost are this machine's.
func dialTCP(ctx context.Context, network, address string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, network, localhost.Address(address))
}

// get reads a URL whole.
func get(ctx context.Context, client *http.Client, url string, into io.Writer) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(into, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answered %s", url, resp.Status)
	}
	return nil
}

// tunnelOf is the address of a sandbox's published port.
func tunnelOf(sb *siroccov1.Sandbox) (string, error) {
	for _, t := range sb.GetTunnels() {
		if t.GetUrl() != "" {
			return strings.TrimRight(t.GetUrl(), "/"), nil
		}
	}
	return "", errors.New("the sandbox has no tunnel")
}
