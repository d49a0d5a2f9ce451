package api

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"
)

// serveAll listens on HTTP and the bus until ctx ends.
func (a *API) serveAll(ctx context.Context) error {
	// Requests under way outlive ctx by the grace.
	requests, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	listener, err := a.listen(ctx)
	if err != nil {
		return err
	}
	server := a.server(requests)
	stopAsks, err := a.serveAsks(requests, a.env.NC, ownInbox)
	if err != nil {
		_ = listener.Close()
		return err
	}
	defer stopAsks()
	leave, err := a.openTenantsSide(requests)
	if err != nil {
		_ = listener.Close()
		return err
	}
	defer leave()
	a.addr = listener.Addr()
	close(a.ready)
	a.log.InfoContext(ctx, "api serves", "address", a.addr.String(), "region", a.env.Region)

	var group errgroup.Group
	group.Go(func() error {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve %s: %w", a.addr, err)
		}
		return nil
	})
	failed := make(chan error, 1)
	go func() { failed <- group.Wait() }()
	select {
	case err = <-failed:
	case <-ctx.Done():
	}
	close(a.stopping)
	timer := time.AfterFunc(grace, cut)
	defer timer.Stop()
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace+time.Second)
	defer cancel()
	if server.Shutdown(end) != nil {
		_ = server.Close()
	}
	return errors.Join(err, group.Wait())
}

func (a *API) listen(ctx context.Context) (net.Listener, error) {
	secure := a.cfg.CertFile != "" || !loopback(a.cfg.Listen)
	var config *tls.Config
	if secure {
		var err error
		if config, err = a.tls(); err != nil {
			return nil, err
		}
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", a.cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", a.cfg.Listen, err)
	}
	if config != nil {
		return tls.NewListener(listener, config), nil
	}
	return listener, nil
}

func (a *API) tls() (*tls.Config, error) {
	var pair tls.Certificate
	var err error
	if a.cfg.CertFile != "" {
		pair, err = tls.LoadX509KeyPair(a.cfg.CertFile, a.cfg.KeyFile)
	} else {
		pair, err = a.env.Keys.PublicTLS(a.certificateNames())
	}
	if err != nil {
		return nil, fmt.Errorf("certificate of the api: %w", err)
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}}, nil
}

// certificateNames are the names and addresses under which the listener can be
// reached, as far as the configuration says.
func (a *API) certificateNames() (names []string, ips []net.IP) {
	names, ips = []string{"localhost"}, []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
	host, _, err := net.SplitHostPort(a.cfg.Listen)
	if err == nil {
		names, ips = addName(names, ips, host)
	}
	if a.env.Front.Domain != "" {
		names = append(names, "api."+a.env.Front.Domain)
	}
	for _, name := range a.cfg.CertNames {
		names, ips = addName(names, ips, name)
	}
	return names, ips
}

func addName(names []string, ips []net.IP, name string) ([]string, []net.IP) {
	ip := net.ParseIP(name)
	switch {
	case ip != nil && !ip.IsUnspecified():
		return names, append(ips, ip)
	case ip == nil && name != "":
		return append(names, name), ips
	}
	return names, ips
}

// server bounds what a client may cost before it has said who it is.
func (a *API) server(ctx context.Context) *http.Server {
	protocols := &http.Protocols{}
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler: a, Protocols: protocols,
		ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		HTTP2:       &http.HTTP2Config{MaxConcurrentStreams: 1000, SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second},
		BaseContext: func(net.Listener) context.Context { return ctx },
		ErrorLog:    slog.NewLogLogger(a.log.Handler(), slog.LevelDebug),
	}
}
