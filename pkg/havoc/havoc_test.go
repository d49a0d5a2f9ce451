package havoc

import (
	"context"
	"errors"
	"math"
	"testing"
	"time"

	"github.com/sirocco-run/sirocco/pkg/bustest"
	"github.com/sirocco-run/sirocco/pkg/fault"
)

// TestOrders: a node does what is ordered for it, or else for its region, for as long as
// it is ordered, and nothing of other regions' orders.
func TestOrders(t *testing.T) {
	_, js := bustest.Start(t)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	store, err := Open(ctx, js)
	if err != nil {
		t.Fatal(err)
	}
	v := NewVictim("eu", "n1")
	rctx, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- v.Run(rctx, js) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	<-v.orders.Ready()
	later := time.Now().Add(time.Hour)
	fails := func() bool { return errors.Is(v.Suffer(ctx), ErrInjected) }
	await := func(what string, cond func() bool) {
		t.Helper()
		for !cond() {
			if ctx.Err() != nil {
				t.Fatal(what)
			}
		}
	}
	order := func(region, node string, o Order) {
		t.Helper()
		if err := store.Set(ctx, region, node, o); err != nil {
			t.Fatal(err)
		}
	}
	order("us", "", Order{Errors: 1, Until: later})
	order("eu", "", Order{Errors: 1, Until: later})
	await("the region's order is followed", fails)
	order("eu", "n1", Order{Until: later})
	await("the node's own stands before it", func() bool { return !fails() })
	order("eu", "n1", Order{Latency: 30 * time.Millisecond, Until: later})
	await("a start is slow", func() bool {
		began := time.Now()
		return v.Suffer(ctx) == nil && time.Since(began) >= 30*time.Millisecond
	})
	gone, end := context.WithCancel(ctx)
	end()
	if err := v.Suffer(gone); !errors.Is(err, context.Canceled) {
		t.Errorf("whoever waits leaves: %v", err)
	}
	order("eu", "n1", Order{Errors: 1, Until: time.Now().Add(-time.Second)})
	await("an order ends by itself", func() bool { return v.Suffer(ctx) == nil })
	if n, err := store.Clear(ctx); n != 3 || err != nil {
		t.Errorf("%d taken back, %v", n, err)
	}
	order("eu", "n2", Order{Errors: 1, Until: later})
	await("nothing is ordered any more", func() bool { return !fails() })

	for _, bad := range []Order{{Latency: -1}, {Latency: 2 * MaxLatency}, {Errors: 1.1}, {Errors: math.NaN()}} {
		if err := store.Set(ctx, "eu", "", bad); fault.CodeOf(err) != fault.InvalidArgument {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	var none *Victim
	if err := errors.Join(none.Suffer(ctx), none.Run(ctx, js)); err != nil {
		t.Error(err)
	}
}
