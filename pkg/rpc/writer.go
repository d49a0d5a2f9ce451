package rpc

import (
	"bytes"
	"errors"
	"net/http"
	"strconv"
	"strings"

	"connectrpc.com/connect"
	"github.com/sirocco-run/sirocco/pkg/fault"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// maxErrorBody is more than any error that is written here.
const maxErrorBody = 64 << 10

// typedWriter makes sure that every error carries its ErrorDetail, also those
// that the RPC libraries write before a handler is reached: it holds answers
// with an error status back, and looks at the trailers of gRPC.
//
//	REST     {"code": 3, "message": …, "details": [{"@type": …ErrorDetail, …}]}
//	Connect  {"code": "invalid_argument", "message": …, "details": […]}
//	gRPC     grpc-status, grpc-message, grpc-status-details-bin
type typedWriter struct {
	http.ResponseWriter
	request *http.Request
	api     *API
	rpc     bool

	wrote  bool
	status int // of an error that is held back
	held   bytes.Buffer
}

// Unwrap lets http.ResponseController reach the connection.
func (w *typedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Flush implements http.Flusher.
func (w *typedWriter) Flush() {
	if w.status == 0 {
		w.wrote = true
		_ = http.NewResponseController(w.ResponseWriter).Flush()
	}
}

// WriteHeader implements http.ResponseWriter.
func (w *typedWriter) WriteHeader(status int) {
	if w.wrote || w.status != 0 {
		return
	}
	if status >= 400 && w.request.URL.Path != "/readyz" {
		w.status = status
		return
	}
	w.wrote = status >= 200
	w.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (w *typedWriter) Write(p []byte) (int, error) {
	if w.status != 0 {
		if w.held.Len() < maxErrorBody {
			w.held.Write(p)
		}
		return len(p), nil
	}
	w.wrote = true
	return w.ResponseWriter.Write(p)
}

// fail answers with a fault, if nothing has been answered yet.
func (w *typedWriter) fail(f *fault.Fault) {
	if !w.wrote {
		w.emit(f, f.Code.HTTPStatus())
	}
}

// finish completes what the handlers below have written.
func (w *typedWriter) finish() {
	if w.status == 0 {
		w.completeTrailers()
		return
	}
	if w.wrote {
		return
	}
	f, status := w.heldFault()
	w.emit(f, status)
}

// emit writes a fault in the way of the request's protocol.
func (w *typedWriter) emit(f *fault.Fault, status int) {
	w.wrote, w.status = true, 0
	h := w.Header()
	for _, name := range []string{"Content-Length", "Content-Encoding", contentType} {
		h.Del(name)
	}
	if f.RetryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(int(f.RetryAfter.Seconds()+0.999)))
	}
	if f.Code == fault.Unauthenticated {
		h.Set("WWW-Authenticate", "Bearer")
	}
	if w.rpc && w.api.rpcErrors.IsSupported(w.request) {
		_ = w.api.rpcErrors.Write(w.ResponseWriter, w.request, fault.Connect(f))
		return
	}
	h.Set(contentType, "application/json")
	w.ResponseWriter.WriteHeader(status)
	_, _ = w.ResponseWriter.Write(statusJSON(f))
}

// heldFault reads what was held back as a fault, with the HTTP status for it.
func (w *typedWriter) heldFault() (*fault.Fault, int) {
	if f := readError(w.held.Bytes()); f != nil {
		if f.Code == fault.Internal && f.ErrorID == "" {
			f = w.api.settle(w.request.Context(), w.request.URL.Path, errors.New(f.Message))
		}
		return f, f.Code.HTTPStatus()
	}
	said := strings.TrimSpace(w.held.String())
	if len(said) > 500 {
		said = said[:500]
	}
	switch w.status {
	case http.StatusNotFound:
		return fault.New(fault.NotFound, "there is no such path; see /openapi.json"), w.status
	case http.StatusMethodNotAllowed:
		return fault.New(fault.InvalidArgument, "the method %s does not go with this path", w.request.Method), w.status
	case http.StatusUnsupportedMediaType:
		return fault.New(fault.InvalidArgument, "the content type %q is not served", w.request.Header.Get(contentType)), w.status
	}
	if w.status >= 500 {
		return w.api.settle(w.request.Context(), w.request.URL.Path, errors.New(said)), w.status
	}
	return badRequest(said), w.status
}

// completeTrailers gives the error of a gRPC answer its detail, where the
// library found the fault by itself.
func (w *typedWriter) completeTrailers() {
	if !strings.HasPrefix(w.request.Header.Get(contentType), "application/grpc") {
		return
	}
	h := w.Header()
	for _, prefix := range []string{http.TrailerPrefix, ""} {
		code, err := strconv.Atoi(first(h, prefix+"Grpc-Status"))
		if err != nil || code == 0 || first(h, prefix+"Grpc-Status-Details-Bin") != "" {
			continue
		}
		message := percentDecode(first(h, prefix+"Grpc-Message"))
		f := w.api.settle(w.request.Context(), w.request.URL.Path, connect.NewError(connect.Code(code), errors.New(message))) //nolint:gosec // few codes
		raw, err := proto.Marshal(statusOf(f))
		if err != nil {
			return
		}
		h[prefix+"Grpc-Status"] = []string{strconv.Itoa(int(connect.CodeOf(fault.Connect(f))))}
		h[prefix+"Grpc-Message"] = []string{percentEncode(f.Message)}
		h[prefix+"Grpc-Status-Details-Bin"] = []string{connect.EncodeBinaryHeader(raw)}
	}
}

func first(h http.Header, key string) string {
	if v := h[key]; len(v) > 0 {
		return v[0]
	}
	return ""
}

