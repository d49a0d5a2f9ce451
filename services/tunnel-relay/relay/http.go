package relay

import (
	"context"
	"errors"
	"io"
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

	conn     *routeConn // that the request was last given, until release
	unsent   bool       // it was closed already then
	answered bool       // the answer has begun
	resent   bool       // the request was sent more than once
}

// take notes the stream that a request is about to be sent on.
func (x *exchange) take(conn net.Conn) {
	x.release()
	if c, ok := conn.(*routeConn); ok {
		x.conn, x.unsent = c, !c.begin()
	}
}

// heard notes that the answer has begun.
func (x *exchange) heard() {
	if x.conn != nil {
		x.conn.answered()
		x.answered = true
	}
}

// release gives the stream back.
func (x *exchange) release() {
	if x.conn != nil {
		x.conn.end(x.answered)
		x.conn, x.answered = nil, false
	}
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
		x.body = body
		req.Body = io.NopCloser(req.Body) // closing it would wait for the client
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
	ctx := httptrace.WithClientTrace(p.Out.Context(), &httptrace.ClientTrace{GotConn: func(got httptrace.GotConnInfo) {
		x.take(got.Conn)
		if !x.resent {
			r.meters.passedOn(p.Out.Context(), max(time.Since(x.begun)-x.held, 0))
		}
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
