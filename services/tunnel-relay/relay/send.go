package relay

import (
	"context"
	"errors"
	"net"
	"net/http"
	"time"

	"github.com/sirocco-run/sirocco/pkg/link"
	"github.com/sirocco-run/sirocco/proto/gen/sirocco/v1/siroccov1connect"
)

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// roundTrip sends a request to its target. Where the sandbox goes, or has gone,
// before it has answered, the request is sent again to the newer place: always when
// the sandbox has not heard of it, and when it may have, only what may be repeated.
func (r *Relay) roundTrip(req *http.Request) (*http.Response, error) {
	x := exchangeOf(req.Context())
	for tried := (attempts{}); ; {
		resp, err := r.try(req, x)
		if err == nil {
			return resp, nil
		}
		conn, unsent := x.conn, x.unsent
		x.release()
		cause := r.router.fate(x.target, conn, unsent, err)
		switch {
		case cause == nil || req.Context().Err() != nil:
			return nil, err
		case errors.Is(cause, errParted) && !repeatable(req, x.kind):
			return nil, moved(x.want.id, err)
		case x.body != nil && !x.body.rewind(req.Context()):
			return nil, movedUnheard(x.want.id, cause)
		}
		before := time.Now()
		t, f := r.router.next(req.Context(), x.want, x.target, cause, &tried)
		held := time.Since(before)
		if x.held += held; held > time.Millisecond {
			r.meters.wasHeld(req.Context(), held)
		}
		if f != nil {
			return nil, f
		}
		if conn != nil {
			r.meters.resent(req.Context(), x.kind)
		}
		x.target, x.resent = t, true
		req = req.Clone(req.Context())
		req.URL.Host = t.host()
	}
}

// try sends a request once.
func (r *Relay) try(req *http.Request, x *exchange) (*http.Response, error) {
	transport := r.apps
	if x.kind == kindData || isGRPC(req) && req.ProtoMajor >= 2 {
		transport = r.appsH2
	}
	if x.body != nil {
		once := *req
		once.Body = x.body.read(req.Trailer)
		req = &once
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	x.heard()
	if x.kind == kindData && resp.Header.Get(link.HeaderLeaving) != "" {
		_ = resp.Body.Close()
		return nil, errLeaving
	}
	if x.body != nil {
		x.body.forget()
	}
	if resp.StatusCode == http.StatusSwitchingProtocols {
		return resp, nil // its body is the connection
	}
	resp.Body = &answerBody{ReadCloser: resp.Body, x: x, event: eventStream(resp.Header.Get("Content-Type"), resp.ContentLength)}
	return resp, nil
}

// fate says why a request has come back without an answer, as far as moves have to
// do with it: errStale and errLeaving, when its sandbox has heard nothing of it;
// errParted, when it may have, and has gone or is going; nil for any other reason.
func (r *router) fate(t target, conn *routeConn, unsent bool, err error) error {
	switch {
	case errors.Is(err, errStale), conn == nil && r.lookup(t.id).GetRevision() > t.revision:
		return errStale // or what was opened for it was closed as old before it was used
	case errors.Is(err, errLeaving), unsent, conn.unheard():
		return errLeaving
	case conn.lost(), conn != nil && r.passed(t):
		return errParted
	}
	return nil
}

// repeatable says whether a request may be sent again though the sandbox may have
// carried it out: by its method, by the word of whoever sent it, or because it is a
// call of the data services that does nothing twice.
func repeatable(req *http.Request, kind string) bool {
	switch req.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace, http.MethodPut, http.MethodDelete:
		return true
	}
	if kind == kindData {
		switch req.URL.Path {
		case siroccov1connect.ExecServiceAttachProcedure, siroccov1connect.ExecServiceReadOutputProcedure,
			siroccov1connect.ExecServiceWaitProcedure, siroccov1connect.ExecServiceListProcedure, siroccov1connect.ExecServiceStdinProcedure,
			siroccov1connect.FileServiceReadProcedure, siroccov1connect.FileServiceListProcedure, siroccov1connect.FileServiceStatProcedure,
			siroccov1connect.FileServiceWatchProcedure, siroccov1connect.LogServiceReadProcedure:
			return true
		}
	}
	return req.Header.Get("Idempotency-Key") != ""
}

// newTransport makes a pool of connections to apps. Connections are pooled by
// target.host, so that each placement of a sandbox has its own.
func (r *Relay) newTransport(h2 bool) *http.Transport {
	t := &http.Transport{
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			return r.dialTarget(ctx, addr, h2)
		},
		DisableCompression: true, // bytes pass as they are
		MaxIdleConns:       8192, MaxIdleConnsPerHost: 256, IdleConnTimeout: time.Minute,
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: 1 << 20,
		Protocols:              new(http.Protocols),
	}
	t.Protocols.SetHTTP1(!h2)
	t.Protocols.SetUnencryptedHTTP2(h2)
	if h2 {
		t.HTTP2 = &http.HTTP2Config{SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second}
	}
	return t
}

// dialTarget opens a stream for a transport; addr is made by target.host.
func (r *Relay) dialTarget(ctx context.Context, addr string, h2 bool) (net.Conn, error) {
	want, err := parseTargetHost(addr)
	if err != nil {
		return nil, err
	}
	t := targetOf(r.router.lookup(want.id), want.port)
	if t.epoch != want.epoch || t.phase != want.phase {
		return nil, errStale
	}
	var client, trace string
	if x := exchangeOf(ctx); x != nil {
		client, trace = x.client, x.trace
	}
	u := usePool
	if h2 {
		u = usePoolH2
	}
	return r.router.open(ctx, t, u, client, trace)
}
