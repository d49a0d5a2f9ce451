// Package bustest gives tests a bus of their own: a real NATS server with
// JetStream in the process of the test, with the streams and buckets of a
// region in place.
package bustest

import (
	"context"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/topology"
)

// startLimit is how long a server may take to accept connections, on a machine
// that is busy with other tests.
const startLimit = 30 * time.Second

// Start starts a server, ensures the topology of a region with one replica and
// returns a connection with the services' inbox. All of it is gone when the
// test ends. It fails the test if anything does.
func Start(t testing.TB) (*nats.Conn, jetstream.JetStream) {
	t.Helper()
	nc, js := Connect(t, Server(t, nil))
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	if err := topology.Ensure(ctx, js, topology.Options{}); err != nil {
		t.Fatalf("ensure the topology: %v", err)
	}
	return nc, js
}

// Server starts an empty server on a free port of loopback, with its files in
// t.TempDir(). configure may change the options before; nil changes nothing.
// The server is shut down when the test ends.
func Server(t testing.TB, configure func(*server.Options)) *server.Server {
	t.Helper()
	opts := &server.Options{
		ServerName: "bustest", Host: "127.0.0.1", Port: server.RANDOM_PORT,
		JetStream: true, StoreDir: t.TempDir(),
		// Tests do not survive a power cut, so they need not pay for one.
		SyncInterval: time.Hour,
		NoSigs:       true, NoLog: true,
		// Enough for what the streams reserve, however little the disk has free: by
		// default a server takes three quarters of that at its start.
		JetStreamMaxStore: 64 << 30,
	}
	if configure != nil {
		configure(opts)
	}
	s, err := server.NewServer(opts)
	if err != nil {
		t.Fatalf("configure a NATS server: %v", err)
	}
	t.Cleanup(func() {
		s.Shutdown()
		s.WaitForShutdown()
	})
	s.Start()
	if !s.ReadyForConnections(startLimit) {
		t.Fatalf("the NATS server did not start within %v", startLimit)
	}
	return s
}

// Connect connects to a server as a service does, with more options if wanted,
// and closes the connection when the test ends.
func Connect(t testing.TB, s *server.Server, more ...nats.Option) (*nats.Conn, jetstream.JetStream) {
	t.Helper()
	opts := append([]nats.Option{
		nats.CustomInboxPrefix(bus.ServiceInbox), nats.MaxReconnects(-1), nats.ReconnectWait(20 * time.Millisecond),
	}, more...)
	nc, err := nats.Connect(s.ClientURL(), opts...)
	if err != nil {
		t.Fatalf("connect to the test's bus: %v", err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatalf("open JetStream: %v", err)
	}
	return nc, js
}
