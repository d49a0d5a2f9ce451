package natsserver_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sys/unix"
)

// A server whose disk was full takes writes again once there is room, at the same
// address, and has what it acknowledged.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("full", dir, "tmpfs", 0, "size=32m"); err != nil {
		t.Fatalf("mount a small disk (this test needs root): %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	s := start(t, filepath.Join(dir, "bus"))
	t.Cleanup(s.Close) // before the disk goes
	nc, err := nats.Connect(s.URL(), nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc, jetstream.WithDefaultTimeout(time.Second))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "s", Subjects: []string{"s"}}); err != nil {
		t.Fatal(err)
	}
	filler := filepath.Join(dir, "filler")
	if err := os.WriteFile(filler, make([]byte, 40<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("fill the disk: %v", err)
	}
	taken, last := 0, uint64(0)
	publish := func() error {
		ack, err := js.Publish(t.Context(), "s", make([]byte, 4096))
		if err == nil {
			taken, last = taken+1, ack.Sequence
		}
		return err
	}
	for err == nil && taken < 1000 {
		err = publish()
	}
	if err == nil {
		t.Fatal("a full disk took everything")
	}
	if err := publish(); err == nil {
		t.Error("it takes more with the disk still full")
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for until := time.Now().Add(30 * time.Second); publish() != nil; <-tick.C {
		if time.Now().After(until) {
			t.Fatal("it takes nothing with room again")
		}
	}
	stream, err := js.Stream(t.Context(), "s")
	if err != nil {
		t.Fatal(err)
	}
	if n := stream.CachedInfo().State.Msgs; n < uint64(taken) { //nolint:gosec // a small number
		t.Errorf("%d messages of %d that were acknowledged, up to %d", n, taken, last)
	}
}
