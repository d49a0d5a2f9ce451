package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/sirocco-run/sirocco/pkg/apikey"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/proto/gen/sirocco/v1/siroccov1connect"
)

// bodyTime is how long the body of a request may take, or of an upload each
// piece.
const bodyTime = 30 * time.Second

const (
	rpcPrefix   = "/sirocco.v1."
	eventsPath  = "/v1/events"
	headerKey   = "Idempotency-Key"
	headerAuth  = "Authorization"
	contentType = "Content-Type"
)

// dataPath matches the REST paths of the data services.
var dataPath = regexp.MustCompile(`^/v1/sandboxes/[^/]+/(execs|files|logs)(/|$)`)

// restKey marks the requests of REST, with their writer.
type restKey struct{}

// transportOf says how a request came: "rest", or the RPC protocol.
func transportOf(ctx context.Context, protocol string) string {
	if ctx.Value(restKey{}) != nil {
		return "rest"
	}
	return protocol
}

// refused says whether a request of REST has been answered with an error
// already, so that nothing may be done for it.
func refused(ctx context.Context) bool {
	w, ok := ctx.Value(restKey{}).(*typedWriter)
	return ok && w.status != 0
}

// ServeHTTP is the one door of HTTP: it finds out who asks, keeps bodies in
// bounds, and makes every error look as the contract says.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Content-Type-Options", "nosniff")
	out := &typedWriter{ResponseWriter: w, request: r, api: a, rpc: strings.HasPrefix(r.URL.Path, rpcPrefix)}
	defer func() {
		if p := recover(); p != nil {
			if err, ok := p.(error); ok && errors.Is(err, http.ErrAbortHandler) {
				panic(p)
			}
			out.fail(a.settle(r.Context(), r.URL.Path, fmt.Errorf("panic: %v", p)))
		}
		out.finish()
	}()
	if err := a.serve(out, r); err != nil {
		out.fail(a.settle(r.Context(), r.URL.Path, err))
	}
}

func (a *API) serve(w *typedWriter, r *http.Request) error {
	path := r.URL.Path
	switch {
	case path == "/healthz":
		return text(w, http.StatusOK, "ok\n")
	case path == "/readyz":
		if !a.env.NC.IsConnected() {
			return text(w, http.StatusServiceUnavailable, "the bus is away\n")
		}
		return text(w, http.StatusOK, "ready\n")
	case path == "/openapi.json":
		w.Header().Set(contentType, "application/json")
		_, err := w.Write(a.openapi)
		return ignoreGone(err)
	case dataPath.MatchString(path):
		// Clients drop the Authorization header on the way to another host; the
		// token of the create answer goes there, not the API key.
		w.Header().Set("Location", a.env.Front.DataURL()+r.URL.RequestURI())
		w.WriteHeader(http.StatusTemporaryRedirect)
		return nil
	case dataService(path):
		return fault.New(fault.FailedPrecondition, "exec, files and logs are served at %s, with the token of the create answer", a.env.Front.DataURL())
	case w.rpc && strings.HasPrefix(r.Header.Get(contentType), "application/grpc-web"):
		return fault.New(fault.InvalidArgument, "gRPC-Web is not served: use gRPC, Connect or REST")
	case !w.rpc && !strings.HasPrefix(path, "/v1/"):
		return fault.New(fault.NotFound, "there is no such path; see /openapi.json")
	}
	c, err := a.authenticate(r)
	if err != nil {
		return err
	}
	ctx := withCaller(r.Context(), c)
	if path == eventsPath {
		return a.serveEvents(ctx, w, r, c)
	}
	r = r.WithContext(ctx)
	if err := bound(w, r); err != nil {
		return err
	}
	if w.rpc {
		a.rpc.ServeHTTP(w, r)
		return nil
	}
	ctx = context.WithValue(ctx, restKey{}, w)
	if name, ok := importPath(r); ok {
		return a.serveImport(ctx, w, r, c, name)
	}
	r = r.WithContext(ctx)
	if name, ok := strings.CutPrefix(path, imagesPath); ok {
		// What follows a colon would be a verb to the transcoder, not a tag. (It
		// decodes the path once more by itself.)
		u := *r.URL
		u.Path = imagesPath + strings.NewReplacer("%", "%25", ":", "%3A").Replace(name)
		r.URL = &u
	}
	a.rest.ServeHTTP(w, r)
	return nil
}

// authenticate returns whom the API key of a request opens.
func (a *API) authenticate(r *http.Request) (caller, error) {
	values := r.Header.Values(headerAuth)
	if len(values) != 1 {
		return caller{}, fault.New(fault.Unauthenticated, "an API key is needed: Authorization: Bearer %s…", apikey.Prefix)
	}
	scheme, secret, ok := strings.Cut(values[0], " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") {
		return caller{}, fault.New(fault.Unauthenticated, "want Authorization: Bearer %s…", apikey.Prefix)
	}
	key, err := a.keys.Verify(r.Context(), strings.TrimSpace(secret))
	if err != nil {
		return caller{}, err
	}
	return caller{tenant: key.Tenant, operator: key.Role == apikey.RoleOperator, key: r.Header.Get(headerKey)}, nil
}

func dataService(path string) bool {
	for _, name := range []string{siroccov1connect.ExecServiceName, siroccov1connect.FileServiceName, siroccov1connect.LogServiceName} {
		if strings.HasPrefix(path, "/"+name+"/") {
			return true
		}
	}
	return false
}

// bound keeps the body of a request in bounds of size and time. One message is
// read here and now, so that a body that is too long, or ends early, is told
// apart from one that can't be understood.
func bound(w http.ResponseWriter, r *http.Request) error {
	control := http.NewResponseController(w)
	kind := r.Header.Get(contentType)
	_, upload := importPath(r)
	if upload || strings.HasPrefix(kind, "application/grpc") || strings.HasPrefix(kind, "application/connect+") {
		r.Body = &pacedBody{ReadCloser: r.Body, control: control}
		return nil
	}
	tooLong := fault.Invalid("", "the body is larger than %d bytes", maxBody)
	if r.ContentLength > maxBody {
		return tooLong
	}
	_ = control.SetReadDeadline(time.Now().Add(bodyTime))
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	switch {
	case err != nil:
		return fault.New(fault.InvalidArgument, "the body ended early or came too slowly: %w", err)
	case len(body) > maxBody:
		return tooLong
	}
	_ = control.SetReadDeadline(time.Time{})
	r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	return nil
}

// pacedBody gives each piece of a body its time.
type pacedBody struct {
	io.ReadCloser
	control *http.ResponseController
}

// Read implements io.Reader.
func (b *pacedBody) Read(p []byte) (int, error) {
	_ = b.control.SetReadDeadline(time.Now().Add(bodyTime))
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		// The connection goes on to be watched for the caller's leaving.
		_ = b.control.SetReadDeadline(time.Time{})
	}
	return n, err
}

func text(w http.ResponseWriter, status int, body string) error {
	w.Header().Set(contentType, "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, err := io.WriteString(w, body)
	return ignoreGone(err)
}

// ignoreGone drops the error of a write to a caller that has left: there is
// nobody to tell.
func ignoreGone(error) error { return nil }

var _ http.Handler = (*API)(nil)

// rpcErrors writes errors to RPC clients.
func rpcErrors() *connect.ErrorWriter { return connect.NewErrorWriter(connect.WithCodec(strictJSON{})) }
