package guest

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/yamux"
)

// Serve answers one connection: the handshake, then each stream by handle, in
// its own goroutine. It returns when the connection has ended and every handle
// has returned, or when the handshake fails; conn is closed then. admitted is
// called once after the handshake with what ends the connection.
func Serve(conn net.Conn, secret []byte, admitted func(io.Closer), handle func(*Call)) error {
	defer conn.Close()
	if err := greetClient(conn, secret); err != nil {
		return err
	}
	session, err := yamux.Server(&joiner{Conn: conn}, muxConfig())
	if err != nil {
		return err
	}
	defer session.Close()
	if admitted != nil {
		admitted(session)
	}
	var calls sync.WaitGroup
	defer calls.Wait()
	for {
		stream, err := session.AcceptStream()
		if err != nil {
			session.Close()
			return err
		}
		calls.Go(func() { serveCall(stream, handle) })
	}
}

func serveCall(stream *yamux.Stream, handle func(*Call)) {
	defer stream.Close()
	k, payload, err := readFrame(stream, nil)
	if err != nil || k != kindRequest || len(payload) == 0 {
		return
	}
	c := &Call{Op: Op(payload[0]), d: decoder{b: payload[1:]}, stream: stream}
	handle(c)
	if !c.answered {
		c.Fail(Fail(CodeUnsupported, "operation not known"))
	}
}

// Call is one request on its way through a server. It is for one goroutine.
type Call struct {
	Op       Op
	d        decoder
	stream   *yamux.Stream
	answered bool
	gone     chan struct{}
	out      []byte
}

// Gone returns a channel that is closed when the client has given up. Ask for
// it only when nothing more will be received: it reads from the stream.
func (c *Call) Gone() <-chan struct{} {
	if c.gone == nil {
		c.gone = make(chan struct{})
		// Ends with the stream, which serveCall closes after the handler.
		go func(gone chan struct{}, stream *yamux.Stream) {
			defer close(gone)
			var p [1]byte
			_, _ = stream.Read(p[:])
		}(c.gone, c.stream)
	}
	return c.gone
}

func (c *Call) send(e *encoder) error {
	_, err := c.stream.Write(e.frame())
	return err
}

// Fail answers with an error. What is not an *Error becomes CodeInternal.
func (c *Call) Fail(err error) {
	if c.answered {
		return
	}
	c.answered = true
	var typed *Error
	if !errors.As(err, &typed) {
		typed = &Error{Code: CodeInternal, Text: err.Error()}
	}
	e := newEncoder(kindError)
	e.string(string(typed.Code))
	e.string(typed.Text[:min(len(typed.Text), 4096)])
	_ = c.send(e)
}

func (c *Call) ok(fill func(*encoder)) {
	c.answered = true
	e := newEncoder(kindOK)
	if fill != nil {
		fill(e)
	}
	_ = c.send(e)
}

// Done answers a request that has no result.
func (c *Call) Done() { c.ok(nil) }

// malformed reports whether the fields could not be read, and answers so.
func (c *Call) malformed() bool {
	if c.d.bad {
		c.Fail(Fail(CodeInvalid, "malformed request"))
	}
	return c.d.bad
}

// Data returns a buffer of n bytes to fill and send with SendData. It is valid
// until the next use of the call.
func (c *Call) Data(n int) []byte {
	if cap(c.out) < n+prefix {
		c.out = make([]byte, n+prefix)
	}
	return c.out[prefix : prefix+n]
}

// SendData sends the first n bytes of the buffer that Data returned.
func (c *Call) SendData(n int) error {
	c.out[0] = byte(kindData)
	binary.BigEndian.PutUint32(c.out[1:], uint32(n))
	_, err := c.stream.Write(c.out[:prefix+n])
	return err
}

// Recv returns the next bytes of a file that the client writes, and io.EOF
// after the last. Any other error means that the client broke off. The bytes
// are valid until the next Recv.
func (c *Call) Recv() ([]byte, error) {
	k, p, err := readFrame(c.stream, c.out)
	c.out = p[:0]
	switch {
	case errors.Is(err, io.EOF):
		return nil, io.ErrUnexpectedEOF
	case err != nil:
		return nil, err
	case k == kindEnd:
		return nil, io.EOF
	case k != kindData:
		return nil, errMalformed
	}
	return p, nil
}

