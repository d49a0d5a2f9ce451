package api

import (
	"io"
	"net/http"
	"regexp"
	"strings"

	"github.com/sirocco-run/sirocco/pkg/apikey"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/rpc"
	"github.com/sirocco-run/sirocco/proto/gen/sirocco/v1/siroccov1connect"
)

const (
	eventsPath  = "/v1/events"
	headerKey   = "Idempotency-Key"
	headerAuth  = "Authorization"
	contentType = "Content-Type"
	imagesPath  = "/v1/images/"
)

// dataPath matches the REST paths of the data services.
var dataPath = regexp.MustCompile(`^/v1/sandboxes/[^/]+/(execs|files|logs)(/|$)`)

// ServeHTTP is the one door of HTTP.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) { a.door.ServeHTTP(w, r) }

// serve finds out who asks, and what for.
func (a *API) serve(w *rpc.Writer, r *http.Request) error {
	path := r.URL.Path
	switch {
	case path == "/healthz":
		return text(w, http.StatusOK, "ok\n")
	case path == "/readyz":
		if !a.env.NC.IsConnected() {
			return text(w.Unwrap(), http.StatusServiceUnavailable, "the bus is away\n")
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
	case !w.RPC() && !strings.HasPrefix(path, "/v1/"):
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
	if name, ok := strings.CutPrefix(path, imagesPath); ok {
		// What follows a colon would be a verb to the transcoder, not a tag. (It
		// decodes the path once more by itself.)
		u := *r.URL
		u.Path = imagesPath + strings.NewReplacer("%", "%25", ":", "%3A").Replace(name)
		r.URL = &u
	}
	return a.routed.Serve(w, r)
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
