package bus_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/bustest"
)

// TestWatchFindsARestartedServer: a watch goes on within moments after its
// server was started anew, and sees what changed meanwhile.
func TestWatchFindsARestartedServer(t *testing.T) {
	dir := t.TempDir()
	first := bustest.Server(t, func(o *server.Options) { o.StoreDir = dir })
	_, js := bustest.Connect(t, first)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	kv, err := js.CreateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: "b", Storage: jetstream.FileStorage})
	if err != nil {
		t.Fatal(err)
	}
	put := func(kv jetstream.KeyValue, key string) {
		t.Helper()
		if _, err := kv.Put(ctx, key, []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	put(kv, "before")
	seen := make(chan []string, 100)
	var keys []string
	var wg sync.WaitGroup
	wctx, stop := context.WithCancel(ctx)
	wg.Go(func() {
		_ = bus.Watch(wctx, js, "b", ">", func() { keys = nil }, func(e jetstream.KeyValueEntry) {
			if e != nil {
				keys = append(keys, e.Key())
			} else {
				seen <- slices.Clone(keys)
			}
		})
	})
	defer func() { stop(); wg.Wait() }()
	expect := func(want ...string) {
		t.Helper()
		for {
			select {
			case got := <-seen:
				if slices.Equal(got, want) {
					return
				}
			case <-ctx.Done():
				t.Fatalf("never saw %v", want)
			}
		}
	}
	expect("before")
	_, number, err := splitPort(first.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	first.Shutdown()
	first.WaitForShutdown()
	second := bustest.Server(t, func(o *server.Options) { o.StoreDir, o.Port = dir, number })
	_, js2 := bustest.Connect(t, second)
	kv2, err := js2.KeyValue(ctx, "b")
	if err != nil {
		t.Fatal(err)
	}
	put(kv2, "after")
	expect("before", "after")
}

// TestWatchShowsWhatTheBucketShows: entries are what the bucket's own watch makes of them,
// of what was there before and of what comes.
func TestWatchShowsWhatTheBucketShows(t *testing.T) {
	_, js := bustest.Connect(t, bustest.Server(t, nil))
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	kv, err := js.CreateKeyValue(ctx, jetstream.KeyValueConfig{
		Bucket: "b", Storage: jetstream.FileStorage, History: 5,
	})
	if err != nil {
		t.Fatal(err)
	}
	change := func(prefix string) {
		t.Helper()
		for _, key := range []string{"put", "deleted", "other"} {
			if _, err := kv.Put(ctx, prefix+"."+key, []byte("value of "+key)); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(kv.Delete(ctx, prefix+".deleted"), kv.Purge(ctx, prefix+".purged")); err != nil {
			t.Fatal(err)
		}
	}
	show := func(e jetstream.KeyValueEntry) string {
		if e == nil {
			return "nil"
		}
		return fmt.Sprint(e.Bucket(), e.Key(), string(e.Value()), e.Revision(), e.Created().UTC(), e.Operation())
	}
	change("before")
	theirs, err := kv.Watch(ctx, "*.*")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = theirs.Stop() }()
	ours := make(chan string, 100)
	var running sync.WaitGroup
	running.Go(func() {
		_ = bus.Watch(ctx, js, "b", "*.*", func() {}, func(e jetstream.KeyValueEntry) { ours <- show(e) })
	})
	defer running.Wait()
	defer stop()
	// Of each key one, and nil; then five writes.
	for i := range 4 + 1 + 5 {
		e := <-theirs.Updates()
		if got, want := <-ours, show(e); got != want {
			t.Errorf("%d: %s instead of %s", i, got, want)
		}
		if e == nil {
			change("after")
		}
	}
}

// TestAwait: whoever waits for the bus goes on as soon as it is back.
func TestAwait(t *testing.T) {
	first := bustest.Server(t, nil)
	nc, _ := bustest.Connect(t, first)
	if err := bus.Await(t.Context(), nc); err != nil {
		t.Fatal(err)
	}
	_, number, err := splitPort(first.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	lost := nc.StatusChanged(nats.RECONNECTING)
	first.Shutdown()
	first.WaitForShutdown()
	<-lost
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := bus.Await(short, nc); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("with the bus away: %v", err)
	}
	back := make(chan error, 1)
	go func() { back <- bus.Await(t.Context(), nc) }()
	bustest.Server(t, func(o *server.Options) { o.Port = number })
	if err := <-back; err != nil || !nc.IsConnected() {
		t.Errorf("with the bus back: %v", err)
	}
}

func splitPort(address string) (host string, port int, err error) {
	host, text, err := net.SplitHostPort(address)
	if err != nil {
		return "", 0, err
	}
	port, err = strconv.Atoi(text)
	return host, port, err
}
