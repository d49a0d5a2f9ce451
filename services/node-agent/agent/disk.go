package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"golang.org/x/sys/unix"
)

const (
	// diskPeriod is how often the free disk is looked at. A sandbox writes about
	// 1 GiB in that time at most; half of the reserve is more, on all but small disks.
	diskPeriod = 500 * time.Millisecond
	// diskLeast is what a sandbox must hold to be evicted for it: ending smaller
	// ones would not help.
	diskLeast = 32 << 20
	// reliefTime is how long one eviction may take before the next.
	reliefTime = 5 * time.Second
)

// diskLevel is how the disk under the state folder stands.
type diskLevel int

const (
	diskFine diskLevel = iota
	// diskLow: no new sandboxes.
	diskLow
	// diskCritical: the sandbox that holds the most must go.
	diskCritical
)

// levelOf judges a disk. Sandboxes share it with the journal, the images and
// often the bus, which stops when it is full; and their limits together may be
// more than there is. The reserve is a tenth of the disk, 4 GiB at most; below
// a half of it, the disk is critical.
func levelOf(free, total int64) diskLevel {
	reserve := min(total/10, 4<<30)
	switch {
	case free < reserve/2:
		return diskCritical
	case free < reserve:
		return diskLow
	}
	return diskFine
}

// guardDisk keeps sandboxes from filling the disk, until ctx ends.
func (a *Agent) guardDisk(ctx context.Context) error {
	if a.cfg.Runtime == "sim" {
		return nil
	}
	tick := time.NewTicker(diskPeriod)
	defer tick.Stop()
	var look diskLook
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		free, total, err := freeDisk(a.cfg.StateDir)
		if look.failed(err) {
			a.log.Error("the free disk can't be read; the node goes by what it saw last", "folder", a.cfg.StateDir, "err", err)
		}
		if err != nil {
			continue
		}
		level := levelOf(free, total)
		if was := a.disk.Swap(int32(level)); was != int32(level) {
			a.log.Warn("the node's disk changed", "critical", level == diskCritical, "low", level >= diskLow, "free_bytes", free)
			a.pokeHeartbeat()
		}
		if level == diskCritical {
			a.relieveDisk(ctx)
		}
	}
}

// freeDisk returns what is free, for programs without privileges, of the disk
// under a folder, and the disk's size, in bytes.
func freeDisk(folder string) (free, total int64, err error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(folder, &fs); err != nil {
		return 0, 0, fmt.Errorf("read the disk under %s: %w", folder, err)
	}
	return int64(fs.Bavail) * fs.Bsize, int64(fs.Blocks) * fs.Bsize, nil //nolint:gosec // disk sizes fit
}

// diskLook remembers how the last look at the disk went: what stays wrong is
// said once, not twice a second.
type diskLook struct{ last string }

// failed takes how a look went, and says whether it failed in another way than
// the one before.
func (l *diskLook) failed(err error) (news bool) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	news = text != "" && text != l.last
	l.last = text
	return news
}

// relieveDisk ends the sandbox that holds the most of the disk, and waits until
// it is gone. There is no time for a notice: with the disk full every sandbox
// of the machine, and the bus, would fail.
func (a *Agent) relieveDisk(ctx context.Context) {
	var worst *machine
	most := int64(diskLeast)
	for _, m := range a.all() {
		home := m.home()
		if home == nil || !m.wasReady() {
			continue
		}
		if st, err := home.sandbox.Stats(ctx); err == nil && st.DiskBytes > most {
			worst, most = m, st.DiskBytes
		}
	}
	if worst == nil {
		return
	}
	worst.log.Warn("evicted: the node's disk is nearly full", "disk_bytes", most)
	worst.evict(&siroccov1.End{
		Cause: siroccov1.Cause_CAUSE_EVICTED, Limit: "node.disk",
		Message: fmt.Sprintf("its node's disk was nearly full, and it held the most of it: %d MiB", most>>20),
	})
	wait, cancel := context.WithTimeoutCause(ctx, reliefTime, errors.New("the eviction takes long"))
	defer cancel()
	select {
	case <-worst.gone:
	case <-wait.Done():
	}
}

// diskUsed is what the heartbeat says of the disk: more than there is while the
// node takes no new sandboxes for it, so that schedulers pass it over and say
// why.
func (a *Agent) diskUsed() int64 {
	if a.disk.Load() == int32(diskFine) {
		return 0
	}
	return a.cfg.DiskBytes + 1
}

// evict ends a running sandbox now.
func (m *machine) evict(end *siroccov1.End) {
	select {
	case m.told <- end:
	default:
	}
}
