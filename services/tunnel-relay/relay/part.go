package relay

import (
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"time"
)

// errParted ends the reading from a sandbox that has gone: a clean end for whoever
// passes bytes on, and no answer for who waits for one.
var errParted = errors.New("relay: the sandbox has been moved")

// partedAnswer is how long a client may go on once its sandbox has gone. What it
// sends is dropped, but read: a connection that is closed over it would be reset.
const partedAnswer = time.Minute

// agentsWord is how long the agent that a sandbox has left may take to say what has
// become of a request: that the sandbox has not heard of it, or that its answer is lost.
// Only an agent that hangs, or has been cut off, does not say it at once.
const agentsWord = time.Second

// part is what becomes of a stream whose sandbox runs somewhere else by now: it
// ends, cleanly. What was received before is still delivered; then its reader gets
// errParted, and what the client sends is dropped. Called for every such stream
// once, after the record shows the newer epoch.
//
// This is the one place that decides so. A later step that keeps connections
// through a move would here, for a stream that is not pooled, put the stream to
// the newer placement under the same routeConn instead: joined connections know
// nothing but the routeConn, and go on reading and writing.
func (c *routeConn) part() {
	if c.use.pooled() {
		c.retire() // before its end can be seen: what gets on now would be cut off
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.parted.Store(true)
	c.expire()
}

// expire ends the stream of a sandbox that has gone: after what is buffered, or once the
// agent had time to say what has become of a request. The caller holds mu.
func (c *routeConn) expire() {
	at := time.Unix(1, 0)
	if c.asked > 0 {
		at = time.Now().Add(agentsWord)
	}
	_ = c.SetReadDeadline(at)
	_ = c.SetWriteDeadline(at)
}

// frames follows the frames of a WebSocket (RFC 6455, 5.2) through one direction,
// to know where one may be put in between.
type frames struct {
	head   [10]byte // of the frame that begins, as far as it has come
	n      int
	left   uint64 // bytes of the frame's mask and payload that are to come
	closed bool   // a close frame has come
}

// pass takes in what comes next.
func (f *frames) pass(b []byte) {
	for len(b) > 0 {
		if f.left > 0 {
			k := min(f.left, uint64(len(b)))
			f.left -= k
			b = b[k:]
			continue
		}
		f.head[f.n] = b[0]
		f.n++
		b = b[1:]
		if f.n < 2 {
			continue
		}
		size, length := 2, uint64(f.head[1]&0x7f)
		switch length {
		case 126:
			size = 4
		case 127:
			size = 10
		}
		if f.n < size {
			continue
		}
		switch size {
		case 4:
			length = uint64(binary.BigEndian.Uint16(f.head[2:]))
		case 10:
			length = binary.BigEndian.Uint64(f.head[2:])
		}
		if f.head[1]&0x80 != 0 {
			length += 4
		}
		f.closed = f.closed || f.head[0]&0x0f == 8
		f.n, f.left = 0, length
	}
}

// between says whether the last frame is whole.
func (f *frames) between() bool { return f.n == 0 && f.left == 0 }

// serviceRestart is the close frame with the code 1012.
var serviceRestart = append([]byte{0x88, 2 + byte(len("service restart")), 1012 >> 8, 1012 & 0xff}, "service restart"...)

// socketReader reads what an app sends over a WebSocket. Where the relay parts with
// the app, it ends with a close frame in place of errParted, if it can: between two
// frames, and when the app has not said goodbye itself.
type socketReader struct {
	in     io.Reader
	frames frames
	bye    bool
}

func (r *socketReader) Read(b []byte) (int, error) {
	if r.bye {
		return 0, errParted
	}
	n, err := r.in.Read(b)
	r.frames.pass(b[:n])
	if errors.Is(err, errParted) && r.frames.between() && !r.frames.closed {
		r.bye = true
		return copy(b, serviceRestart), nil
	}
	return n, err
}

// eventStream is the body of an answer that may end at any time (server-sent
// events): when its sandbox goes it ends as if it were over, and the client asks
// for the rest. Any other body breaks off.
func eventStream(contentType string, length int64) bool {
	kind, _, _ := strings.Cut(contentType, ";")
	return length < 0 && strings.EqualFold(strings.TrimSpace(kind), "text/event-stream")
}

// answerBody is the body of an answer. Its end ends the request's use of the
// stream.
type answerBody struct {
	io.ReadCloser
	x     *exchange
	event bool
}

// Read reads from the app.
func (b *answerBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) && b.event && b.x.conn.lost() {
		err = io.EOF
	}
	return n, err
}

// Close closes the answer.
func (b *answerBody) Close() error {
	err := b.ReadCloser.Close()
	b.x.release()
	return err
}
