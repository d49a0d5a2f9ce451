package natsserver_test

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/sirocco-run/sirocco/pkg/natsserver"
)

// A gate holds up those who came through a socket and those in the process, keeps their
// connections, and loses nothing.
func TestHold(t *testing.T) {
	s, err := natsserver.Start(t.Context(), natsserver.Config{Dir: t.TempDir(), Port: -1, Gate: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	for name, options := range map[string][]nats.Option{"a socket": nil, "in the process": {nats.InProcessServer(s)}} {
		lost := make(chan error, 1)
		nc, err := nats.Connect(s.URL(), append(options, nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				lost <- err
			}
		}))...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(nc.Close)
		sub, err := nc.SubscribeSync("x")
		if err != nil {
			t.Fatal(err)
		}
		took := func(h natsserver.Hold) time.Duration {
			t.Helper()
			s.Hold(h)
			began := time.Now()
			if err := nc.Publish("x", nil); err != nil {
				t.Fatal(err)
			}
			if _, err := sub.NextMsg(10 * time.Second); err != nil {
				t.Fatal(err)
			}
			return time.Since(began)
		}
		const d = 300 * time.Millisecond
		free := took(natsserver.Hold{})
		if got := took(natsserver.Hold{Stop: time.Now().Add(d)}); got < d*9/10 {
			t.Errorf("%s: a bus that stands still for %v answers within %v", name, d, got)
		}
		if got := took(natsserver.Hold{Latency: d, Until: time.Now().Add(time.Minute)}); got < d {
			t.Errorf("%s: with %v more, it answers within %v", name, d, got)
		}
		if got := took(natsserver.Hold{Latency: time.Minute, Until: time.Now().Add(-time.Second)}); got > 5*time.Second {
			t.Errorf("%s: when it is over, it answers within %v", name, got)
		}
		// An order that is taken back frees what waits.
		back := time.AfterFunc(d, func() { s.Hold(natsserver.Hold{}) })
		if got := took(natsserver.Hold{Stop: time.Now().Add(time.Minute)}); got > 5*time.Second {
			t.Errorf("%s: taken back after %v, it answers within %v", name, d, got)
		}
		back.Stop()
		select {
		case err := <-lost:
			t.Errorf("%s: the connection was lost: %v", name, err)
		default:
		}
		t.Logf("%s: %v when nothing is held up", name, free)
	}
}
