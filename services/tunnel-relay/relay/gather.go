package relay

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"

	"github.com/sirocco-run/sirocco/pkg/cork"
)

// A piece of the link is up to 64 KiB, which TLS cuts into records: what follows
// has those of one piece leave in one system call. Nothing waits for a next piece.

// corkOf returns what gathers below a client's TLS, nil for any other connection.
func corkOf(conn net.Conn) *cork.Writer {
	secure, ok := conn.(*tls.Conn)
	if !ok {
		return nil
	}
	hello, ok := secure.NetConn().(*helloConn)
	if !ok {
		return nil
	}
	return hello.out
}

// gatheredConn writes each piece to a client in one system call.
type gatheredConn struct {
	io.Writer
	out *cork.Writer
}

// gatherTo returns where pieces for a client are written.
func gatherTo(client net.Conn) io.Writer {
	if out := corkOf(client); out != nil {
		return gatheredConn{client, out}
	}
	return client
}

// Write sends one piece.
func (c gatheredConn) Write(b []byte) (int, error) {
	if len(b) <= cork.Record {
		return c.Writer.Write(b)
	}
	return c.out.Gather(func() (int, error) { return c.Writer.Write(b) })
}

type corkKey struct{}

// withCork is http.Server.ConnContext.
func withCork(ctx context.Context, conn net.Conn) context.Context {
	return context.WithValue(ctx, corkKey{}, corkOf(conn))
}

// gatheredAnswer sends each piece of an answer's body in one system call. It is
// for HTTP/1, where nobody but the handler writes.
type gatheredAnswer struct {
	http.ResponseWriter
	controller *http.ResponseController
	out        *cork.Writer
}

// gatherAnswer returns where the answer to a request is written.
func gatherAnswer(w http.ResponseWriter, req *http.Request) http.ResponseWriter {
	out, _ := req.Context().Value(corkKey{}).(*cork.Writer)
	if out == nil || req.ProtoMajor != 1 {
		return w
	}
	return gatheredAnswer{w, http.NewResponseController(w), out}
}

// Write sends one piece, and the header before the first.
func (a gatheredAnswer) Write(b []byte) (int, error) {
	if len(b) <= cork.Record {
		return a.ResponseWriter.Write(b)
	}
	return a.out.Gather(func() (int, error) {
		n, err := a.ResponseWriter.Write(b)
		if err == nil {
			err = a.controller.Flush()
		}
		return n, err
	})
}

// Unwrap is for http.ResponseController.
func (a gatheredAnswer) Unwrap() http.ResponseWriter { return a.ResponseWriter }
