package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/guard"
	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/link"
	"github.com/sirocco-run/sirocco/pkg/topology"
	"github.com/sirocco-run/sirocco/pkg/transfer"
	nodev1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/node/v1"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

const (
	// keeperLook is how often it is looked whether a region is lost, keeperSweep how
	// often for checkpoints that nobody needs any more.
	keeperLook  = time.Second
	keeperSweep = 20 * time.Second
	// regionSilence is for how long nothing is heard of a region before its sandboxes
	// are taken over.
	regionSilence = topology.FenceTTL
	// restores is how many are restored at a time, restoreLimit bounds each, and
	// restoreTries is how often one is tried.
	restores     = 8
	restoreLimit = time.Minute
	restoreTries = 5
)

// keeper keeps checkpoints of sandboxes of other regions, the newest of each, and brings
// them up here when their region is lost.
type keeper struct {
	agent *Agent
	// dir holds a folder for each checkpoint: the files, and beside them the parcel.
	dir   string
	store *guard.Store
	// silent is since when a region's bus has not been reached. Only run has it.
	silent map[string]time.Time

	mu   sync.Mutex
	kept map[string]*kept // by the sandbox's id
}

// kept is one checkpoint.
type kept struct {
	folder string
	parcel *nodev1.Parcel
	tries  int
}

const (
	parcelFile = "parcel"
	filesDir   = "files"
)

// openKeeper makes the fences, and finds the checkpoints that the agent before this one
// kept.
func (a *Agent) openKeeper(ctx context.Context) error {
	if err := a.openFences(); err != nil {
		return err
	}
	k := &keeper{agent: a, dir: filepath.Join(a.cfg.StateDir, "guards"), silent: map[string]time.Time{}, kept: map[string]*kept{}}
	var err error
	if k.store, err = guard.Open(ctx, a.env.JS); err != nil {
		return err
	}
	if err := os.MkdirAll(k.dir, 0o700); err != nil {
		return fmt.Errorf("open the folder of kept checkpoints: %w", err)
	}
	folders, err := os.ReadDir(k.dir)
	if err != nil {
		return fmt.Errorf("look for kept checkpoints: %w", err)
	}
	for _, f := range folders {
		raw, err := os.ReadFile(filepath.Join(k.dir, f.Name(), parcelFile))
		parcel := &nodev1.Parcel{}
		if err != nil || proto.Unmarshal(raw, parcel) != nil {
			k.remove(f.Name()) // it did not come whole
			continue
		}
		// Of two, the guard's entry knows one.
		tenant, id := parcel.GetSandbox().GetTenant(), parcel.GetSandbox().GetId()
		e, err := k.store.Get(ctx, tenant, id)
		if err == nil && (e == nil || e.Guard != a.name || e.Folder != f.Name()) {
			k.remove(f.Name())
			continue
		}
		k.kept[id] = &kept{folder: f.Name(), parcel: parcel}
	}
	a.keeper = k
	return nil
}

func (k *keeper) remove(folder string) {
	if err := os.RemoveAll(filepath.Join(k.dir, folder)); err != nil {
		k.agent.log.Warn("a checkpoint is not removed", "folder", folder, "err", err)
	}
}

// admit prepares the stream on which a checkpoint comes.
func (k *keeper) admit(ctx context.Context, h link.Header) (func(net.Conn), error) {
	if refusal := k.agent.full(ctx); refusal != nil {
		return nil, fault.New(fault.Unavailable, "%s", refusal.GetMessage())
	}
	return func(conn net.Conn) {
		defer func() { _ = conn.Close() }()
		in := transfer.NewTarget(conn, transfer.Options{})
		defer in.Close()
		ctx, cancel := context.WithTimeout(ctx, copyLimit)
		defer cancel()
		if err := k.take(ctx, in, h); err != nil {
			_ = in.Fail(moveFault("keep the checkpoint", err))
			k.agent.log.WarnContext(ctx, "a checkpoint is not kept", "sandbox", h.Sandbox, "err", err)
		}
	}, nil
}

