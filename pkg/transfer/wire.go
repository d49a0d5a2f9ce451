package transfer

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"strings"
	"time"

	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/link"
	nodev1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/node/v1"
	"google.golang.org/protobuf/proto"
)

// Kinds of frames.
const (
	frameMessage  = 'M'
	framePart     = 'C'
	frameKnown    = 'K'
	frameSum      = 'S'
	frameEnd      = 'E'
	frameProgress = 'P'
)

const (
	// frameHead is kind and length.
	frameHead = 1 + 4
	// MaxMessage is the most that a parcel or a record takes, in bytes.
	MaxMessage = 1 << 20
	// maxFrame leaves room for what a message has around it.
	maxFrame = MaxMessage + 4<<10
	// farewell is how long giving up may take that tells the other side, and how long a
	// writer that failed listens for why.
	farewell = 250 * time.Millisecond
)

// maxBody is the longest body of each kind of frame.
func maxBody(kind byte) (int, bool) {
	switch kind {
	case frameMessage:
		return maxFrame, true
	case framePart:
		return partHead + partSize, true
	case frameKnown:
		return maxKnown, true
	case frameSum:
		return endSize, true
	case frameEnd, frameProgress:
		return 0, true
	}
	return 0, false
}

// wire is one side's end of the stream. One goroutine may read while another writes.
type wire struct {
	conn  net.Conn
	stall time.Duration
	// Set once a direction can't be used any more: it broke, was left inside a frame, or
	// the last word was said.
	readErr, writeErr error
	// moved is called after bytes came; nil for nothing to do.
	moved func(context.Context) error
}

// longAgo is a deadline that ends what waits.
func longAgo() time.Time { return time.Unix(1, 0) }

// interrupt ends what waits for a deadline when ctx ends. Nothing of it happens after
// stop has returned.
func interrupt(ctx context.Context, set func(time.Time) error) (stop func()) {
	done := make(chan struct{})
	cancel := context.AfterFunc(ctx, func() {
		defer close(done)
		_ = set(longAgo())
	})
	return func() {
		if !cancel() {
			<-done
		}
	}
}

