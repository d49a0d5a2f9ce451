package relay

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/http/httputil"
	"strings"
	"time"

	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/tunnel"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/propagation"
)

// Where a tunnel's token may be, besides "Authorization: Bearer".
const (
	HeaderTunnelToken = "Sirocco-Tunnel-Token" //nolint:gosec // a name, no secret
	CookieTunnelToken = "sirocco-tunnel-token" //nolint:gosec // a name, no secret
)

// exchange is what the relay knows of one request; it travels in its context.
type exchange struct {
	kind   string
	want   want
	target target
	client string // address of the client
	trace  string
	begun  time.Time
	held   time.Duration
	strip  func(http.Header) // removes the token that was used
	body   *requestBody      // nil without one
}

type exchangeKey struct{}

func exchangeOf(ctx context.Context) *exchange {
	x, _ := ctx.Value(exchangeKey{}).(*exchange)
	return x
}

// ServeHTTP answers every request that comes over TLS that ends here.
func (r *Relay) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	x := &exchange{kind: kindHTTP, client: req.RemoteAddr, begun: time.Now()}
	if !r.clients.enter() {
		r.refuse(w, req, x, draining())
		return
	}
	defer r.clients.leave()
	if strings.EqualFold(hostname(req.Host), r.env.Front.DataHost()) {
		r.serveData(w, req, x)
		return
	}
	port, id, err := r.env.Front.ParseHost(req.Host)
	switch {
	case req.Method == http.MethodConnect:
		r.refuse(w, req, x, badRequest(http.StatusMethodNotAllowed, "CONNECT is not supported."))
		return
	case err != nil:
		r.refuse(w, req, x, notATunnel(req.Host, r.env.Front.Domain))
		return
	}
	ctx, span, trace := r.startSpan(req.Context(), "relay.http")
	defer span.End()
	x.trace = trace
	x.want = want{id: id, port: port, protocol: siroccov1.Protocol_PROTOCOL_HTTPS, authorize: func(hash string) bool {
		x.strip = findToken(req.Header, hash)
		return x.strip != nil
	}}
	if !r.resolve(ctx, w, req, x) {
		return
	}
	if up := upgradeOf(req); up != "" {
		x.kind = kindUpgrade
		r.serveUpgrade(w, req.WithContext(ctx), x, up)
		return
	}
	r.forward(ctx, w, req, x)
}

// resolve fills in the target, or answers with the refusal and returns false.
func (r *Relay) resolve(ctx context.Context, w http.ResponseWriter, req *http.Request, x *exchange) bool {
	before := time.Now()
	t, f := r.router.resolve(ctx, x.want)
	x.target = t
	// Whoever was not held took microseconds.
	if x.held = time.Since(before); x.held > time.Millisecond {
		r.meters.wasHeld(ctx, x.held)
	}
	if f != nil {
		r.refuse(w, req.WithContext(ctx), x, f)
	}
	return f == nil
}

// refuse answers instead of the app.
func (r *Relay) refuse(w http.ResponseWriter, req *http.Request, x *exchange, f *refusal) {
	r.refused(req.Context(), x.kind, x.want.id, f)
	if req.ProtoMajor == 1 && f.reason == ReasonDraining {
		w.Header().Set("Connection", "close")
	}
	if x.kind == kindData {
		writeFault(w, req, f.reason, f.asFault())
		return
	}
	writeRefusal(w, req, f)
}

// findToken returns what removes the token that matches the hash, nil if there
// is none. Whatever else is in these places is the app's.
func findToken(h http.Header, hash string) func(http.Header) {
	if tunnel.CheckToken(hash, h.Get(HeaderTunnelToken)) {
		return func(out http.Header) { out.Del(HeaderTunnelToken) }
	}
	if tunnel.CheckToken(hash, bearer(h)) {
		return func(out http.Header) { out.Del("Authorization") }
	}
	in := http.Request{Header: h}
	for _, c := range in.CookiesNamed(CookieTunnelToken) {
		if tunnel.CheckToken(hash, c.Value) {
			return stripCookie
		}
	}
	return nil
}

// stripCookie removes the token's cookie and leaves the others' bytes alone.
func stripCookie(out http.Header) {
	var kept []string
	for _, line := range out["Cookie"] {
		var pairs []string
		for pair := range strings.SplitSeq(line, ";") {
			if name, _, _ := strings.Cut(strings.TrimSpace(pair), "="); name != CookieTunnelToken {
				pairs = append(pairs, strings.TrimSpace(pair))
			}
		}
		if len(pairs) > 0 {
			kept = append(kept, strings.Join(pairs, "; "))
		}
	}
	if len(kept) == 0 {
		out.Del("Cookie")
		return
	}
	out["Cookie"] = kept
}

// bearer returns the token of an Authorization header, "" if it holds none.
func bearer(h http.Header) string {
	kind, token, _ := strings.Cut(h.Get("Authorization"), " ")
	if !strings.EqualFold(kind, "Bearer") {
		return ""
	}
	return strings.TrimSpace(token)
}

// forward proxies a request to the exchange's target.
func (r *Relay) forward(ctx context.Context, w http.ResponseWriter, req *http.Request, x *exchange) {
	controller := http.NewResponseController(w)
	if req.ProtoMajor == 1 {
		// The app may answer while it still reads, and the other way round.
		_ = controller.EnableFullDuplex()
	}
	body, wrapped := wrapBody(req)
	req = req.WithContext(context.WithValue(ctx, exchangeKey{}, x))
	if wrapped {
		req.Body, x.body = body, body
	}
	defer func() {
		if wrapped && !body.ended() && req.ProtoMajor == 1 {
			// The app has answered without reading to the end. A client that
			// sends no more must not keep the connection for ever.
			_ = controller.SetReadDeadline(time.Now())
		}
	}()
	r.proxy.ServeHTTP(gatherAnswer(w, req), req)
}

