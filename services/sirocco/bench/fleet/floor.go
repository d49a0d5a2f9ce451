package fleet

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"github.com/sirocco-run/sirocco/services/sirocco/bench"
)

// What the disk alone takes is taken beside what is measured: every create waits for some
// writes of its records to be on it.
const (
	// syncEvery is how often one is written, seldom enough to be in nobody's way.
	syncEvery = 100 * time.Millisecond
	// syncSize is about what a record has, in bytes.
	syncSize = 1 << 10
)

// syncing writes to a file beside the bus's and syncs it, again and again, until the
// returned function is called, which returns how long each time took. Errors end it: a disk
// that can't be written is seen by everything else too.
func (m *measurement) syncing(ctx context.Context) (stop func() []bench.Sample) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	var all bench.Samples
	go func() {
		defer close(done)
		f, err := os.CreateTemp(filepath.Dir(m.region.data), "floor-")
		if err != nil {
			return
		}
		defer func() {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}()
		record := make([]byte, syncSize)
		tick := time.NewTicker(syncEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			began := time.Now()
			if _, err := f.Write(record); err != nil || f.Sync() != nil {
				return
			}
			all.Add(began.Sub(m.load.began), time.Since(began))
		}
	}()
	return func() []bench.Sample {
		cancel()
		<-done
		return all.All()
	}
}