// arm sets a deadline, unless ctx has ended: the order matters, since interrupt may have
// set its own before.
func arm(ctx context.Context, set func(time.Time) error, t time.Time) error {
	if err := set(t); err != nil {
		return connError(ctx, err)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// write writes whole frames. Each piece has its own time, so that a slow link is not
// taken for one that stalls.
func (w *wire) write(ctx context.Context, b []byte) error {
	if w.writeErr != nil {
		return w.writeErr
	}
	defer interrupt(ctx, w.conn.SetWriteDeadline)()
	for begun := false; len(b) > 0; {
		err := arm(ctx, w.conn.SetWriteDeadline, time.Now().Add(w.stall))
		if err == nil {
			var n int
			n, err = w.conn.Write(b[:min(len(b), link.Piece)])
			b, begun = b[n:], begun || n > 0
			if err != nil {
				err = connError(ctx, err)
			}
		}
		if err != nil {
			if begun || ctx.Err() == nil {
				w.writeErr = err
			}
			return err
		}
	}
	return nil
}

// fill reads len(b) bytes. wait is how long the first of them may take, 0 for as long as
// ctx goes; each of the others may take the stall.
func (w *wire) fill(ctx context.Context, b []byte, wait time.Duration) error {
	for n := 0; n < len(b); {
		var until time.Time
		switch {
		case n > 0:
			until = time.Now().Add(w.stall)
		case wait > 0:
			until = time.Now().Add(wait)
		}
		if err := arm(ctx, w.conn.SetReadDeadline, until); err != nil {
			return err
		}
		m, err := w.conn.Read(b[n:])
		n += m
		if m > 0 && w.moved != nil {
			if merr := w.moved(ctx); merr != nil {
				return merr
			}
		}
		if err != nil && n < len(b) {
			return connError(ctx, err)
		}
	}
	return nil
}

// next reads a frame. room gives what its body is to be read into, by kind and length.
func (w *wire) next(ctx context.Context, wait time.Duration, room func(kind byte, size int) []byte) (kind byte, body []byte, err error) {
	if w.readErr != nil {
		return 0, nil, w.readErr
	}
	defer interrupt(ctx, w.conn.SetReadDeadline)()
	var head [frameHead]byte
	if err := w.fill(ctx, head[:1], wait); err != nil {
		if ctx.Err() == nil {
			w.readErr = err
		}
		return 0, nil, err
	}
	defer func() {
		if err != nil {
			w.readErr = err // inside a frame
		}
	}()
	if err := w.fill(ctx, head[1:], w.stall); err != nil {
		return 0, nil, err
	}
	kind, size := head[0], binary.BigEndian.Uint32(head[1:])
	most, known := maxBody(kind)
	if !known {
		return 0, nil, blame(ErrFormat, "a frame of the unknown kind %#x", kind)
	}
	if int64(size) > int64(most) {
		return 0, nil, blame(ErrFormat, "a frame %c of %d bytes; at most %d are allowed", kind, size, most)
	}
	body = room(kind, int(size))
	return kind, body, w.fill(ctx, body, w.stall)
}

func fresh(_ byte, size int) []byte { return make([]byte, size) }

func putHead(b []byte, kind byte, size int) {
	b[0] = kind
	binary.BigEndian.PutUint32(b[1:], uint32(size)) //nolint:gosec // below maxFrame
}

// frame makes a frame of a body.
func frame(kind byte, body []byte) []byte {
	b := make([]byte, frameHead, frameHead+len(body))
	putHead(b, kind, len(body))
	return append(b, body...)
}

// pack makes a frame of a message.
func pack(m *nodev1.MoveMessage) ([]byte, error) {
	b, err := proto.Marshal(m)
	if err != nil {
		return nil, err
	}
	if len(b) > maxFrame {
		return nil, fault.New(fault.InvalidArgument, "a message of %d bytes; at most %d are allowed", len(b), maxFrame)
	}
	return frame(frameMessage, b), nil
}

// say sends a message.
func (w *wire) say(ctx context.Context, m *nodev1.MoveMessage) error {
	b, err := pack(m)
	if err != nil {
		return err
	}
	return w.write(ctx, b)
}

// unpack reads a message. What the other side says when it gives up is a *GaveUp.
func unpack(body []byte) (*nodev1.MoveMessage, error) {
	m := &nodev1.MoveMessage{}
	if err := proto.Unmarshal(body, m); err != nil {
		return nil, blame(ErrFormat, "a message that can't be read")
	}
	if f := m.GetFailed(); f != nil {
		return nil, &GaveUp{fault.FromDetail(f)}
	}
	return m, nil
}

// hear waits for a message. What the other side said before about its progress is passed
// over.
func (w *wire) hear(ctx context.Context) (*nodev1.MoveMessage, error) {
	for {
		kind, body, err := w.next(ctx, 0, fresh)
		if err != nil {
			return nil, err
		}
		switch kind {
		case frameMessage:
			m, err := unpack(body)
			if err != nil {
				w.readErr = err
			}
			return m, err
		case frameProgress:
		default:
			w.readErr = blame(ErrFormat, "a frame %c where a message should be", kind)
			return nil, w.readErr
		}
	}
}

// reject is the error for a message that comes out of order.
func (w *wire) reject(want string) error {
	w.readErr = blame(ErrFormat, "another message came than %q", want)
	return w.readErr
}

var errOver = errors.New("transfer: the last word was said")

// giveUp tells the other side why, if it can be told; it is the last word.
func (w *wire) giveUp(why error) error {
	ctx, cancel := context.WithTimeout(context.Background(), farewell)
	defer cancel()
	err := w.say(ctx, &nodev1.MoveMessage{Step: &nodev1.MoveMessage_Failed{Failed: last(why).Detail()}})
	if w.writeErr == nil {
		w.writeErr = errOver
	}
	return err
}

// last makes a fault of why; what the other side said is not told to it again as ours.
func last(why error) *fault.Fault {
	f := fault.From(why)
	if f == nil {
		f = fault.New(fault.Internal, "given up without a reason")
	}
	short := *f
	short.Message = strings.ToValidUTF8(f.Message[:min(len(f.Message), maxText)], "\uFFFD")
	return &short
}

// maxText bounds what is said about a failure, in bytes.
const maxText = 8 << 10
