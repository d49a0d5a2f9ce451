package agent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"
	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/link"
	"github.com/sirocco-run/sirocco/pkg/record"
	"github.com/sirocco-run/sirocco/pkg/runtime"
	nodev1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/node/v1"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/proto"
)

// What is common to sandboxes that leave this node (depart.go) and that come to it
// (arrive.go).

// askPause is between two questions whether a move was made.
const askPause = 500 * time.Millisecond

// moves are the places that are kept for sandboxes on their way here, and the
// connections to the nodes to which others go.
type moves struct {
	dialer *link.Dialer
	// dir holds the checkpoints of both, each in a folder of its own.
	dir string

	mu   sync.Mutex
	kept map[string]*place
}

// place is kept for one sandbox until its move's deadline.
type place struct {
	sandbox *siroccov1.Sandbox
	expiry  *time.Timer
}

// openMoves removes what the agent before this one has left of checkpoints.
func (a *Agent) openMoves() error {
	dir := filepath.Join(a.cfg.StateDir, "moves")
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove old checkpoints: %w", err)
	}
	tls, err := a.env.Keys.ClientTLS()
	if err != nil {
		return err
	}
	a.moves = &moves{dialer: link.NewBulkDialer(tls, a.log), dir: dir, kept: map[string]*place{}}
	return nil
}

// folder makes an empty folder for a checkpoint. remove may be called again.
func (v *moves) folder(id string) (dir string, remove func(), err error) {
	if err := os.MkdirAll(v.dir, 0o700); err != nil {
		return "", nil, fmt.Errorf("make a folder for a checkpoint: %w", err)
	}
	if dir, err = os.MkdirTemp(v.dir, id+"-"); err != nil {
		return "", nil, fmt.Errorf("make a folder for a checkpoint: %w", err)
	}
	return dir, sync.OnceFunc(func() { _ = os.RemoveAll(dir) }), nil
}

// receive says whether a sandbox may move here. A yes keeps a place for it.
func (a *Agent) receive(ctx context.Context, r micro.Request) (proto.Message, error) {
	req := &nodev1.ReceiveRequest{}
	if err := bus.Decode(nats.Header(r.Headers()), r.Data(), req); err != nil {
		return nil, err
	}
	sb := req.GetSandbox()
	move := sb.GetMove()
	if move.GetNode() != a.name {
		return nil, fault.New(fault.InvalidArgument, "the sandbox goes to %q; this is %q", move.GetNode(), a.name)
	}
	if refusal := a.full(ctx); refusal != nil {
		return &nodev1.ReceiveResponse{Refusal: refusal}, nil
	}
	left := time.Until(move.GetDeadline().AsTime())
	if left <= 0 {
		return &nodev1.ReceiveResponse{Refusal: a.refuse(ctx, "deadline", "the deadline of the move has passed")}, nil
	}
	a.placing.Lock()
	defer a.placing.Unlock()
	if m := a.find(sb.GetId()); m != nil {
		m.poke()
		return &nodev1.ReceiveResponse{Refusal: a.refuse(ctx, "busy", "epoch %d of the sandbox is still here", m.epoch)}, nil
	}
	if refusal := a.ledger.reserve(sb.GetId(), needOf(sb.GetSpec())); refusal != nil {
		a.metrics.refusal(ctx, refusal.GetReason())
		return &nodev1.ReceiveResponse{Refusal: refusal}, nil
	}
	a.moves.keep(sb, left, func() { a.ledger.release(sb.GetId()) })
	return &nodev1.ReceiveResponse{}, nil
}

// keep keeps a place for so long; expired is called if nobody has come by then.
func (v *moves) keep(sb *siroccov1.Sandbox, left time.Duration, expired func()) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if before := v.kept[sb.GetId()]; before != nil {
		before.expiry.Stop()
	}
	p := &place{sandbox: sb}
	v.kept[sb.GetId()] = p
	p.expiry = time.AfterFunc(left, func() {
		v.mu.Lock()
		mine := v.kept[sb.GetId()] == p
		if mine {
			delete(v.kept, sb.GetId())
		}
		v.mu.Unlock()
		if mine {
			expired()
		}
	})
}

// take returns the record of the sandbox for which a place is kept, which the caller
// now has; nil if there is none.
func (v *moves) take(tenant, id string, epoch uint64) *siroccov1.Sandbox {
	v.mu.Lock()
	defer v.mu.Unlock()
	p := v.kept[id]
	if p == nil || p.sandbox.GetTenant() != tenant || p.sandbox.GetMove().GetEpoch() != epoch {
		return nil
	}
	p.expiry.Stop()
	delete(v.kept, id)
	return p.sandbox
}

// recordsOf returns the records of a region, which may be another one.
func (a *Agent) recordsOf(ctx context.Context, region string) (*record.Store, error) {
	if region == a.env.Region {
		return a.store, nil
	}
	return a.abroad.Of(ctx, region)
}

// moveFault makes of what went wrong with a move a fault that its record can tell.
func moveFault(doing string, err error) *fault.Fault {
	var f *fault.Fault
	code := fault.Unavailable
	switch {
	case errors.Is(err, runtime.ErrIncompatible):
		code = fault.FailedPrecondition
	case errors.Is(err, runtime.ErrDiskFull):
		code = fault.NoCapacity
	case errors.Is(err, context.DeadlineExceeded):
		code = fault.Deadline
	case errors.As(err, &f) && f.Code != fault.Internal:
		code = f.Code
	}
	return &fault.Fault{Code: code, Message: doing + ": " + err.Error(), Cause: err}
}

// processorOf returns a short hash of what the processor offers to programs: of the
// flags in /proc/cpuinfo.
func processorOf(cpuinfo string) string {
	for line := range strings.Lines(cpuinfo) {
		name, flags, _ := strings.Cut(line, ":")
		if name = strings.TrimSpace(name); name != "flags" && name != "Features" {
			continue
		}
		set := strings.Fields(flags)
		slices.Sort(set)
		sum := sha256.Sum256([]byte(strings.Join(set, " ")))
		return hex.EncodeToString(sum[:8])
	}
	return ""
}

// processor is processorOf this machine; simulated sandboxes need none.
func (a *Agent) readProcessor() error {
	if a.cfg.Runtime == "sim" {
		a.processor = "sim"
		return nil
	}
	raw, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return fmt.Errorf("read what the processor offers: %w", err)
	}
	a.processor = processorOf(string(raw))
	return nil
}
