package rpc

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/sirocco-run/sirocco/pkg/fault"
)

// bound keeps the body of a request in bounds of size and time. One message is
// read here and now, so that a body that is too long, or ends early, is told
// apart from one that can't be understood.
func (c *Contract) bound(w *Writer, r *http.Request) error {
	if strings.HasPrefix(w.kind, "application/grpc") || strings.HasPrefix(w.kind, "application/connect+") {
		r.Body = c.paced(w, r)
		return nil
	}
	control := http.NewResponseController(w)
	tooLong := fault.Invalid("", "the body is larger than %d bytes", c.cfg.MaxBody)
	if r.ContentLength > c.cfg.MaxBody {
		return tooLong
	}
	_ = control.SetReadDeadline(time.Now().Add(c.cfg.BodyTime))
	body, err := io.ReadAll(io.LimitReader(r.Body, c.cfg.MaxBody+1))
	switch {
	case err != nil:
		return fault.New(fault.InvalidArgument, "the body ended early or came too slowly: %w", err)
	case int64(len(body)) > c.cfg.MaxBody:
		return tooLong
	}
	_ = control.SetReadDeadline(time.Time{})
	if !w.rpc && isGzip(w.packing) {
		// The transcoder would unpack as much as an answer may have.
		if body, err = unpack(body, c.cfg.MaxBody); err != nil {
			return fault.New(fault.InvalidArgument, "the body can't be unpacked: %w", err)
		}
		if int64(len(body)) > c.cfg.MaxBody {
			return tooLong
		}
		r.Header.Del("Content-Encoding")
	}
	if !w.rpc && isForm(w.kind) && json.Valid(body) {
		r.Header.Set(contentType, "application/json")
	}
	r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	return nil
}

func isGzip(packing string) bool { return strings.EqualFold(packing, "gzip") }

// unpack unpacks gzip, up to one byte more than most.
func unpack(packed []byte, most int64) ([]byte, error) {
	z, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(z, most+1))
}

// checkQuery refuses parameters that are no text: the transcoder takes them, and
// then can't write the message that holds them.
func checkQuery(query url.Values) error {
	for name, values := range query {
		if !utf8.ValidString(name) {
			return fault.Invalid("", "the name of a parameter is not valid UTF-8: %q", name)
		}
		for _, v := range values {
			if !utf8.ValidString(v) {
				return fault.Invalid(name, "it is not valid UTF-8")
			}
		}
	}
	return nil
}

// isForm says whether a content type is what curl -d sends, whatever the body is.
// Over REST such a body is read as JSON if it is JSON, as one without a content
// type is. Any page can make a browser send one, but not with the key or token
// that every call needs: there are no cookies.
func isForm(kind string) bool {
	kind, _, _ = strings.Cut(kind, ";")
	return strings.EqualFold(strings.TrimSpace(kind), "application/x-www-form-urlencoded")
}

// pacedBody gives each piece of a body its time.
type pacedBody struct {
	io.ReadCloser
	control *http.ResponseController
	each    time.Duration
}

func (c *Contract) paced(w *Writer, r *http.Request) *pacedBody {
	return &pacedBody{r.Body, http.NewResponseController(w), c.cfg.BodyTime}
}

// Read implements io.Reader.
func (b *pacedBody) Read(p []byte) (int, error) {
	_ = b.control.SetReadDeadline(time.Now().Add(b.each))
	n, err := b.ReadCloser.Read(p)
	// Whoever takes the pieces may be slow, and after the last one the
	// connection goes on to be watched for the caller's leaving.
	_ = b.control.SetReadDeadline(time.Time{})
	return n, err
}
