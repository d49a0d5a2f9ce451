package relay

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sirocco-run/sirocco/pkg/link"
	"github.com/sirocco-run/sirocco/pkg/pki"
)

// counted counts the writes of a connection.
type counted struct {
	net.Conn
	writes atomic.Int64
}

func (c *counted) Write(b []byte) (int, error) {
	c.writes.Add(1)
	return c.Conn.Write(b)
}

// A piece of the link goes to the client in one system call, though TLS makes
// several records of it.
func TestAPieceIsOneWrite(t *testing.T) {
	keys, err := pki.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	cert, err := keys.PublicTLS([]string{"a.test"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := net.Pipe()
	below := &counted{Conn: ours}
	hello := newHelloConn(&clientConn{Conn: below, gate: newGate(Config{StallTimeout: time.Hour}, &meters{})})
	hello.terminate()
	server := tls.Server(hello, &tls.Config{Certificates: []tls.Certificate{cert}, DynamicRecordSizingDisabled: true}) //nolint:gosec // the default version is fine
	got := make(chan []byte, 1)
	go func() {
		client := tls.Client(theirs, &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // only the writes matter
		body, _ := io.ReadAll(client)
		got <- body
	}()
	if err := server.Handshake(); err != nil {
		t.Fatal(err)
	}
	piece := make([]byte, link.Piece)
	_, _ = rand.Read(piece)
	to := gatherTo(server)
	for _, size := range []int{1, 1 << 10, len(piece)} {
		before := below.writes.Load()
		if n, err := to.Write(piece[:size]); n != size || err != nil {
			t.Fatal(n, err)
		}
		if n := below.writes.Load() - before; n != 1 {
			t.Errorf("%d bytes went in %d writes", size, n)
		}
	}
	_ = server.Close()
	if body := <-got; !bytes.Equal(body, append(append(bytes.Clone(piece[:1]), piece[:1<<10]...), piece...)) {
		t.Errorf("%d bytes arrived otherwise than they were sent", len(body))
	}
}

// Answers of any size and shape arrive whole, and what an app has sent is not
// held back until it sends more.
func TestAnswersArriveWholeAndAtOnce(t *testing.T) {
	g := newRig(t, Config{})
	body := make([]byte, 300<<10)
	_, _ = rand.Read(body)
	proceed := make(chan struct{})
	sb := g.app(g.agent(), http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		size, _ := strconv.Atoi(req.URL.Query().Get("size"))
		if req.URL.Query().Has("length") {
			w.Header().Set("Content-Length", strconv.Itoa(2*size))
		}
		_, _ = w.Write(body[:size])
		_ = http.NewResponseController(w).Flush()
		<-proceed
		_, _ = w.Write(body[:size])
	}))
	for _, h2 := range []bool{false, true} {
		client := g.client(h2)
		for _, size := range []int{1, 16 << 10, 16<<10 + 1, 70_000, len(body)} {
			query := fmt.Sprintf("?size=%d", size)
			if size%2 == 0 {
				query += "&length"
			}
			resp, err := client.Get(g.url(sb, "/"+query))
			if err != nil {
				t.Fatal(err)
			}
			first := make([]byte, size)
			_, err = io.ReadFull(resp.Body, first)
			proceed <- struct{}{} // only now does the app go on
			rest, rerr := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if err != nil || rerr != nil || !bytes.Equal(first, body[:size]) || !bytes.Equal(rest, body[:size]) {
				t.Errorf("h2 %v, %s: %d and %d bytes, %v, %v", h2, query, len(first), len(rest), err, rerr)
			}
		}
	}
}
