package image

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"syscall"
	"time"
)

// errAddress says that a registry's address is one this machine must not
// connect to on behalf of a tenant.
var errAddress = errors.New("its address may not be reached")

// sharedSpace is that of carrier-grade NAT, private in all but name.
var sharedSpace = netip.MustParsePrefix("100.64.0.0/10")

// allowedAddress says whether a registry may have the address. Link-local ones,
// where clouds keep their metadata, are never allowed.
func allowedAddress(a netip.Addr, private bool) bool {
	a = a.Unmap()
	switch {
	case !a.IsValid(), a.IsUnspecified(), a.IsMulticast(), a.IsLinkLocalUnicast():
		return false
	case a.IsLoopback(), a.IsPrivate(), sharedSpace.Contains(a):
		return private
	default:
		return true
	}
}

// transport returns an HTTP transport for one registry. The rule about
// addresses holds for each connection, wherever a redirect or a token service
// leads. A proxy that the operator configured is trusted to have rules of its
// own.
func (s *Store) transport(registry string) (patient, error) {
	private := slices.Contains(s.opt.PrivateRegistries, registry)
	dial := &net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}
	guarded := *dial
	guarded.ControlContext = func(_ context.Context, _, address string, _ syscall.RawConn) error {
		ap, err := netip.ParseAddrPort(address)
		if err != nil || !allowedAddress(ap.Addr(), private) {
			return fmt.Errorf("%s: %w", address, errAddress)
		}
		return nil
	}
	proxies := map[string]bool{}
	for _, scheme := range []string{"http", "https"} {
		req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, scheme+"://"+registry+"/", nil)
		if err != nil {
			return patient{}, fmt.Errorf("%w: registry %q: %w", ErrInvalid, registry, err)
		}
		if p, err := http.ProxyFromEnvironment(req); err == nil && p != nil {
			port := p.Port()
			if port == "" {
				port = map[string]string{"https": "443", "socks5": "1080"}[p.Scheme]
			}
			if port == "" {
				port = "80"
			}
			proxies[net.JoinHostPort(p.Hostname(), port)] = true
		}
	}
	return patient{wait: s.opt.StallTimeout, Transport: &http.Transport{
		Proxy: http.ProxyFromEnvironment,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			if proxies[addr] {
				return dial.DialContext(ctx, network, addr)
			}
			return guarded.DialContext(ctx, network, addr)
		},
		ForceAttemptHTTP2:     true,
		MaxIdleConns:          8,
		MaxIdleConnsPerHost:   4,
		IdleConnTimeout:       30 * time.Second,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: s.opt.StallTimeout,
		ExpectContinueTimeout: time.Second,
	}}, nil
}
