package relay

import (
	"context"
	"errors"
	"io"
	"maps"
	"net/http"
	"sync"
	"sync/atomic"
)

// maxKept is how much of a request's body is kept until it is answered, to send it
// again. Few are larger and have an answer that could be lost in a move.
const maxKept = 64 << 10

// requestBody is the body of a client's request. It can be read again from its
// beginning (read, after rewind) as long as it was not more than maxKept.
type requestBody struct {
	from *http.Request // as the server made it: its trailers are filled in at the end
	in   io.ReadCloser
	end  atomic.Bool

	last     *bodyReader
	answered atomic.Bool
	// kept is what was read so far, unless overflown. The last reader's goroutine
	// has both until it is closed.
	kept      []byte
	overflown bool
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

// read returns the body as one transport gets it. The client's trailers go to
// trailer, those of the request that is being sent: transports look at them in the
// goroutine that reads the body.
func (b *requestBody) read(trailer http.Header) io.ReadCloser {
	b.last = &bodyReader{body: b, trailer: trailer, closed: make(chan struct{})}
	return b.last
}

// rewind waits until the last transport has let go of the body, and says whether it
// can be read once more.
func (b *requestBody) rewind(ctx context.Context) bool {
	if b.last != nil {
		select {
		case <-b.last.closed:
		case <-ctx.Done():
			return false
		}
	}
	return !b.overflown
}

// forget keeps nothing any more: the request is answered.
func (b *requestBody) forget() { b.answered.Store(true) }

// bodyReader is one reading of a body.
type bodyReader struct {
	body    *requestBody
	at      int // of what is kept
	trailer http.Header
	once    sync.Once
	closed  chan struct{}
}

// Read reads what was kept, and then from the client.
func (r *bodyReader) Read(p []byte) (int, error) {
	b := r.body
	if r.at < len(b.kept) {
		n := copy(p, b.kept[r.at:])
		r.at += n
		return n, nil
	}
	n, err := b.in.Read(p)
	switch {
	case b.overflown:
	case b.answered.Load() || len(b.kept)+n > maxKept:
		b.overflown, b.kept = true, nil
	default:
		b.kept = append(b.kept, p[:n]...)
		r.at = len(b.kept)
	}
	if errors.Is(err, io.EOF) {
		b.end.Store(true)
		if r.trailer != nil {
			maps.Copy(r.trailer, b.from.Trailer)
		}
	}
	return n, err
}

// Close does not close the client's body: the server does, after the handler.
func (r *bodyReader) Close() error {
	r.once.Do(func() { close(r.closed) })
	return nil
}

// proxyBuffers lends the proxy the buffers of the raw streams.
type proxyBuffers struct{}

// Get returns a buffer.
func (proxyBuffers) Get() []byte { return *bulk.Get().(*[]byte) } //nolint:errcheck // the pool holds nothing else

// Put takes it back.
func (proxyBuffers) Put(b []byte) { bulk.Put(&b) }
