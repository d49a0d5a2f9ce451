package bus_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/bustest"
	"github.com/sirocco-run/sirocco/pkg/subject"
)

// A call whose answer never comes is tried again long before its caller gives up.
func TestAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		began, tries := time.Now(), 0
		got, err := bus.Again(ctx, func(ctx context.Context, again bool) (string, error) {
			if tries++; again != (tries > 1) {
				t.Errorf("try %d: again is %v", tries, again)
			}
			if tries < 3 {
				<-ctx.Done()
				return "", ctx.Err()
			}
			return "done", nil
		})
		if got != "done" || err != nil || time.Since(began) > 2*bus.TryTimeout+time.Second {
			t.Errorf("%q, %v after %v", got, err, time.Since(began))
		}
		// Nobody answers at all.
		began = time.Now()
		_, err = bus.Again(ctx, func(context.Context, bool) (int, error) { return 0, nats.ErrNoResponders })
		if !errors.Is(err, nats.ErrNoResponders) || time.Since(began) != bus.Patience {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		// What was answered is the answer.
		tries = 0
		_, err = bus.Again(ctx, func(context.Context, bool) (int, error) { tries++; return 0, jetstream.ErrKeyExists })
		if !errors.Is(err, jetstream.ErrKeyExists) || tries != 1 {
			t.Errorf("%v after %d tries", err, tries)
		}
		// A caller that leaves is not kept.
		left, leave := context.WithCancel(ctx)
		time.AfterFunc(time.Second, leave)
		began = time.Now()
		_, err = bus.Again(left, func(ctx context.Context, _ bool) (int, error) { <-ctx.Done(); return 0, ctx.Err() })
		if !errors.Is(err, context.Canceled) || time.Since(began) != time.Second {
			t.Errorf("%v after %v", err, time.Since(began))
		}
	})
}

// deaf carries out what it is asked, and loses the first answer.
type deaf struct {
	jetstream.KeyValue
	lost bool
}

func (d *deaf) lose(err error) error {
	if d.lost {
		return err
	}
	d.lost = true
	return nats.ErrTimeout
}

func (d *deaf) Create(ctx context.Context, key string, value []byte, opts ...jetstream.KVCreateOpt) (uint64, error) {
	n, err := d.KeyValue.Create(ctx, key, value, opts...)
	return n, d.lose(err)
}

func (d *deaf) Update(ctx context.Context, key string, value []byte, last uint64) (uint64, error) {
	n, err := d.KeyValue.Update(ctx, key, value, last)
	return n, d.lose(err)
}

func (d *deaf) Delete(ctx context.Context, key string, opts ...jetstream.KVDeleteOpt) error {
	return d.lose(d.KeyValue.Delete(ctx, key, opts...))
}

// What was done by a call whose answer got lost is not taken for somebody else's.
func TestPatient(t *testing.T) {
	_, js := bustest.Start(t)
	kv, err := js.KeyValue(t.Context(), subject.BucketNames)
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	first, err := bus.Patient(&deaf{KeyValue: kv}).Create(ctx, "acme.a", []byte("1"))
	if err != nil {
		t.Fatalf("create: %v", err)
	}
	second, err := bus.Patient(&deaf{KeyValue: kv}).Update(ctx, "acme.a", []byte("2"), first)
	if err != nil || second != first+1 {
		t.Fatalf("update: %d, %v", second, err)
	}
	if _, err := bus.Patient(&deaf{KeyValue: kv}).Create(ctx, "acme.a", []byte("3")); !errors.Is(err, jetstream.ErrKeyExists) {
		t.Errorf("create of what another has made: %v", err)
	}
	if _, err := bus.Patient(&deaf{KeyValue: kv}).Update(ctx, "acme.a", []byte("4"), first); err == nil {
		t.Error("an update of an old revision was taken")
	}
	if err := bus.Patient(&deaf{KeyValue: kv}).Delete(ctx, "acme.a", jetstream.LastRevision(first)); err == nil {
		t.Error("a deletion of an old revision was taken")
	}
	if err := bus.Patient(&deaf{KeyValue: kv}).Delete(ctx, "acme.a", jetstream.LastRevision(second)); err != nil {
		t.Errorf("delete: %v", err)
	}
}
