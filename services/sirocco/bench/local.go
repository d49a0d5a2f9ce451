package bench

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/invariants"
	"github.com/sirocco-run/sirocco/pkg/rundir"
	"github.com/sirocco-run/sirocco/pkg/subject"
	"github.com/sirocco-run/sirocco/services/sirocco/up"
)

// What is kept ready is at rest when it has not grown for baselineQuiet; it is
// waited for at most baselineTime.
const (
	baselineQuiet = time.Second
	baselineTime  = 15 * time.Second
)

// Local is the `sirocco up` of this machine, seen from beside it: what it costs,
// and whether what must hold does.
type Local struct {
	// PID is that of `sirocco up`: all services, and the parent of the sandboxes.
	PID    int
	Nodes  []invariants.Node
	Region *invariants.Region

	nc *nats.Conn
}

// OpenLocal finds the platform that runs with a folder of state. The error says
// that there is none here, or that this user may not look.
func OpenLocal(ctx context.Context, data string) (*Local, error) {
	pid, err := up.Process(data)
	if err != nil {
		return nil, err
	}
	access, err := up.BusAccess(data)
	if err != nil {
		return nil, err
	}
	nc, err := access.Connect(ctx, "bench", slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	l := &Local{PID: pid, nc: nc}
	if l.Nodes, err = nodesOf(ctx, nc); err == nil {
		l.Region, err = invariants.New(ctx, nc, l.Nodes)
	}
	if err != nil {
		nc.Close()
		return nil, err
	}
	return l, nil
}

// Close ends the connection to the bus.
func (l *Local) Close() { l.nc.Close() }

// nodesOf lists the nodes of the region; those that keep real sandboxes here are
// looked at on the machine too.
func nodesOf(ctx context.Context, nc *nats.Conn) ([]invariants.Node, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, err
	}
	kv, err := js.KeyValue(ctx, subject.BucketNodes)
	if err != nil {
		return nil, fmt.Errorf("list the nodes: %w", err)
	}
	keys, err := kv.Keys(ctx)
	if err != nil {
		return nil, fmt.Errorf("list the nodes: %w", err)
	}
	var nodes []invariants.Node
	for _, key := range keys {
		_, name, err := subject.ParseNodeKey(key)
		if err != nil {
			return nil, fmt.Errorf("list the nodes: %w", err)
		}
		n := invariants.Node{Name: name, RunDir: rundir.Of(name)}
		if _, err := os.Stat(filepath.Join(n.RunDir, "sandboxes")); errors.Is(err, fs.ErrNotExist) {
			n.RunDir = ""
		}
		nodes = append(nodes, n)
	}
	return nodes, nil
}

// real are the nodes whose sandboxes are on this machine.
func (l *Local) real() []invariants.Node {
	var real []invariants.Node
	for _, n := range l.Nodes {
		if n.RunDir != "" {
			real = append(real, n)
		}
	}
	return real
}

// cgroups are the folders that hold the sandboxes' cgroups, one for each
// hierarchy.
func (l *Local) cgroups() []string {
	var all []string
	for _, n := range l.real() {
		parent := invariants.Scope(n).CgroupParent
		for _, pattern := range []string{"/sys/fs/cgroup/" + parent, "/sys/fs/cgroup/*/" + parent} {
			found, _ := filepath.Glob(pattern)
			all = append(all, found...)
		}
	}
	return all
}

// machines are the ids of what is on this machine of sandboxes, warm ones too: a
// sandbox's machine has an id of its own.
func (l *Local) machines() map[string]bool {
	ids := map[string]bool{}
	for _, node := range l.real() {
		for _, id := range invariants.Machines(node) {
			ids[id] = true
		}
	}
	return ids
}

// baseline is what there is beyond the machines, once it does not change any more
// (what is kept ready is being filled up after an earlier load), or after a while.
func (l *Local) baseline(ctx context.Context) invariants.Baseline {
	deadline := time.Now().Add(baselineTime)
	for b := l.Region.Baseline(); ; {
		if !until(ctx, time.Now().Add(baselineQuiet)) {
			return b
		}
		next := l.Region.Baseline()
		if len(next.Since(b)) == 0 || time.Now().After(deadline) {
			return next
		}
		b = next
	}
}
