package transfer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	nodev1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/node/v1"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

// DefaultStall is how long the other side may move no byte where it should.
const DefaultStall = 10 * time.Second

// Options of either side. The zero value is good.
type Options struct {
	// Stall is after how long without progress the other side is given up; 0 is
	// DefaultStall.
	Stall time.Duration
	// MaxFiles and MaxBytes are what a target takes at most: bytes are those of all
	// files, holes included. 0 are DefaultMaxFiles and DefaultMaxBytes.
	MaxFiles int
	MaxBytes int64
	// Plain says that a source compresses nothing: for two nodes on one machine, where
	// the other one needs the processor more than the link is short of room.
	Plain bool
}

// What a target takes if it says nothing else.
const (
	DefaultMaxFiles = 16
	DefaultMaxBytes = 64 << 30
)

func (o Options) orDefault() Options {
	if o.Stall <= 0 {
		o.Stall = DefaultStall
	}
	if o.MaxFiles <= 0 {
		o.MaxFiles = DefaultMaxFiles
	}
	if o.MaxBytes <= 0 {
		o.MaxBytes = DefaultMaxBytes
	}
	return o
}

// Source is the side that a sandbox leaves. Its methods are the steps in their order (see
// the package); one goroutine uses it. After an error only Stop makes sense. Errors: the
// end of ctx as its cause, a *GaveUp, or those of the package.
type Source struct {
	wire  wire
	plain bool
	base  *base // of what was sent ahead; nil for nothing
}

// NewSource begins on a stream, which stays the caller's to close.
func NewSource(conn net.Conn, o Options) *Source {
	return &Source{wire: wire{conn: conn, stall: o.orDefault().Stall}, plain: o.Plain}
}

// Offer sends the parcel, MaxMessage bytes at most, and waits until the target accepts it.
func (s *Source) Offer(ctx context.Context, parcel *nodev1.Parcel) error {
	err := s.wire.say(ctx, &nodev1.MoveMessage{Step: &nodev1.MoveMessage_Parcel{Parcel: parcel}})
	if err != nil {
		err = s.wire.why(err)
	} else {
		var m *nodev1.MoveMessage
		if m, err = s.wire.hear(ctx); err == nil && m.GetAccepted() == nil {
			err = s.wire.reject("accepted")
		}
	}
	return step("offer the sandbox", err)
}

// AwaitRestored waits until the target has the copy, paused.
func (s *Source) AwaitRestored(ctx context.Context) error {
	m, err := s.wire.hear(ctx)
	if err == nil && m.GetRestored() == nil {
		err = s.wire.reject("restored")
	}
	return step("wait for the copy", err)
}

// Proceed tells the target that the move is made, with the record as it was committed.
func (s *Source) Proceed(ctx context.Context, record *siroccov1.Sandbox) error {
	err := s.wire.say(ctx, &nodev1.MoveMessage{Step: &nodev1.MoveMessage_Proceed{Proceed: record}})
	if err != nil {
		err = s.wire.why(err)
	}
	return step("tell the target that the move is made", err)
}

// AwaitArrived waits until the copy runs, and returns the record as the target wrote it.
func (s *Source) AwaitArrived(ctx context.Context) (*siroccov1.Sandbox, error) {
	m, err := s.wire.hear(ctx)
	if err == nil && m.GetArrived() == nil {
		err = s.wire.reject("arrived")
	}
	return m.GetArrived(), step("wait for the arrival", err)
}

// Stop tells the target why the move is not made, within a fraction of a second. The
// error says that it could not be told; it will notice that the stream ends, and has to
// ask the record.
func (s *Source) Stop(why error) error {
	return step("call the move off at the target", s.wire.giveUp(why))
}

// step says what failed.
func step(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("transfer: %s: %w", what, err)
}

// why finds out why the stream could not be written: the other side may have said so
// before it left. The stream is of no use afterwards.
func (w *wire) why(err error) error {
	ctx, cancel := context.WithTimeout(context.Background(), farewell)
	defer cancel()
	if !errors.Is(err, ErrGone) {
		return err
	}
	if _, herr := w.hear(ctx); isGaveUp(herr) {
		return herr
	}
	return err
}
