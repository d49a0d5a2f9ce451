package agent

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/link"
	"github.com/sirocco-run/sirocco/pkg/runtime"
	"github.com/sirocco-run/sirocco/pkg/transfer"
	nodev1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/node/v1"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

// How a copy of a sandbox comes to be on another node.

const (
	// quietLimit is for how long a move waits, with the sandbox running, until no
	// request to it is under way.
	quietLimit = 10 * time.Second
	// aheadFrom is how much memory a sandbox has at least that is sent ahead of its move, in
	// bytes: below it, sending takes less than a second checkpoint. aheadTo bounds what
	// knowing all its pages costs this node, some 50 bytes for each of 4 KiB.
	aheadFrom, aheadTo = 48 << 20, 16 << 30
)

// sourceTo begins a transfer to another node. hangUp ends its stream; it is never nil.
func (m *machine) sourceTo(ctx context.Context, kind link.Kind, node, address string, epoch uint64) (out *transfer.Source, hangUp func(), err error) {
	conn, err := m.agent.moves.dialer.Open(ctx, address, link.Header{Kind: kind, Tenant: m.tenant, Sandbox: m.id, Epoch: epoch})
	if err != nil {
		return nil, func() {}, moveFault("reach "+node, err)
	}
	return transfer.NewSource(conn, transfer.Options{Plain: sameMachine(conn)}), func() { _ = conn.Close() }, nil
}

// parcel is what another node needs to restore a checkpoint of the sandbox.
func (m *machine) parcel() *nodev1.Parcel {
	return &nodev1.Parcel{Sandbox: m.current(), Secret: m.cell.secret, ImageDigest: m.cell.image.Digest, ImageSum: m.cell.image.Sum}
}

// sameMachine says whether a stream stays on this machine.
func sameMachine(conn net.Conn) bool {
	here, _, err := net.SplitHostPort(conn.LocalAddr().String())
	there, _, terr := net.SplitHostPort(conn.RemoteAddr().String())
	return err == nil && terr == nil && here == there
}

// handOver is send on a stream that is open.
func (m *machine) handOver(ctx context.Context, a *attempt, asked *siroccov1.Move) error {
	if err := m.unguard(ctx); err != nil {
		return moveFault("end its being guarded", err)
	}
	if err := a.out.Offer(ctx, m.parcel()); err != nil {
		return moveFault("prepare the move on "+asked.GetNode(), err)
	}
	if err := m.sendAhead(ctx, a); err != nil {
		return err
	}
	if blocking := m.quiet(ctx, quietLimit); blocking > 0 {
		return fault.New(fault.Unavailable, "%d requests to it were still under way after %v", blocking, quietLimit)
	}
	dir, remove, err := m.agent.moves.folder(m.id)
	if err != nil {
		return moveFault("checkpoint the sandbox", err)
	}
	a.discard = remove
	a.since = time.Now()
	if err := m.cell.sandbox.Pause(ctx); err != nil {
		return moveFault("pause the sandbox", err)
	}
	var saved time.Time // zero: it was not
	files, err := a.out.FilesWhile(ctx, dir, runtime.PagesFile, func() error {
		if err := m.cell.sandbox.Checkpoint(ctx, dir); err != nil {
			return moveFault("checkpoint the sandbox", err)
		}
		saved = time.Now()
		return nil
	})
	switch {
	case err != nil && saved.IsZero():
		return err
	case err != nil:
		return moveFault("send the checkpoint", err)
	}
	a.bytes += files.Wire
	transferred := time.Now()
	if err := a.out.AwaitRestored(ctx); err != nil {
		return moveFault("restore the sandbox on "+asked.GetNode(), err)
	}
	m.log.InfoContext(ctx, "sandbox copied", "bytes", files.Bytes, "known", files.Known, "sent", files.Wire,
		"ahead", a.ahead, "save", saved.Sub(a.since), "transfer", transferred.Sub(saved), "restore", time.Since(transferred))
	return nil
}

// sendAhead sends what a large sandbox has in memory while it runs: it stands still for as
// long as it takes to save it, and then goes on. Most of that will be the same when it
// stands still for the move, and need not be sent then.
func (m *machine) sendAhead(ctx context.Context, a *attempt) error {
	if st, err := m.cell.sandbox.Stats(ctx); err != nil || st.MemoryBytes < aheadFrom || st.MemoryBytes > aheadTo {
		return nil
	}
	dir, remove, err := m.agent.moves.folder(m.id)
	if err != nil {
		return moveFault("checkpoint the sandbox ahead of its move", err)
	}
	defer remove()
	began := time.Now()
	if err := m.checkpoint(ctx, dir); err != nil {
		return err
	}
	a.ahead = time.Since(began)
	pages := filepath.Join(dir, runtime.PagesFile)
	if _, err := os.Stat(pages); errors.Is(err, fs.ErrNotExist) {
		return nil // simulated
	}
	sent, err := a.out.Ahead(ctx, pages)
	if err != nil {
		return moveFault("send the memory of the sandbox ahead", err)
	}
	a.bytes += sent.Wire
	m.log.InfoContext(ctx, "memory sent ahead", "bytes", sent.Bytes, "sent", sent.Wire, "took", time.Since(began))
	return nil
}
