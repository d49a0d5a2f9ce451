package api_test

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/apikey"
	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/busauth"
	"github.com/sirocco-run/sirocco/pkg/bustest"
	"github.com/sirocco-run/sirocco/pkg/pki"
	"github.com/sirocco-run/sirocco/pkg/program"
	"github.com/sirocco-run/sirocco/pkg/record"
	"github.com/sirocco-run/sirocco/pkg/subject"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/sirocco-run/sirocco/services/api/api"
	"google.golang.org/protobuf/encoding/protojson"
)

// locked starts an api on a bus with accounts, as `sirocco up` does.
func locked(t *testing.T, anonymous string) (*region, *server.Server) {
	t.Helper()
	dir := t.TempDir()
	folder, err := pki.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	secrets, err := busauth.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	s := bustest.Server(t, func(o *server.Options) {
		if err := secrets.ServerOptions(o); err != nil {
			t.Fatal(err)
		}
	})
	nc, js := bustest.Connect(t, s, nats.UserInfo(busauth.UserService, secrets.ServicePassword))
	service, err := api.New(program.Env{Region: "eu", Instance: "api-1", NC: nc, JS: js, Keys: folder, Front: front}, api.Config{
		Listen: "127.0.0.1:0", BusAuth: true, AnonymousTenant: anonymous,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		defer close(done)
		done <- service.Run(ctx)
	}()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	select {
	case <-service.Ready():
	case err := <-done:
		t.Fatalf("run: %v", err)
	}
	r := &region{t: t, name: "eu", nc: nc, js: js, url: "http://" + service.Addr().String(), logs: &syncBuffer{}}
	if r.store, err = record.Open(ctx, js); err != nil {
		t.Fatal(err)
	}
	if r.keys, err = apikey.Open(ctx, js); err != nil {
		t.Fatal(err)
	}
	startNode(t, r)
	r.sched = startScheduler(t, r)
	return r, s
}

// What the readme shows with the stock client: without credentials on one
// machine, with a key as the password otherwise.
func TestStockClientOfTheBus(t *testing.T) {
	r, s := locked(t, "default")
	ctx, cancel := context.WithTimeout(t.Context(), 2*wait)
	defer cancel()
	for name, c := range map[string]struct {
		tenant string
		opts   []nats.Option
	}{
		"anonymous": {"default", nil},
		"tenant":    {"acme", []nats.Option{nats.UserInfo("acme", r.key("acme", apikey.RoleTenant)), nats.CustomInboxPrefix(bus.TenantInbox("acme"))}},
		"operator":  {"ops", []nats.Option{nats.Token(r.key("ops", apikey.RoleOperator)), nats.CustomInboxPrefix(bus.TenantInbox("ops"))}},
	} {
		t.Run(name, func(t *testing.T) {
			nc, err := nats.Connect(s.ClientURL(), append(c.opts, nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))...)
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			// nats sub 'sirocco.evt.<tenant>.>'
			events, err := nc.SubscribeSync(subject.TenantEvents(c.tenant))
			if err != nil {
				t.Fatal(err)
			}
			// nats req sirocco.api.<tenant>.sandbox.create '{…}'
			answer, err := nc.RequestWithContext(ctx, subject.API(c.tenant, "sandbox", "create"), []byte(`{"command":["echo","hi"]}`))
			if err != nil {
				t.Fatal(err)
			}
			created := &siroccov1.CreateSandboxResponse{}
			if err := protojson.Unmarshal(answer.Data, created); err != nil || created.GetSandbox().GetState() != siroccov1.State_STATE_RUNNING || created.GetSandbox().GetTenant() != c.tenant {
				t.Fatalf("%s: %v", answer.Data, err)
			}
			// nats pub --jetstream sirocco.cmd.<tenant>.sandbox.create.my-key-1 '{…}'
			js, err := jetstream.New(nc)
			if err != nil {
				t.Fatal(err)
			}
			ack, err := js.Publish(ctx, subject.Command(c.tenant, "create", "my-key-1"), []byte(`{"command":["sleep","1"]}`))
			if err != nil || ack.Stream != subject.StreamCommands {
				t.Fatalf("%+v, %v", ack, err)
			}
			running := map[string]bool{}
			for len(running) < 2 {
				msg, err := events.NextMsgWithContext(ctx)
				if err != nil {
					t.Fatal(err)
				}
				var fact struct{ ID, State string }
				if err := json.Unmarshal([]byte(msg.Header.Get(subject.HeaderFact)), &fact); err != nil {
					t.Fatal(err)
				}
				if msg.Header.Get(subject.HeaderEvent) == "running" {
					running[fact.ID] = true
				}
			}
			// nats req --replies=0 sirocco.api.<tenant>.sandbox.events '{"from_sequence":1}'
			inbox := nc.NewInbox()
			replay, err := nc.SubscribeSync(inbox)
			if err != nil {
				t.Fatal(err)
			}
			if err := nc.PublishRequest(subject.API(c.tenant, "sandbox", "events"), inbox, []byte(`{"from_sequence":1}`)); err != nil {
				t.Fatal(err)
			}
			seen := 0
			for {
				msg, err := replay.NextMsgWithContext(ctx)
				if err != nil {
					t.Fatal(err)
				}
				if msg.Header.Get(subject.HeaderEvent) == "end" {
					break
				}
				seen++
			}
			if seen != 8 {
				t.Errorf("%d events replayed; want 8", seen)
			}
			// Nodes are for operators.
			short, stop := context.WithTimeout(ctx, 300*time.Millisecond)
			defer stop()
			_, err = nc.RequestWithContext(short, subject.API(c.tenant, "node", "list"), []byte("{}"))
			if (err == nil) != (name == "operator") {
				t.Errorf("nodes: %v", err)
			}
		})
	}
}

