package agent

import (
	"context"
	"sync"
	"time"
)

// turnstile lets so many do a thing at a time, in the order in which they came. Who takes
// longer than longest goes on beside the others, so that nobody is held up by one that
// comes to no end.
type turnstile struct {
	room    chan struct{}
	longest time.Duration
}

func newTurnstile(room int, longest time.Duration) turnstile {
	return turnstile{make(chan struct{}, room), longest}
}

// enter waits for a turn; with ctx ends the wait, not what was waited for. The caller
// calls leave when it is done.
func (t turnstile) enter(ctx context.Context) (leave func()) {
	select {
	case t.room <- struct{}{}:
	case <-ctx.Done():
		return func() {}
	}
	free := sync.OnceFunc(func() { <-t.room })
	late := time.AfterFunc(t.longest, free)
	return func() {
		late.Stop()
		free()
	}
}