// newProxy makes the one reverse proxy.
func (r *Relay) newProxy() *httputil.ReverseProxy {
	return &httputil.ReverseProxy{
		Rewrite:        r.rewrite,
		Transport:      roundTripper(r.roundTrip),
		FlushInterval:  -1, // every write goes out at once
		BufferPool:     proxyBuffers{},
		ErrorLog:       r.errorLog,
		ModifyResponse: r.answered,
		ErrorHandler: func(w http.ResponseWriter, req *http.Request, err error) {
			x := exchangeOf(req.Context())
			if x == nil {
				w.WriteHeader(http.StatusInternalServerError) // cannot be: forward sets it
				return
			}
			if req.Context().Err() != nil {
				panic(http.ErrAbortHandler) // the client is gone
			}
			var f *refusal
			if !errors.As(err, &f) {
				f = appBroke(x.want.port, err)
				if x.kind == kindData || errors.Is(err, errStale) {
					f = nodeUnreachable(x.want.id, err)
				}
			}
			r.refuse(w, req, x, f)
		},
	}
}

// rewrite says what the app gets to see. Hop-by-hop headers and every
// X-Forwarded header of the client are gone already.
func (r *Relay) rewrite(p *httputil.ProxyRequest) {
	x := exchangeOf(p.In.Context())
	p.Out.URL.Scheme, p.Out.URL.Host = "http", x.target.host()
	p.Out.URL.RawQuery = p.In.URL.RawQuery // as it came; the app judges it
	p.Out.Host = p.In.Host
	setForwarded(p.Out.Header, p.In)
	if x.strip != nil {
		x.strip(p.Out.Header)
	}
	if x.kind == kindData {
		otel.GetTextMapPropagator().Inject(p.Out.Context(), propagation.HeaderCarrier(p.Out.Header))
	}
	if x.begun.IsZero() {
		return
	}
	begun := x.begun
	ctx := httptrace.WithClientTrace(p.Out.Context(), &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) {
		r.meters.passedOn(p.Out.Context(), max(time.Since(begun)-x.held, 0))
	}})
	p.Out = p.Out.WithContext(ctx)
}

// setForwarded tells the app who asks, in place of whatever the client claimed.
func setForwarded(out http.Header, in *http.Request) {
	ip := in.RemoteAddr
	if host, _, err := net.SplitHostPort(ip); err == nil {
		ip = host
	}
	out.Del("Forwarded")
	out.Set("X-Forwarded-For", ip)
	out.Set("X-Forwarded-Proto", "https")
	out.Set("X-Forwarded-Host", in.Host)
	out.Del("X-Real-Ip")
}

func (r *Relay) answered(resp *http.Response) error {
	resp.Header.Del(HeaderError) // only the relay may say so
	if x := exchangeOf(resp.Request.Context()); x != nil {
		r.meters.answered(resp.Request.Context(), x.kind, resp.StatusCode)
	}
	return nil
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// roundTrip sends a request to its target, or to the newer one when the target
// turns out to be old before anything was sent.
func (r *Relay) roundTrip(req *http.Request) (*http.Response, error) {
	x := exchangeOf(req.Context())
	for tries := 0; ; tries++ {
		transport := r.apps
		if x.kind == kindData || isGRPC(req) && req.ProtoMajor >= 2 {
			transport = r.appsH2
		}
		if x.body != nil {
			x.body.trailer = req.Trailer
		}
		resp, err := transport.RoundTrip(req)
		if err == nil || !errors.Is(err, errStale) || tries == maxStale {
			return resp, err
		}
		before := time.Now()
		t, f := r.router.again(req.Context(), x.want, x.target)
		x.held += time.Since(before)
		if f != nil {
			return nil, f
		}
		x.target = t
		req = req.Clone(req.Context())
		req.URL.Host = t.host()
	}
}

// newTransport makes a pool of connections to apps. Connections are pooled by
// target.host, so that each placement of a sandbox has its own.
func (r *Relay) newTransport(h2 bool) *http.Transport {
	t := &http.Transport{
		DialContext:        r.dialTarget,
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
func (r *Relay) dialTarget(ctx context.Context, _, addr string) (net.Conn, error) {
	id, epoch, port, err := parseTargetHost(addr)
	if err != nil {
		return nil, err
	}
	sb := r.router.lookup(id)
	x := exchangeOf(ctx)
	if sb.GetPlacement().GetEpoch() != epoch {
		return nil, errStale
	}
	t := target{
		tenant: sb.GetTenant(), id: id, epoch: epoch, revision: sb.GetRevision(), port: port,
		address: sb.GetPlacement().GetNodeAddress(), since: runningSince(sb),
	}
	var client, trace string
	if x != nil {
		client, trace = x.client, x.trace
	}
	return r.router.open(ctx, t, client, trace)
}

func hostname(hostport string) string {
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		return h
	}
	return hostport
}

// refused logs and counts.
func (r *Relay) refused(ctx context.Context, kind, id string, f *refusal) {
	r.meters.refused(ctx, kind, f)
	level := r.log.DebugContext
	if f.code == fault.Internal {
		level = r.log.ErrorContext
	}
	level(ctx, "refused", "kind", kind, "sandbox", id, "reason", f.reason, "err", f.cause)
}
