package relay

import (
	"errors"
	"io"
	"maps"
	"net/http"
	"sync/atomic"
)

// requestBody is the body of a client's request. Closing it does not close,
// or wait for, the client's: a transport that gave up before it sent anything
// closes the body too, and the request may be tried again.
type requestBody struct {
	from *http.Request // as the server made it: its trailers are filled in at the end
	in   io.ReadCloser
	end  atomic.Bool
	// trailer is where the client's trailers go: those of the request that is
	// being sent. Transports look at them in the goroutine that reads the body.
	trailer http.Header
}

// wrapBody returns false where there is no body.
func wrapBody(req *http.Request) (*requestBody, bool) {
	if req.Body == nil || req.Body == http.NoBody || req.ContentLength == 0 {
		return nil, false
	}
	return &requestBody{from: req, in: req.Body}, true
}

// ended says whether the client's body was read to its end.
func (b *requestBody) ended() bool { return b.end.Load() }

// Read reads from the client.
func (b *requestBody) Read(p []byte) (int, error) {
	n, err := b.in.Read(p)
	if errors.Is(err, io.EOF) {
		b.end.Store(true)
		if b.trailer != nil {
			maps.Copy(b.trailer, b.from.Trailer)
		}
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
