package rpc

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"strconv"
	"strings"

	"connectrpc.com/connect"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"google.golang.org/genproto/googleapis/api/httpbody"
	"google.golang.org/protobuf/proto"
)

// maxErrorBody is more than any error that is written here.
const maxErrorBody = 64 << 10

// Writer is the writer of a Door's request. It makes sure that every error
// carries its ErrorDetail, also those that the RPC libraries write before a
// handler is reached: it holds answers with an error status back, and looks at
// the trailers of gRPC.
//
//	REST     {"code": 3, "message": …, "details": [{"@type": …ErrorDetail, …}]}
//	Connect  {"code": "invalid_argument", "message": …, "details": […]}
//	gRPC     grpc-status, grpc-message, grpc-status-details-bin
//
// It belongs to the request's goroutine.
type Writer struct {
	http.ResponseWriter
	contract *Contract
	request  *http.Request
	// What the request said: the transcoder changes it on its way.
	path, kind, packing string
	rpc                 bool
	base                http.Header // of the answer, before anybody added to it

	wrote  bool
	status int // of an error that is held back
	held   bytes.Buffer

	upload *uploading
	raw    http.Header // of an answer that is streamed: what others would add to it
	broken bool
}

func newWriter(c *Contract, w http.ResponseWriter, r *http.Request) *Writer {
	return &Writer{
		ResponseWriter: w, contract: c, request: r, path: r.URL.Path,
		kind: r.Header.Get(contentType), packing: r.Header.Get("Content-Encoding"),
		rpc: strings.HasPrefix(r.URL.Path, Prefix), base: w.Header().Clone(),
	}
}

// RPC says whether the request is one of gRPC or Connect, as opposed to REST.
func (w *Writer) RPC() bool { return w.rpc }

// Began says whether an answer has begun, so that no other can be given.
func (w *Writer) Began() bool { return w.wrote }

// Unwrap returns the writer below, for http.ResponseController and for answers
// that are not the contract's.
func (w *Writer) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Header implements http.ResponseWriter.
func (w *Writer) Header() http.Header {
	if w.raw != nil {
		return w.raw
	}
	return w.ResponseWriter.Header()
}

// Flush implements http.Flusher.
func (w *Writer) Flush() {
	if w.status == 0 && w.raw == nil {
		w.wrote = true
		_ = http.NewResponseController(w.ResponseWriter).Flush()
	}
}

// WriteHeader implements http.ResponseWriter.
func (w *Writer) WriteHeader(status int) {
	if w.wrote || w.status != 0 {
		return
	}
	if status >= 400 {
		w.status = status
		return
	}
	w.wrote = status >= 200
	w.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (w *Writer) Write(p []byte) (int, error) {
	if w.raw != nil {
		return len(p), nil
	}
	if w.status != 0 {
		if w.held.Len() < maxErrorBody {
			w.held.Write(p)
		}
		return len(p), nil
	}
	w.wrote = true
	return w.ResponseWriter.Write(p)
}

// refused says whether the request has been answered with an error already, so
// that nothing may be done for it.
func (w *Writer) refused() bool { return w.status != 0 }

// stream writes a piece of an answer past the transcoder; the first begins it.
func (w *Writer) stream(body *httpbody.HttpBody) error {
	if w.raw == nil {
		if w.wrote || w.status != 0 {
			return errUnreadable()
		}
		h := w.ResponseWriter.Header()
		clear(h)
		maps.Copy(h, w.base)
		kind := body.GetContentType()
		if kind == "" {
			kind = "application/octet-stream"
		}
		h.Set(contentType, kind)
		w.ResponseWriter.WriteHeader(http.StatusOK)
		w.wrote, w.raw = true, http.Header{}
	}
	if _, err := w.ResponseWriter.Write(body.GetData()); err != nil {
		return err
	}
	return http.NewResponseController(w.ResponseWriter).Flush()
}

// breakOff says that a call failed. If its answer had begun, the connection is
// cut: what was sent must not look whole.
func (w *Writer) breakOff() { w.broken = w.raw != nil }

// fail answers with a fault, if nothing has been answered yet.
func (w *Writer) fail(f *fault.Fault) {
	if w.wrote {
		w.breakOff()
		return
	}
	w.emit(f, f.Code.HTTPStatus())
}

// finish completes what the handlers below have written.
func (w *Writer) finish() {
	if w.broken {
		panic(http.ErrAbortHandler)
	}
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
func (w *Writer) emit(f *fault.Fault, status int) {
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
	if w.rpc && w.contract.errors.IsSupported(w.request) {
		_ = w.contract.errors.Write(w.ResponseWriter, w.request, fault.Connect(f))
		return
	}
	for name := range h {
		// Left by the handler behind the transcoder, which speaks gRPC: they tell of
		// a request without a message, as that is what it got.
		if name == "Trailer" || strings.HasPrefix(name, http.TrailerPrefix) || strings.HasPrefix(name, "Grpc-") {
			delete(h, name)
		}
	}
	h.Set(contentType, "application/json")
	w.ResponseWriter.WriteHeader(status)
	_, _ = w.ResponseWriter.Write(statusJSON(f))
}

// heldFault reads what was held back as a fault, with the HTTP status for it.
func (w *Writer) heldFault() (*fault.Fault, int) {
	if f := readError(w.held.Bytes()); f != nil {
		if f.Code == fault.Internal && f.ErrorID == "" {
			f = w.contract.Settle(w.request.Context(), w.path, errors.New(f.Message))
		}
		return f, f.Code.HTTPStatus()
	}
	said := strings.TrimSpace(w.held.String())
	if len(said) > 500 {
		said = said[:500]
	}
	switch w.status {
	case http.StatusNotFound:
		return fault.New(fault.NotFound, "there is no such path; the api lists them at /openapi.json"), w.status
	case http.StatusMethodNotAllowed:
		return fault.New(fault.InvalidArgument, "the method %s does not go with this path", w.request.Method), w.status
	case http.StatusUnsupportedMediaType:
		if w.packing != "" && !isGzip(w.packing) {
			return fault.Invalid("Content-Encoding", "%q is not served: send gzip, or the body as it is", w.packing), w.status
		}
		return fault.New(fault.InvalidArgument, "the content type %q is not served: send JSON, with the header Content-Type: application/json", w.kind), w.status
	}
	if w.status >= 500 {
		return w.contract.Settle(w.request.Context(), w.path, errors.New(said)), w.status
	}
	return BadRequest(said), w.status
}

// completeTrailers gives the error of a gRPC answer its detail, where the
// library found the fault by itself.
func (w *Writer) completeTrailers() {
	if !strings.HasPrefix(w.kind, "application/grpc") {
		return
	}
	h := w.Header()
	for _, prefix := range []string{http.TrailerPrefix, ""} {
		code, err := strconv.Atoi(first(h, prefix+"Grpc-Status"))
		if err != nil || code == 0 || first(h, prefix+"Grpc-Status-Details-Bin") != "" {
			continue
		}
		message := percentDecode(first(h, prefix+"Grpc-Message"))
		found := connect.NewError(connect.Code(code), errors.New(message)) //nolint:gosec // few codes
		if endedEarly(message) {
			found = connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("the request ended early: %s", message))
		}
		f := w.contract.Settle(w.request.Context(), w.path, found)
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
