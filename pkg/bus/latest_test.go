package bus_test

import (
	"errors"
	"testing"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/bustest"
	"github.com/sirocco-run/sirocco/pkg/subject"
)

func TestLatest(t *testing.T) {
	_, js := bustest.Start(t)
	kv, err := js.KeyValue(t.Context(), subject.BucketNames)
	if err != nil {
		t.Fatal(err)
	}
	latest := func() (string, uint64, error) {
		value, revision, err := bus.Latest(t.Context(), js, subject.BucketNames, "acme.web")
		return string(value), revision, err
	}
	if _, _, err := latest(); !errors.Is(err, jetstream.ErrKeyNotFound) {
		t.Errorf("nothing there: %v", err)
	}
	for _, want := range []string{"one", "two", ""} {
		revision, err := kv.Put(t.Context(), "acme.web", []byte(want))
		if err != nil {
			t.Fatal(err)
		}
		if got, at, err := latest(); err != nil || got != want || at != revision {
			t.Errorf("got %q at %d, %v; want %q at %d", got, at, err, want, revision)
		}
	}
	for name, remove := range map[string]func() error{
		"deleted": func() error { return kv.Delete(t.Context(), "acme.web") },
		"purged":  func() error { return kv.Purge(t.Context(), "acme.web") },
	} {
		if err := remove(); err != nil {
			t.Fatal(err)
		}
		if _, _, err := latest(); !errors.Is(err, jetstream.ErrKeyNotFound) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := kv.Put(t.Context(), "acme.web", nil); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := bus.Latest(t.Context(), js, "no-such-bucket", "a.b"); err == nil || errors.Is(err, jetstream.ErrKeyNotFound) {
		t.Errorf("no bucket: %v", err)
	}
}