// take takes one checkpoint in. On an error nothing of it stays.
func (k *keeper) take(ctx context.Context, in *transfer.Target, h link.Header) (err error) {
	parcel, err := in.AwaitParcel(ctx)
	if err != nil {
		return err
	}
	sb := parcel.GetSandbox()
	if sb.GetId() != h.Sandbox || sb.GetTenant() != h.Tenant || sb.GetPlacement().GetEpoch() != h.Epoch || parcel.GetGuardTerm() == "" {
		return fault.New(fault.InvalidArgument, "the parcel is that of another sandbox")
	}
	folder := rand.Text()
	files := filepath.Join(k.dir, folder, filesDir)
	if err := os.MkdirAll(files, 0o700); err != nil {
		return fmt.Errorf("make a folder for the checkpoint: %w", err)
	}
	defer func() {
		if err != nil {
			k.remove(folder)
		}
	}()
	if err := in.Accept(ctx); err != nil {
		return err
	}
	taken := time.Now() // it is younger than that
	if _, err := in.Files(ctx, files); err != nil {
		return err
	}
	raw, err := proto.Marshal(parcel)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(k.dir, folder, parcelFile), raw, 0o600); err != nil {
		return fmt.Errorf("write the parcel: %w", err)
	}
	if err := k.store.Keep(ctx, sb.GetTenant(), sb.GetId(), parcel.GetGuardTerm(), k.agent.name, folder, taken); err != nil {
		return err
	}
	k.mu.Lock()
	before := k.kept[sb.GetId()]
	k.kept[sb.GetId()] = &kept{folder: folder, parcel: parcel}
	k.mu.Unlock()
	if before != nil {
		k.remove(before.folder)
	}
	return in.Restored(ctx)
}

// drop forgets a checkpoint.
func (k *keeper) drop(id string, c *kept) {
	k.mu.Lock()
	if k.kept[id] == c {
		delete(k.kept, id)
	}
	k.mu.Unlock()
	k.remove(c.folder)
}

// run takes sandboxes over whose region is lost, until ctx ends. They live in mctx.
func (k *keeper) run(ctx, mctx context.Context) error {
	look, swept := time.NewTicker(keeperLook), time.Time{}
	defer look.Stop()
	for {
		select {
		case <-look.C:
		case <-ctx.Done():
			return nil
		}
		if !k.agent.env.NC.IsConnected() {
			continue
		}
		lost, sweep := k.lost(time.Now()), time.Since(swept) > keeperSweep
		if sweep {
			swept = time.Now()
		}
		k.mu.Lock()
		all := make(map[string]*kept, len(k.kept))
		for id, c := range k.kept {
			if sweep || lost[c.parcel.GetSandbox().GetPlacement().GetRegion()] {
				all[id] = c
			}
		}
		k.mu.Unlock()
		var group errgroup.Group
		group.SetLimit(restores)
		for id, c := range all {
			group.Go(func() error {
				if lost[c.parcel.GetSandbox().GetPlacement().GetRegion()] || k.compare(ctx, id, c) {
					k.takeOver(ctx, mctx, id, c)
				}
				return nil
			})
		}
		_ = group.Wait()
	}
}

// lost returns the regions of which nothing was heard for so long that they are lost.
func (k *keeper) lost(now time.Time) map[string]bool {
	lost := map[string]bool{}
	for region, f := range k.agent.fences {
		since, known := k.silent[region]
		switch {
		case f.peer.Alive():
			delete(k.silent, region)
		case !known:
			k.silent[region] = now
		case now.Sub(since) >= regionSilence:
			lost[region] = true
		}
	}
	return lost
}

// compare drops a checkpoint that nobody needs any more, and says whether its sandbox was
// claimed already, and is yet to be brought up.
func (k *keeper) compare(ctx context.Context, id string, c *kept) (claimed bool) {
	ctx, cancel := context.WithTimeout(ctx, readLimit)
	defer cancel()
	sb := c.parcel.GetSandbox()
	e, err := k.store.Get(ctx, sb.GetTenant(), id)
	if err != nil {
		return false
	}
	if e == nil || e.Term != c.parcel.GetGuardTerm() || e.Guard != k.agent.name || e.Folder != c.folder {
		k.drop(id, c)
		return false
	}
	return e.Claimed != 0
}