// Strings reads the request's fields of an operation that takes one or two
// strings: an id or a path, and a signal or a second path.
func (c *Call) Strings() (a, b string, ok bool) {
	a, b = c.d.string(), c.d.string()
	return a, b, !c.malformed()
}

// Start reads the fields of OpStart.
func (c *Call) Start() (r StartRequest, ok bool) {
	r.decode(&c.d)
	return r, !c.malformed()
}

// Setup reads the fields of OpConfigure.
func (c *Call) Setup() (s Setup, ok bool) {
	s.decode(&c.d)
	return s, !c.malformed()
}

// Stdin reads the fields of OpStdin.
func (c *Call) Stdin() (id string, offset int64, data []byte, end, ok bool) {
	id, offset, data, end = c.d.string(), c.d.int(), c.d.bytes(), c.d.bool()
	if !c.malformed() && (offset < 0 || len(data) > MaxStdin) {
		c.Fail(Fail(CodeInvalid, "bad offset or too many bytes for standard input"))
		return id, offset, nil, end, false
	}
	return id, offset, data, end, !c.d.bad
}

// Resize reads the fields of OpResize.
func (c *Call) Resize() (id string, size Size, ok bool) {
	id, size = c.d.string(), Size{uint16(c.d.uint()), uint16(c.d.uint())}
	return id, size, !c.malformed()
}

// Wait reads the fields of OpWait and OpShutdown: an id and a duration.
func (c *Call) Wait() (id string, timeout time.Duration, ok bool) {
	id, timeout = c.d.string(), c.d.duration()
	return id, timeout, !c.malformed()
}

// Read reads the fields of OpRead.
func (c *Call) Read() (path string, offset, length int64, ok bool) {
	path, offset, length = c.d.string(), c.d.int(), c.d.int()
	if !c.malformed() && (offset < 0 || length < 0) {
		c.Fail(Fail(CodeInvalid, "negative offset or length"))
		return path, 0, 0, false
	}
	return path, offset, length, !c.d.bad
}

// PathMode reads the fields of OpWrite, OpMakeDir, OpRemove and OpWatch: a
// path, permission bits and a flag (make parents, recursive).
func (c *Call) PathMode() (path string, mode uint32, flag, ok bool) {
	path, mode, flag = c.d.string(), uint32(c.d.uint()), c.d.bool()
	return path, mode, flag, !c.malformed()
}

// Info answers OpPing.
func (c *Call) Info(i Info) { c.ok(i.encode) }

// Exec answers OpStart and OpWait.
func (c *Call) Exec(x *Exec) { c.ok(x.encode) }

// Offset answers OpStdin with how far standard input has been taken.
func (c *Call) Offset(n int64) { c.ok(func(e *encoder) { e.int(n) }) }

// File answers an operation whose result is one file.
func (c *Call) File(f *FileInfo) { c.ok(f.encode) }

// SendFile sends one element of OpListFiles, or what OpRead is about to send.
func (c *Call) SendFile(f *FileInfo) error { return c.item(f.encode) }

// SendExec sends one element of OpListExecs.
func (c *Call) SendExec(x *Exec) error { return c.item(x.encode) }

// SendEvent sends one event of OpEvents.
func (c *Call) SendEvent(v *Event) error { return c.item(v.encode) }

// SendFileEvent sends one event of OpWatch.
func (c *Call) SendFileEvent(v FileEvent) error {
	return c.item(func(e *encoder) { e.string(v.Path); e.byte(byte(v.Change)) })
}

// item sends an element, or leaves it out where it is longer than a frame may
// be: a command line of more than 128 KiB does not break the whole list.
func (c *Call) item(fill func(*encoder)) error {
	e := newEncoder(kindItem)
	fill(e)
	if len(e.b)-prefix > MaxFrame {
		return nil
	}
	return c.send(e)
}
