// Package link carries streams from the relay (or the api) to node-agents: one
// mutual-TLS connection to each agent, many streams on it (yamux). A stream
// starts with a header that says what it is for and an answer from the agent;
// after that, bytes.
//
// Both ends of a stream can be closed for writing alone (CloseWrite), so half
// closes pass through a tunnel.
package link

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"time"

	"github.com/hashicorp/yamux"
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
)

// Header opens a stream.
type Header struct {
	Kind    Kind   `json:"kind"`
	Tenant  string `json:"tenant,omitempty"`
	Sandbox string `json:"sandbox,omitempty"`
	// Epoch is the placement that the caller knows. An agent refuses any but
	// the one it runs.
	Epoch uint64 `json:"epoch,omitempty"`
	Port  uint16 `json:"port,omitempty"`
	// Client is the address of whoever the stream is for, for the agent's log.
	Client string `json:"client,omitempty"`
	// Trace is the W3C traceparent.
	Trace string `json:"trace,omitempty"`
}

const (
	maxHeader = 4 << 10
	// openTimeout bounds the exchange of header and answer.
	openTimeout = 10 * time.Second
)

func muxConfig(log *slog.Logger) *yamux.Config {
	c := yamux.DefaultConfig()
	c.AcceptBacklog = 4096
	c.EnableKeepAlive = true
	c.KeepAliveInterval = 5 * time.Second
	c.ConnectionWriteTimeout = 10 * time.Second
	// Bounds what one stream may buffer; large enough for a fast link.
	c.MaxStreamWindowSize = 1 << 20
	c.StreamCloseTimeout = 5 * time.Minute
	c.LogOutput = nil
	c.Logger = slog.NewLogLogger(log.Handler(), slog.LevelDebug)
	return c
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
	if h.Kind != KindPort && h.Kind != KindData {
		return h, fmt.Errorf("link: unknown kind %q", h.Kind)
	}
	return h, nil
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

func readAnswer(r io.Reader) error {
	body, err := readFrame(r)
	if err != nil {
		return fault.New(fault.Unavailable, "the node went away: %w", err)
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

// Conn is one stream. Closing it closes both directions.
type Conn struct {
	*yamux.Stream
	reset func()
}

// CloseWrite ends the writing direction; the other side reads to its end.
// (Close of a yamux stream does just that, and frees the stream once the other
// side has closed too.)
func (c *Conn) CloseWrite() error { return c.Stream.Close() }

// Close ends both directions.
func (c *Conn) Close() error {
	err := c.Stream.Close()
	// What still comes in has no reader any more.
	_ = c.Stream.SetReadDeadline(time.Unix(1, 0))
	if c.reset != nil {
		c.reset()
	}
	return err
}

var _ net.Conn = (*Conn)(nil)
