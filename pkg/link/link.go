// Package link carries streams to node-agents, from the relay, the api and other
// agents: a few connections to each agent, many streams on each (yamux). A
// connection is mutual TLS, or on one machine a socket that only the services'
// own user can reach (ListenLocal). A stream starts with a header that says what it is for and
// an answer from the agent; after that, bytes.
//
// Each direction of a stream ends by itself (CloseWrite), so half closes pass
// through a tunnel. What was written before CloseWrite or Close reaches the
// peer, also when it reads it later.
package link

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/libp2p/go-yamux/v5"
	"github.com/sirocco-run/sirocco/pkg/fault"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/proto"
)

// Kind says what a stream carries.
type Kind string

const (
	// KindPort: bytes to and from a port of the sandbox.
	KindPort Kind = "port"
	// KindData: HTTP (h2c or HTTP/1.1) with the agent's data services.
	KindData Kind = "data"
	// KindMove: a sandbox that moves here, from the agent where it is (see package
	// transfer). Epoch is the one that it is to have here.
	KindMove Kind = "move"
	// KindGuard: a checkpoint that is to be kept here, in the order of a move up to
	// Restored, which says that it is kept.
	KindGuard Kind = "guard"
)

// Header opens a stream.
type Header struct {
	Kind    Kind   `json:"kind"`
	Tenant  string `json:"tenant,omitempty"`
	Sandbox string `json:"sandbox,omitempty"`
	// Epoch is the placement that the caller knows. An agent refuses any but
	// the one it runs (see NotHere), or, for KindMove, the one it waits for.
	Epoch uint64 `json:"epoch,omitempty"`
	Port  uint16 `json:"port,omitempty"`
	// Requests says that the stream carries HTTP requests: a move of the sandbox waits
	// for their answers.
	Requests bool `json:"requests,omitempty"`
	// HTTP2 says that they are HTTP/2, from the first byte on; HTTP/1.1 otherwise.
	HTTP2 bool `json:"http2,omitempty"`
	// Client is the address of whoever the stream is for, for the agent's log.
	Client string `json:"client,omitempty"`
	// Trace is the W3C traceparent.
	Trace string `json:"trace,omitempty"`
}

// Piece is the most that one message of a stream carries, in bytes. Copying in
// pieces of this size makes each one message.
const Piece = maxMessage - 12 // the mux's header

const (
	// maxMessage is what other streams may have to wait for.
	maxMessage = 64 << 10
	maxHeader  = 4 << 10
	// openTimeout bounds the exchange of header and answer.
	openTimeout = 10 * time.Second
	// dialTimeout bounds connecting to an agent, the TLS handshake included.
	// It is shorter than openTimeout, so that one more try fits.
	dialTimeout = 4 * time.Second
	// localTimeout bounds the part of it that may go to an agent's local socket.
	localTimeout = time.Second
)

// bulkProtocol is what client and server agree on (TLS ALPN) about a connection whose
// streams carry much, few at a time.
const bulkProtocol = "sirocco-bulk"

// bulkWindow is what a stream of such a connection may buffer at the receiver, from its
// first byte on. The mux would let a window grow only while its reader keeps up with a
// round trip, which it measures when nothing else goes on: on a busy machine it never
// grows then, and 256 KiB for each turn of two schedulers are a tenth of what fits.
const bulkWindow = 8 << 20

func muxConfig(bulk bool, log *slog.Logger) *yamux.Config {
	c := yamux.DefaultConfig()
	c.AcceptBacklog = 1024
	c.MaxIncomingStreams = 1 << 20
	c.EnableKeepAlive = true
	// A peer that vanished is noticed after the interval and the timeout.
	c.KeepAliveInterval = 5 * time.Second
	c.ConnectionWriteTimeout = 10 * time.Second
	// What one stream may buffer at the receiver. It starts with 256 KiB and
	// doubles while the reader keeps up with the round trip, so that an idle
	// or slow stream never costs the maximum.
	c.MaxStreamWindowSize = 4 << 20
	if bulk {
		c.InitialStreamWindowSize, c.MaxStreamWindowSize = bulkWindow, bulkWindow
	}
	c.MaxMessageSize = maxMessage
	// Enough for headers and small messages. What is larger is read past the
	// buffer, into the stream's own.
	c.ReadBufSize = 4 << 10
	c.LogOutput = logWriter{log}
	return c
}

// logWriter passes the lines of the mux on at debug level: what they report is
// also an error of some stream, which is handled there.
type logWriter struct{ log *slog.Logger }

func (w logWriter) Write(line []byte) (int, error) {
	if w.log.Enabled(context.Background(), slog.LevelDebug) {
		w.log.Debug("link", "mux", string(bytes.TrimSpace(line)))
	}
	return len(line), nil
}

func writeFrame(w io.Writer, body []byte) error {
	buf := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(body)), uint16(len(body))) //nolint:gosec // bodies are below maxHeader
	_, err := w.Write(append(buf, body...))
	return err
}

func readFrame(r io.Reader) ([]byte, error) {
	var n [2]byte
	if _, err := io.ReadFull(r, n[:]); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint16(n[:])
	if size > maxHeader {
		return nil, fmt.Errorf("link: a header of %d bytes; at most %d are allowed", size, maxHeader)
	}
	body := make([]byte, size)
	_, err := io.ReadFull(r, body)
	return body, err
}

// ReadHeader reads the header of a stream. It is exported for fuzzing.
func ReadHeader(r io.Reader) (Header, error) {
	var h Header
	body, err := readFrame(r)
	if err != nil {
		return h, err
	}
	if err := json.Unmarshal(body, &h); err != nil {
		return h, fmt.Errorf("link: bad header: %w", err)
	}
	switch h.Kind {
	case KindPort, KindData, KindMove, KindGuard:
		return h, nil
	}
	return h, fmt.Errorf("link: unknown kind %q", h.Kind)
}

func writeHeader(w io.Writer, h Header) error {
	body, err := json.Marshal(h)
	if err != nil {
		return err
	}
	if len(body) > maxHeader {
		return fmt.Errorf("link: a header of %d bytes; at most %d are allowed", len(body), maxHeader)
	}
	return writeFrame(w, body)
}

// writeAnswer sends an empty frame for yes, an ErrorDetail for no.
func writeAnswer(w io.Writer, err error) error {
	if err == nil {
		return writeFrame(w, nil)
	}
	detail := fault.From(err).Detail()
	if len(detail.Message) > maxHeader/2 {
		detail.Message = detail.Message[:maxHeader/2]
	}
	body, merr := proto.Marshal(detail)
	if merr != nil {
		return merr
	}
	return writeFrame(w, body)
}

// errNoAnswer says that the connection broke before the agent answered.
type errNoAnswer struct{ cause error }

func (e errNoAnswer) Error() string { return "the node went away: " + e.cause.Error() }
func (e errNoAnswer) Unwrap() error { return e.cause }

func readAnswer(r io.Reader) error {
	body, err := readFrame(r)
	if err != nil {
		return errNoAnswer{err}
	}
	if len(body) == 0 {
		return nil
	}
	detail := &siroccov1.ErrorDetail{}
	if err := proto.Unmarshal(body, detail); err != nil {
		return fmt.Errorf("link: bad answer: %w", err)
	}
	return fault.FromDetail(detail)
}
