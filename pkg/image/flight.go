package image

import (
	"context"
	"sync"
)

// flights lets callers who want the same thing share one attempt. An attempt
// runs in its own goroutine and ends early only when the last of its callers
// has gone, or the store closes.
type flights struct {
	mu   sync.Mutex
	m    map[string]*flight
	done sync.WaitGroup
}

type flight struct {
	waiters int
	cancel  context.CancelFunc
	ended   chan struct{}
	img     Image
	err     error
}

// do returns what f returns, running it at most once at a time for a key. base
// is the context that f's context derives from; ctx only ends the waiting.
func (g *flights) do(ctx, base context.Context, key string, f func(context.Context) (Image, error)) (Image, error) {
	if err := ctx.Err(); err != nil {
		return Image{}, err
	}
	g.mu.Lock()
	if base.Err() != nil {
		g.mu.Unlock()
		return Image{}, ErrClosed
	}
	fl := g.m[key]
	if fl == nil {
		fctx, cancel := context.WithCancel(base)
		fl = &flight{cancel: cancel, ended: make(chan struct{})}
		if g.m == nil {
			g.m = map[string]*flight{}
		}
		g.m[key] = fl
		g.done.Add(1)
		go func() {
			defer g.done.Done()
			fl.img, fl.err = f(fctx)
			cancel()
			g.mu.Lock()
			g.forget(key, fl)
			g.mu.Unlock()
			close(fl.ended)
		}()
	}
	fl.waiters++
	g.mu.Unlock()

	select {
	case <-fl.ended:
		if fl.err != nil && base.Err() != nil {
			return Image{}, ErrClosed
		}
		return fl.img, fl.err
	case <-ctx.Done():
		g.mu.Lock()
		if fl.waiters--; fl.waiters == 0 {
			// Whoever comes now must not join an attempt that is ending.
			g.forget(key, fl)
			fl.cancel()
		}
		g.mu.Unlock()
		return Image{}, ctx.Err()
	}
}

func (g *flights) forget(key string, fl *flight) {
	if g.m[key] == fl {
		delete(g.m, key)
	}
}

func (g *flights) wait() {
	g.mu.Lock()
	g.mu.Unlock() //nolint:staticcheck // no attempt starts after this point
	g.done.Wait()
}
