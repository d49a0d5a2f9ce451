package relay

import (
	"errors"
	"io"
	"net/http"
	"sync/atomic"
)

var errBodyClosed = errors.New("relay: the request is over")

// requestBody is the body of a client's request. Closing it does not close,
// or wait for, the client's: a transport that gave up before it sent anything
// closes the body too, and the request may be tried again.
type requestBody struct {
	in     io.ReadCloser
	closed atomic.Bool
	end    atomic.Bool
}

// wrapBody returns false where there is no body.
func wrapBody(req *http.Request) (*requestBody, bool) {
	if req.Body == nil || req.Body == http.NoBody || req.ContentLength == 0 {
		return nil, false
	}
	return &requestBody{in: req.Body}, true
}

// ended says whether the client's body was read to its end.
func (b *requestBody) ended() bool { return b.end.Load() }

// Read reads from the client.
func (b *requestBody) Read(p []byte) (int, error) {
	if b.closed.Load() {
		return 0, errBodyClosed
	}
	n, err := b.in.Read(p)
	if err != nil {
		b.end.Store(errors.Is(err, io.EOF))
	}
	return n, err
}

// Close does nothing: the server closes the client's body after the handler.
func (b *requestBody) Close() error { return nil }

// proxyBuffers lends the proxy the buffers of the raw streams.
type proxyBuffers struct{}

// Get returns a buffer.
func (proxyBuffers) Get() []byte { return *bulk.Get().(*[]byte) } //nolint:errcheck // the pool holds nothing else

// Put takes it back.
func (proxyBuffers) Put(b []byte) { bulk.Put(&b) }

