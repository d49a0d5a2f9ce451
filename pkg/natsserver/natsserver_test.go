package natsserver_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/natsserver"
	"github.com/sirocco-run/sirocco/pkg/topology"
)

func start(t *testing.T, dir string) *natsserver.Server {
	t.Helper()
	s, err := natsserver.Start(t.Context(), natsserver.Config{Dir: dir, Port: -1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func connect(t *testing.T, s *natsserver.Server) jetstream.JetStream {
	t.Helper()
	nc, err := nats.Connect("", nats.InProcessServer(s))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return js
}

func TestKeepsWhatWasWritten(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "not", "there", "yet")
	first := start(t, dir)
	js := connect(t, first)
	if err := topology.Ensure(t.Context(), js, topology.Options{}); err != nil {
		t.Fatalf("every stream fits: %v", err)
	}
	kv, err := js.KeyValue(t.Context(), "sirocco-names")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kv.Put(t.Context(), "a.b", []byte("kept")); err != nil {
		t.Fatal(err)
	}
	first.Close()

	kv, err = connect(t, start(t, dir)).KeyValue(t.Context(), "sirocco-names")
	if err != nil {
		t.Fatal(err)
	}
	entry, err := kv.Get(t.Context(), "a.b")
	if err != nil || string(entry.Value()) != "kept" {
		t.Fatalf("after a restart: %v, %v", entry, err)
	}
}

func TestSecondServerOnTheSameFolder(t *testing.T) {
	dir := t.TempDir()
	first := start(t, dir)
	_, err := natsserver.Start(t.Context(), natsserver.Config{Dir: dir, Port: -1})
	if !errors.Is(err, natsserver.ErrDirInUse) {
		t.Fatalf("want ErrDirInUse, got %v", err)
	}
	first.Close()
	start(t, dir)
}

func TestPortTaken(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	dir := t.TempDir()
	_, err = natsserver.Start(t.Context(), natsserver.Config{Dir: dir, Port: port})
	if !errors.Is(err, natsserver.ErrPortTaken) {
		t.Fatalf("want ErrPortTaken, got %v", err)
	}
	if !strings.Contains(err.Error(), "natsserver.test") || !strings.Contains(err.Error(), "--nats-port") {
		t.Errorf("want who has it and what to do, got %q", err)
	}
	start(t, dir) // the folder is free again
}

func TestFolderCannotBeWritten(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := natsserver.Start(t.Context(), natsserver.Config{Dir: filepath.Join(file, "bus"), Port: -1})
	if !errors.Is(err, natsserver.ErrDirUnusable) {
		t.Fatalf("want ErrDirUnusable, got %v", err)
	}
	// A full disk: every write to this device fails with ENOSPC.
	dir := t.TempDir()
	if err := os.Symlink("/dev/full", filepath.Join(dir, ".probe")); err != nil {
		t.Fatal(err)
	}
	_, err = natsserver.Start(t.Context(), natsserver.Config{Dir: dir, Port: -1})
	if !errors.Is(err, natsserver.ErrDirUnusable) || !strings.Contains(err.Error(), "space") {
		t.Fatalf("want ErrDirUnusable with a word about space, got %v", err)
	}
}

func TestStartGivesUpWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s, err := natsserver.Start(ctx, natsserver.Config{Dir: t.TempDir(), Port: -1})
	if err == nil {
		s.Close() // it was quicker than the context was looked at
	}
}
