package relay

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"github.com/sirocco-run/sirocco/pkg/link"
)

// peekSize is the buffer of an idle direction; bulkSize that of one which was
// found full, taken from a pool for as long as reads bring bulkLeast or more.
// Thousands of idle WebSockets cost little this way, also after messages of a few
// KiB, and one fast stream loses nothing: TLS brings 16 KiB at a time, the link a
// piece.
const (
	peekSize  = 1 << 10
	bulkSize  = link.Piece
	bulkLeast = 8 << 10
)

var bulk = sync.Pool{New: func() any { b := make([]byte, bulkSize); return &b }}

// pump copies until src ends (nil) or an error.
func pump(dst io.Writer, src io.Reader) error {
	peek := make([]byte, peekSize)
	for {
		n, err := src.Read(peek)
		if n > 0 {
			if _, werr := dst.Write(peek[:n]); werr != nil {
				return werr
			}
		}
		if err == nil && n == peekSize {
			err = pumpBulk(dst, src)
		}
		if err == io.EOF { //nolint:errorlint // Read returns it bare
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// pumpBulk copies until a read brings little.
func pumpBulk(dst io.Writer, src io.Reader) error {
	b := bulk.Get().(*[]byte) //nolint:errcheck // the pool holds nothing else
	defer bulk.Put(b)
	for {
		n, err := src.Read(*b)
		if n > 0 {
			if _, werr := dst.Write((*b)[:n]); werr != nil {
				return werr
			}
		}
		if err != nil || n < bulkLeast {
			return err
		}
	}
}

// halfConn is a connection whose two directions end by themselves.
type halfConn interface {
	net.Conn
	CloseWrite() error
}

// splice joins two connections until both directions have ended, or one broke.
// A half close passes through. afterAnswer bounds how long the client may go
// on after the app has ended its direction; 0 means for ever. When the relay parts
// with the app, the client sees the end of what the app sent.
func splice(client halfConn, app *routeConn, appReader io.Reader, afterAnswer time.Duration) {
	abort := func() {
		if tc, ok := underTCP(client); ok {
			_ = tc.SetLinger(0) // the client sees a reset, as the relay did
		}
		_ = client.Close()
		_ = app.Close()
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if (pump(app, client) != nil || app.CloseWrite() != nil) && !app.parted.Load() {
			abort()
		}
	})
	err := pump(gatherTo(client), appReader)
	if errors.Is(err, errParted) {
		_ = app.Close()
		afterAnswer, err = partedAnswer, nil
	}
	if err != nil || client.CloseWrite() != nil {
		abort()
	} else if afterAnswer > 0 {
		_ = client.SetReadDeadline(time.Now().Add(afterAnswer))
	}
	wg.Wait()
	_ = client.Close()
	_ = app.Close()
}

// underTCP returns the TCP connection below a client's.
func underTCP(c net.Conn) (*net.TCPConn, bool) {
	for {
		switch x := c.(type) {
		case *net.TCPConn:
			return x, true
		case interface{ NetConn() net.Conn }:
			c = x.NetConn()
		default:
			return nil, false
		}
	}
}
