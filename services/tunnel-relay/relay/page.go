package relay

import (
	"encoding/json"
	"fmt"
	"html"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"
)

// writeRefusal answers a request to a tunnel: a page for browsers, JSON for
// programs, gRPC for gRPC, and plain text for the rest.
func writeRefusal(w http.ResponseWriter, r *http.Request, f *refusal) {
	h := w.Header()
	h.Set(HeaderError, f.reason)
	h.Set("Cache-Control", "no-store")
	if f.reason == ReasonUnauthorized {
		h.Set("WWW-Authenticate", `Bearer realm="sirocco tunnel"`)
	}
	retryAfter(h, f.retry)
	if writer := connect.NewErrorWriter(); isGRPC(r) && writer.IsSupported(r) {
		_ = writer.Write(w, r, fault.Connect(f.asFault()))
		return
	}
	var body string
	switch preferred(r.Header.Get("Accept")) {
	case "application/json":
		raw, err := json.Marshal(map[string]any{"error": map[string]any{
			"reason": f.reason, "code": f.code, "message": f.text, "status": f.status,
		}})
		if err != nil {
			raw = []byte("{}") // cannot be: plain values only
		}
		h.Set("Content-Type", "application/json")
		body = string(raw) + "\n"
	case "text/html":
		h.Set("Content-Type", "text/html; charset=utf-8")
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
		body = fmt.Sprintf(page, f.status, html.EscapeString(f.title), html.EscapeString(f.title), html.EscapeString(f.text), f.status, f.reason)
	default:
		h.Set("Content-Type", "text/plain; charset=utf-8")
		body = f.title + ": " + f.text + "\n"
	}
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(f.status)
	if r.Method != http.MethodHead {
		_, _ = w.Write([]byte(body))
	}
}

const page = `<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>%d %s</title><style>body{font:16px/1.5 system-ui,sans-serif;max-width:38rem;margin:15vh auto;padding:0 1rem;color:#223;background:#fdfcfa}
small{color:#889}@media(prefers-color-scheme:dark){body{color:#dde;background:#181a1f}}</style></head>
<body><h1>%s</h1><p>%s</p><small>Sirocco relay · %d %s</small></body></html>
`

// preferred returns which of HTML, JSON and plain text an Accept header names
// first. Weights are left aside: browsers and programs name what they want
// first.
func preferred(accept string) string {
	for part := range strings.SplitSeq(accept, ",") {
		kind, _, _ := strings.Cut(strings.TrimSpace(part), ";")
		switch kind = strings.ToLower(strings.TrimSpace(kind)); {
		case kind == "text/html" || kind == "application/xhtml+xml":
			return "text/html"
		case kind == "application/json" || strings.HasSuffix(kind, "+json"):
			return "application/json"
		case kind == "text/plain":
			return "text/plain"
		}
	}
	return "text/plain"
}

// writeFault answers a request to the data services in the shape that its
// client reads: gRPC, gRPC-Web, Connect, or for REST a google.rpc.Status.
func writeFault(w http.ResponseWriter, r *http.Request, reason string, f *fault.Fault) {
	h := w.Header()
	h.Set(HeaderError, reason)
	h.Set("Cache-Control", "no-store")
	if f.Code == fault.Unauthenticated {
		h.Set("WWW-Authenticate", `Bearer realm="sirocco data"`)
	}
	retryAfter(h, f.RetryAfter)
	if writer := connect.NewErrorWriter(); !strings.HasPrefix(r.URL.Path, "/v1/") && writer.IsSupported(r) {
		_ = writer.Write(w, r, fault.Connect(f))
		return
	}
	st := &status.Status{Code: int32(connect.CodeOf(fault.Connect(f))), Message: f.Message} //nolint:gosec // there are 17 codes
	if detail, err := anypb.New(f.Detail()); err == nil {
		st.Details = append(st.Details, detail)
	}
	body, err := protojson.Marshal(st)
	if err != nil {
		body = []byte("{}") // cannot be: the type of the detail is linked in
	}
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(f.Code.HTTPStatus())
	if r.Method != http.MethodHead {
		_, _ = w.Write(body)
	}
}

func retryAfter(h http.Header, d time.Duration) {
	if d > 0 {
		h.Set("Retry-After", strconv.Itoa(int(math.Ceil(d.Seconds()))))
	}
}

// isGRPC says whether a request speaks gRPC, which needs h2 to the app too.
func isGRPC(r *http.Request) bool {
	kind, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";")
	kind = strings.ToLower(strings.TrimSpace(kind))
	return kind == "application/grpc" || strings.HasPrefix(kind, "application/grpc+")
}
