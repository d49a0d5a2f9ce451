package agent

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Turns are taken one after the other, and one that comes to no end is not waited for.
func TestTurnstile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stile, began := newTurnstile(2, time.Second), time.Now()
		var mu sync.Mutex
		var entered []time.Duration
		for i := range 6 {
			go func() {
				leave := stile.enter(t.Context())
				defer leave()
				mu.Lock()
				entered = append(entered, time.Since(began))
				mu.Unlock()
				if i == 0 {
					<-t.Context().Done() // one that comes to no end
					return
				}
				time.Sleep(300 * time.Millisecond) //nolint:forbidigo // fake time
			}()
			synctest.Wait()
		}
		time.Sleep(time.Hour) //nolint:forbidigo // fake time
		mu.Lock()
		defer mu.Unlock()
		want := []time.Duration{0, 0, 300 * time.Millisecond, 600 * time.Millisecond, 900 * time.Millisecond, time.Second}
		if !slices.Equal(entered, want) {
			t.Errorf("they entered after %v, want %v", entered, want)
		}
		if len(stile.room) != 0 {
			t.Errorf("%d are held for nobody", len(stile.room))
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	stile := newTurnstile(1, time.Hour)
	leave := stile.enter(ctx)
	cancel()
	stile.enter(ctx)() // does not wait
	leave()
}