// An answer goes to an inbox of the asker only: not into commands or records.
func TestAsksAnswerInboxesOnly(t *testing.T) {
	r := start(t, api.Config{})
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	replies := []string{"sirocco.cmd.victim.sandbox.create.k", "$KV.sirocco-sandboxes.victim.sb-1", "sirocco.evt.victim.sandbox.sb-1", "_INBOX_victim.x", "_INBOXES.x", "_INBOX", "_INBOX.*", "_INBOX.a.>"}
	watched := map[string]*nats.Subscription{}
	for _, reply := range replies {
		sub, err := r.nc.SubscribeSync(reply)
		if err != nil {
			t.Fatal(err)
		}
		watched[reply] = sub
		if err := r.nc.PublishRequest("sirocco.api.evil.sandbox.list", reply, []byte("{}")); err != nil {
			t.Fatal(err)
		}
	}
	// One without a reply subject is no ask.
	if err := r.nc.Publish("sirocco.api.evil.sandbox.list", []byte("{}")); err != nil {
		t.Fatal(err)
	}
	if _, err := r.nc.RequestWithContext(ctx, "sirocco.api.evil.sandbox.list", []byte("{}")); err != nil {
		t.Fatal(err)
	}
	// Asks are taken in order, so all of them have been decided on by now.
	if n := strings.Count(r.logs.String(), "ask dropped"); n != len(replies)+1 {
		t.Errorf("%d asks dropped; want %d", n, len(replies)+1)
	}
	for reply, sub := range watched {
		if n, _, err := sub.Pending(); err != nil || n != 0 {
			t.Errorf("%d messages on %s, %v", n, reply, err)
		}
	}
	r.mustBeEmpty()
}

// An ask that waits does not keep others waiting, and there is a limit.
func TestSlowAsksDoNotBlock(t *testing.T) {
	r := start(t, api.Config{MaxAsks: 2})
	r.sched.holdBack(subject.VerbCreate, true)
	ctx, cancel := context.WithTimeout(t.Context(), 2*wait)
	defer cancel()
	create := func() chan error {
		done := make(chan error, 1)
		go func() {
			done <- bus.Ask(ctx, r.nc, "sirocco.api.acme.sandbox.create", &siroccov1.CreateSandboxRequest{}, &siroccov1.CreateSandboxResponse{})
		}()
		return done
	}
	first := create()
	r.sched.until(t, func() bool { return len(r.sched.seen) == 1 })
	if err := bus.Ask(ctx, r.nc, "sirocco.api.acme.sandbox.list", &siroccov1.ListSandboxesRequest{}, &siroccov1.ListSandboxesResponse{}); err != nil {
		t.Fatal(err)
	}
	second := create()
	r.sched.until(t, func() bool { return len(r.sched.seen) == 2 })
	err := bus.Ask(ctx, r.nc, "sirocco.api.acme.sandbox.list", &siroccov1.ListSandboxesRequest{}, &siroccov1.ListSandboxesResponse{})
	if err == nil || err.Error() != "unavailable: too many requests are under way" {
		t.Errorf("a third of two: %v", err)
	}
	r.sched.holdBack(subject.VerbCreate, false)
	for _, done := range []chan error{first, second} {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}