// takeOver brings a sandbox up here, if nobody else can run it any more.
func (k *keeper) takeOver(ctx, mctx context.Context, id string, c *kept) {
	a := k.agent
	sb := c.parcel.GetSandbox()
	if !time.Now().Before(sb.GetDesired().GetDeadline().AsTime()) {
		k.drop(id, c)
		return
	}
	a.placing.Lock()
	if a.find(id) != nil || a.ledger.reserve(id, needOf(sb.GetSpec())) != nil {
		a.placing.Unlock()
		return // it is tried again
	}
	a.placing.Unlock()
	rctx, cancel := context.WithTimeout(ctx, restoreLimit)
	defer cancel()
	m, err := k.restore(rctx, id, c)
	if err != nil {
		a.ledger.release(id)
		switch {
		case errors.Is(err, guard.ErrFenced):
		case errors.Is(err, guard.ErrOver):
			k.drop(id, c)
		default:
			a.log.WarnContext(ctx, "a sandbox of a lost region is not restored; it is tried again", "sandbox", id, "err", err)
		}
		return
	}
	a.launch(mctx, m, true)
	k.drop(id, c)
}

// restore claims the sandbox and makes a machine of its checkpoint. One that was claimed
// and can't be restored is lost: its machine says so.
func (k *keeper) restore(ctx context.Context, id string, c *kept) (*machine, error) {
	a := k.agent
	sb := c.parcel.GetSandbox()
	epoch, err := k.store.Claim(ctx, sb.GetTenant(), id, a.name, c.folder, lifecycle.NextEpoch(sb))
	if err != nil {
		return nil, err
	}
	// Claimed before, by an agent that was ended then: it may have come up since.
	if here, err := a.store.Get(ctx, sb.GetTenant(), id); err == nil && here.GetPlacement().GetEpoch() >= epoch {
		return nil, guard.ErrOver
	} else if err != nil && fault.CodeOf(err) != fault.NotFound {
		return nil, err
	}
	landed, err := takenOver(sb, &siroccov1.Move{
		Key: fmt.Sprintf("restore-%d", epoch), Region: a.env.Region, Node: a.name, NodeAddress: *a.address.Load(), Epoch: epoch,
		Reason: "region " + sb.GetPlacement().GetRegion() + " is lost", Deadline: timestamppb.New(time.Now().Add(restoreLimit)),
	}, time.Now())
	if err != nil {
		return nil, err
	}
	if err := a.store.ClaimName(ctx, sb.GetTenant(), sb.GetSpec().GetName(), id); err != nil {
		a.log.WarnContext(ctx, "a restored sandbox goes without its name here", "sandbox", id, "err", err)
	}
	m := newMachine(a, landed, &entry{Arriving: landing, Running: true}, epoch)
	parcel := proto.CloneOf(c.parcel)
	parcel.Sandbox = landed
	defer a.pools.begin()()
	b, err := a.cells.restore(ctx, parcel, func(context.Context) (string, error) { return filepath.Join(k.dir, c.folder, filesDir), nil })
	if err != nil {
		if c.tries++; c.tries < restoreTries {
			return nil, err
		}
		m.log.ErrorContext(ctx, "a sandbox of a lost region can't be restored", "err", err)
		return m, nil
	}
	m.cell, m.entry.Cell = b, b.entry()
	if err := m.note(); err != nil {
		return nil, errors.Join(err, a.cells.destroy(ctx, b))
	}
	m.log.InfoContext(ctx, "sandbox of a lost region restored", "from", sb.GetPlacement().GetRegion(), "cell", b.id)
	return m, nil
}

// takenOver returns the record of a sandbox that was taken over, as if it had been moved
// by its node.
func takenOver(sb *siroccov1.Sandbox, move *siroccov1.Move, at time.Time) (*siroccov1.Sandbox, error) {
	asked, err := lifecycle.Apply(sb, lifecycle.Migrate{Move: move}, at)
	if err != nil {
		return nil, err
	}
	return lifecycle.Apply(asked, lifecycle.Depart{Epoch: move.GetEpoch()}, at)
}
