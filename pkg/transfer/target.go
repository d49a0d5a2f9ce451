package transfer

import (
	"context"
	"errors"
	"net"

	nodev1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/node/v1"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

// Target is the side where a sandbox goes. Its methods are the steps in their order (see
// the package); one goroutine uses it. After an error only Fail makes sense. Errors: the
// end of ctx as its cause, a *GaveUp, or those of the package.
type Target struct {
	wire     wire
	maxFiles int
	maxBytes int64
	base     *openFile // what came ahead; nil for nothing
}

// NewTarget begins on a stream, which stays the caller's to close.
func NewTarget(conn net.Conn, o Options) *Target {
	o = o.orDefault()
	return &Target{wire: wire{conn: conn, stall: o.Stall}, maxFiles: o.MaxFiles, maxBytes: o.MaxBytes}
}

// Close frees what is kept of a file that was sent ahead. The stream stays the caller's.
func (t *Target) Close() {
	if t.base != nil {
		_ = t.base.Close()
	}
}

// AwaitParcel waits for what the source offers.
func (t *Target) AwaitParcel(ctx context.Context) (*nodev1.Parcel, error) {
	m, err := t.wire.hear(ctx)
	if err == nil && m.GetParcel() == nil {
		err = t.wire.reject("parcel")
	}
	return m.GetParcel(), step("wait for the parcel", err)
}

// Accept tells the source that it may send the files. Files must be called soon: a source
// that can't send for Options.Stall gives up.
func (t *Target) Accept(ctx context.Context) error {
	return step("accept the sandbox", t.say(ctx, &nodev1.MoveMessage{Step: &nodev1.MoveMessage_Accepted{Accepted: &nodev1.MoveAccepted{}}}))
}

// Restored tells the source that the copy is there, paused.
func (t *Target) Restored(ctx context.Context) error {
	return step("tell the source of the copy", t.say(ctx, &nodev1.MoveMessage{Step: &nodev1.MoveMessage_Restored{Restored: &nodev1.MoveRestored{}}}))
}

// AwaitProceed waits until the source says that the move is made, and returns the record
// as it was committed. After a *GaveUp the move is off; after any other error the record
// has to be asked.
func (t *Target) AwaitProceed(ctx context.Context) (*siroccov1.Sandbox, error) {
	m, err := t.wire.hear(ctx)
	if err == nil && m.GetProceed() == nil {
		err = t.wire.reject("proceed")
	}
	return m.GetProceed(), step("wait for the word to go on", err)
}

// Arrived tells the source that the copy runs, with the record as it is now.
func (t *Target) Arrived(ctx context.Context, record *siroccov1.Sandbox) error {
	return step("tell the source of the arrival", t.say(ctx, &nodev1.MoveMessage{Step: &nodev1.MoveMessage_Arrived{Arrived: record}}))
}

// Fail tells the source why the target gives up, within a fraction of a second. The error
// says that it could not be told; it will notice that the stream ends.
func (t *Target) Fail(why error) error {
	return step("give up at the source", t.wire.giveUp(why))
}

func (t *Target) say(ctx context.Context, m *nodev1.MoveMessage) error {
	if err := t.wire.say(ctx, m); err != nil {
		return t.wire.why(err)
	}
	return nil
}

func isGaveUp(err error) bool {
	var g *GaveUp
	return errors.As(err, &g)
}
