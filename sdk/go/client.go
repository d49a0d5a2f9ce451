package sirocco

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"github.com/sirocco-run/sirocco/proto/gen/sirocco/v1/siroccov1connect"
	"github.com/sirocco-run/sirocco/sdk/go/localhost"
)

// DefaultAPI is where `sirocco up` listens.
const DefaultAPI = "http://127.0.0.1:7070"

// Config of a client.
type Config struct {
	// API is the base URL of the api; empty means DefaultAPI.
	API string
	// Key is the tenant's API key.
	Key string
	// CAFile is a PEM file with the authorities that are trusted besides the
	// system's: the relay's own, where it has no public certificate.
	CAFile string
	// Retry is for how long a call is tried again while the platform says that
	// it is unavailable, or the connection breaks; zero means 10 s, negative
	// not at all. A client that has reached nothing yet does not wait.
	Retry time.Duration
	// Resume is for how long Attach and Watch try to find back to a stream
	// that broke, counted from the last byte; zero means 1 min.
	Resume time.Duration
	// HTTP replaces the client's own HTTP client; CAFile is then ignored.
	HTTP *http.Client
	// Options are added to those of every connect client, to trace for example.
	Options []connect.ClientOption
}

// Client speaks to one Sirocco as one tenant.
type Client struct {
	cfg  Config
	http *http.Client
	// reached is true once anything has answered.
	reached atomic.Bool

	sandboxes siroccov1connect.SandboxServiceClient
	tunnels   siroccov1connect.TunnelServiceClient
	nodes     siroccov1connect.NodeServiceClient
	images    siroccov1connect.ImageServiceClient
	pools     siroccov1connect.PoolServiceClient
	quotas    siroccov1connect.QuotaServiceClient
	regions   siroccov1connect.RegionServiceClient
}

// New makes a client. It reads the CA file and connects to nothing yet.
func New(cfg Config) (*Client, error) {
	if cfg.API == "" {
		cfg.API = DefaultAPI
	}
	if cfg.Retry == 0 {
		cfg.Retry = 10 * time.Second
	}
	if cfg.Resume == 0 {
		cfg.Resume = time.Minute
	}
	u, err := url.Parse(cfg.API)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return nil, &Error{Code: InvalidArgument, Field: "api", Message: fmt.Sprintf("%q is not a URL such as %s", cfg.API, DefaultAPI)}
	}
	c := &Client{cfg: cfg, http: cfg.HTTP}
	if c.http == nil {
		transport, err := newTransport(cfg.CAFile)
		if err != nil {
			return nil, err
		}
		c.http = &http.Client{Transport: transport}
	}
	opts := c.options(func(context.Context) (string, error) { return cfg.Key, nil })
	c.sandboxes = siroccov1connect.NewSandboxServiceClient(c.http, cfg.API, opts...)
	c.tunnels = siroccov1connect.NewTunnelServiceClient(c.http, cfg.API, opts...)
	c.nodes = siroccov1connect.NewNodeServiceClient(c.http, cfg.API, opts...)
	c.images = siroccov1connect.NewImageServiceClient(c.http, cfg.API, opts...)
	c.pools = siroccov1connect.NewPoolServiceClient(c.http, cfg.API, opts...)
	c.quotas = siroccov1connect.NewQuotaServiceClient(c.http, cfg.API, opts...)
	c.regions = siroccov1connect.NewRegionServiceClient(c.http, cfg.API, opts...)
	return c, nil
}

// Close closes idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Nodes returns the operator's service of nodes.
func (c *Client) Nodes() siroccov1connect.NodeServiceClient { return c.nodes }

// Images returns the service of images.
func (c *Client) Images() siroccov1connect.ImageServiceClient { return c.images }

// Pools returns the operator's service of warm pools.
func (c *Client) Pools() siroccov1connect.PoolServiceClient { return c.pools }

// Regions returns the service of regions and their weights.
func (c *Client) Regions() siroccov1connect.RegionServiceClient { return c.regions }

// Quotas returns the operator's service of tenants' limits.
func (c *Client) Quotas() siroccov1connect.QuotaServiceClient { return c.quotas }

func (c *Client) options(token func(context.Context) (string, error)) []connect.ClientOption {
	opts := []connect.ClientOption{
		connect.WithInterceptors(&credentials{token: token, reached: &c.reached}),
		// Latency counts more than bytes here.
		connect.WithAcceptCompression("gzip", nil, nil),
	}
	return append(opts, c.cfg.Options...)
}

// newTransport makes a transport that notices dead peers within half a minute
// and keeps enough connections for a burst.
func newTransport(caFile string) (*http.Transport, error) {
	dialer := &net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second}
	t := &http.Transport{
		Proxy: http.ProxyFromEnvironment,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return dialer.DialContext(ctx, network, localhost.Address(address))
		},
		ForceAttemptHTTP2: true, MaxIdleConns: 512, MaxIdleConnsPerHost: 256,
		IdleConnTimeout: 90 * time.Second, TLSHandshakeTimeout: 10 * time.Second,
		HTTP2: &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 10 * time.Second},
	}
	if caFile == "" {
		return t, nil
	}
	raw, err := os.ReadFile(caFile)
	if err != nil {
		return nil, &Error{Code: InvalidArgument, Field: "ca_file", Message: "read the CA file: " + err.Error(), cause: err}
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(raw) {
		return nil, &Error{Code: InvalidArgument, Field: "ca_file", Message: caFile + " holds no PEM certificate"}
	}
	t.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	return t, nil
}

// credentials adds the token to each call and turns what fails into an *Error.
type credentials struct {
	token   func(context.Context) (string, error)
	reached *atomic.Bool
}

// WrapUnary implements connect.Interceptor.
func (i *credentials) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		token, err := i.token(ctx)
		if err != nil {
			return nil, err
		}
		if token != "" {
			req.Header().Set("Authorization", "Bearer "+token)
		}
		resp, err := next(ctx, req)
		return resp, i.seen(err)
	}
}

// WrapStreamingClient implements connect.Interceptor.
func (i *credentials) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, spec connect.Spec) connect.StreamingClientConn {
		conn := next(ctx, spec)
		token, err := i.token(ctx)
		if token != "" {
			conn.RequestHeader().Set("Authorization", "Bearer "+token)
		}
		return &streamConn{StreamingClientConn: conn, i: i, err: err}
	}
}

// WrapStreamingHandler implements connect.Interceptor.
func (i *credentials) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

func (i *credentials) seen(err error) error {
	if err == nil || connect.IsWireError(err) {
		i.reached.Store(true)
	}
	return typedOrEOF(err)
}

// streamConn is a stream whose errors are *Error, and io.EOF at its end.
type streamConn struct {
	connect.StreamingClientConn
	i *credentials
	// err is why there is no token.
	err error
}

// Send implements connect.StreamingClientConn.
func (s *streamConn) Send(m any) error {
	if s.err != nil {
		return s.err
	}
	return typedOrEOF(s.StreamingClientConn.Send(m))
}

// Receive implements connect.StreamingClientConn.
func (s *streamConn) Receive(m any) error {
	if s.err != nil {
		return s.err
	}
	return s.i.seen(s.StreamingClientConn.Receive(m))
}
