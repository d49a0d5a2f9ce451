package sim

import (
	"errors"
	"net"
	"time"
)

// Pipe returns the two ends of an in-memory connection with deadlines and half
// close. It has no buffer: a write waits for its reader.
func Pipe() (client, server net.Conn) {
	toClient, fromServer := net.Pipe()
	fromClient, toServer := net.Pipe()
	return &end{in: toClient, out: fromClient}, &end{in: toServer, out: fromServer}
}

// end is one end: a one-way pipe for each direction.
type end struct{ in, out net.Conn }

func (e *end) Read(b []byte) (int, error)  { return e.in.Read(b) }
func (e *end) Write(b []byte) (int, error) { return e.out.Write(b) }

// CloseWrite lets the other end read io.EOF.
func (e *end) CloseWrite() error { return e.out.Close() }

func (e *end) Close() error { return errors.Join(e.in.Close(), e.out.Close()) }

func (e *end) LocalAddr() net.Addr  { return e.in.LocalAddr() }
func (e *end) RemoteAddr() net.Addr { return e.in.RemoteAddr() }

func (e *end) SetDeadline(t time.Time) error {
	return errors.Join(e.SetReadDeadline(t), e.SetWriteDeadline(t))
}
func (e *end) SetReadDeadline(t time.Time) error  { return e.in.SetReadDeadline(t) }
func (e *end) SetWriteDeadline(t time.Time) error { return e.out.SetWriteDeadline(t) }
