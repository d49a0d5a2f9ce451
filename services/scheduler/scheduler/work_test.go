package scheduler

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// slowCommand counts how often the queue was told that it is still in work.
type slowCommand struct {
	jetstream.Msg
	told atomic.Int32
}

func (c *slowCommand) InProgress() error { c.told.Add(1); return nil }

// The queue is told of a command that takes long, well before it would give it to
// another, and of none that has been settled.
func TestLongCommandsStayInWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWork()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = w.run(ctx) }()
		var slow, quick slowCommand
		time.Sleep(inProgress * 9 / 10) //nolint:forbidigo // fake time: the next tick comes soon after it began
		w.begin(&slow)
		w.begin(&quick)
		w.end(&quick)
		time.Sleep(29 * time.Second) //nolint:forbidigo // fake time
		if slow.told.Load() == 0 {
			t.Error("the queue was not told of a command within its 30 s")
		}
		w.end(&slow)
		before := slow.told.Load()
		time.Sleep(time.Minute) //nolint:forbidigo // fake time
		if quick.told.Load() != 0 || slow.told.Load() != before {
			t.Error("the queue was told of what was settled")
		}
		cancel()
		<-done
	})
}
