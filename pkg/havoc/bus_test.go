package havoc_test

import (
	"context"
	"testing"
	"time"

	"github.com/sirocco-run/sirocco/pkg/bustest"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/havoc"
)

func TestBusOrders(t *testing.T) {
	_, js := bustest.Start(t)
	store, err := havoc.Open(t.Context(), js)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	obeyed, done := make(chan havoc.BusOrder, 8), make(chan error, 1)
	go func() { done <- havoc.FollowBus(ctx, js, "eu", func(o havoc.BusOrder) { obeyed <- o }) }()
	next := func() havoc.BusOrder {
		t.Helper()
		select {
		case o := <-obeyed:
			return o
		case <-time.After(20 * time.Second):
			t.Fatal("no order came")
		}
		return havoc.BusOrder{}
	}
	if got := next(); got != (havoc.BusOrder{}) {
		t.Errorf("before any order: %v", got)
	}
	now := time.Now()
	want := havoc.BusOrder{StopUntil: now.Add(time.Minute), Latency: time.Second, Until: now.Add(time.Hour)}
	// Those of other regions, and of nodes, are not for it.
	if err := store.SetBus(ctx, "us", want); err != nil {
		t.Fatal(err)
	}
	if err := store.Set(ctx, "eu", "", havoc.Order{Latency: time.Second, Until: now.Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	if err := store.SetBus(ctx, "eu", want); err != nil {
		t.Fatal(err)
	}
	if got := next(); !got.StopUntil.Equal(want.StopUntil) || got.Latency != want.Latency || !got.Until.Equal(want.Until) {
		t.Errorf("got %v, want %v", got, want)
	}
	if n, err := store.Clear(ctx); err != nil || n != 3 {
		t.Errorf("%d taken back: %v", n, err)
	}
	if got := next(); got != (havoc.BusOrder{}) {
		t.Errorf("taken back: %v", got)
	}
	for _, bad := range []havoc.BusOrder{{Latency: -1}, {Latency: havoc.MaxBusLatency + 1}, {StopUntil: time.Now().Add(havoc.MaxStop + time.Minute)}} {
		if err := store.SetBus(ctx, "eu", bad); fault.CodeOf(err) != fault.InvalidArgument {
			t.Errorf("%v: %v", bad, err)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
