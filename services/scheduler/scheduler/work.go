package scheduler

import (
	"context"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// inProgress is how often the queue is told of commands that are still in work;
// twice in a row is well below its AckWait of 30 s.
const inProgress = 10 * time.Second

// work is what this scheduler works on. Nearly every command is settled before the
// queue must be told that it is still in work, so one ticker serves all.
type work struct {
	mu sync.Mutex
	// since is when each command was taken.
	since map[jetstream.Msg]time.Time
}

func newWork() *work { return &work{since: map[jetstream.Msg]time.Time{}} }

func (w *work) begin(msg jetstream.Msg) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.since[msg] = time.Now()
}

func (w *work) end(msg jetstream.Msg) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.since, msg)
}

// old returns the commands that have been in work since before a time.
func (w *work) old(before time.Time) []jetstream.Msg {
	w.mu.Lock()
	defer w.mu.Unlock()
	var old []jetstream.Msg
	for msg, since := range w.since {
		if since.Before(before) {
			old = append(old, msg)
		}
	}
	return old
}

// run keeps the queue from giving to others what is still in work, until ctx ends.
func (w *work) run(ctx context.Context) error {
	tick := time.NewTicker(inProgress)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			for _, msg := range w.old(now.Add(-inProgress / 2)) {
				_ = msg.InProgress() // what it does not hear comes again, which is harmless
			}
		}
	}
}
