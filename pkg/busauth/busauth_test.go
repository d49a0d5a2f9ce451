package busauth_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
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
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/subject"
	"github.com/sirocco-run/sirocco/pkg/topology"
	"golang.org/x/sync/errgroup"
)

// hall is a bus with tenants.
type hall struct {
	t       *testing.T
	server  *server.Server
	nc      *nats.Conn // a service's
	tenants *nats.Conn // the gateway's
	js      jetstream.JetStream
	keys    *apikey.Store
}

func open(t *testing.T, anonymous string) *hall {
	t.Helper()
	secrets, err := busauth.Load(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	h := &hall{t: t}
	h.server = bustest.Server(t, func(o *server.Options) {
		if err := secrets.ServerOptions(o); err != nil {
			t.Fatal(err)
		}
	})
	h.nc, h.js = bustest.Connect(t, h.server, nats.UserInfo(busauth.UserService, secrets.ServicePassword))
	ctx, stop := context.WithCancel(context.Background())
	if err := topology.Ensure(ctx, h.js, topology.Options{}); err != nil {
		t.Fatal(err)
	}
	if h.keys, err = apikey.Open(ctx, h.js); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	callout, err := busauth.NewCallout(h.nc, h.keys, secrets, anonymous, log)
	if err != nil {
		t.Fatal(err)
	}
	if h.tenants, err = busauth.Login(h.nc, secrets); err != nil {
		t.Fatal(err)
	}
	var group errgroup.Group
	serving := [2]chan struct{}{make(chan struct{}), make(chan struct{})}
	group.Go(func() error { return callout.Run(ctx, serving[0]) })
	group.Go(func() error {
		return busauth.NewGateway(h.tenants, h.nc, anonymous, admitAllBut, log).Run(ctx, serving[1])
	})
	t.Cleanup(func() {
		stop()
		if err := group.Wait(); err != nil {
			t.Error(err)
		}
		h.tenants.Close()
	})
	<-serving[0]
	<-serving[1]
	return h
}

func (h *hall) key(tenant string, role apikey.Role) string {
	h.t.Helper()
	secret, _, err := h.keys.Create(context.Background(), tenant, role, "")
	if err != nil {
		h.t.Fatal(err)
	}
	return secret
}

// login connects as a tenant's client. violations receives what the server
// refuses.
func (h *hall) login(opts ...nats.Option) (*nats.Conn, chan error) {
	h.t.Helper()
	violations := make(chan error, 64)
	nc, err := nats.Connect(h.server.ClientURL(), append(opts, nats.NoReconnect(), nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
		violations <- err
	}))...)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(nc.Close)
	return nc, violations
}

func (h *hall) tenant(name string, role apikey.Role) (*nats.Conn, chan error) {
	return h.login(nats.UserInfo(name, h.key(name, role)), nats.CustomInboxPrefix(bus.TenantInbox(name)))
}

func TestWhoMayLogIn(t *testing.T) {
	h := open(t, "")
	acme := h.key("acme", apikey.RoleTenant)
	for name, opts := range map[string][]nats.Option{
		"user and key": {nats.UserInfo("acme", acme)},
		"key alone":    {nats.UserInfo("", acme)},
		"token":        {nats.Token(acme)},
	} {
		nc, err := nats.Connect(h.server.ClientURL(), opts...)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		nc.Close()
	}
	for name, opts := range map[string][]nats.Option{
		"nobody":               nil,
		"another's name":       {nats.UserInfo("other", acme)},
		"a name without a key": {nats.UserInfo("acme", "")},
		"a wrong key":          {nats.UserInfo("acme", "sk_"+strings.Repeat("A", 43))},
		"the service's name":   {nats.UserInfo(busauth.UserService, acme)},
		"the gateway's name":   {nats.UserInfo(busauth.UserGateway, acme)},
	} {
		nc, err := nats.Connect(h.server.ClientURL(), opts...)
		if !errors.Is(err, nats.ErrAuthorization) {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			nc.Close()
		}
	}
}

// Everything that a tenant may not do, tried with the stock client.
func TestTenantsAreConfined(t *testing.T) {
	h := open(t, "default")
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	records, err := h.js.KeyValue(ctx, subject.BucketSandboxes)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := records.Put(ctx, "victim.sb-1", []byte("record")); err != nil {
		t.Fatal(err)
	}
	clients := map[string]func() (*nats.Conn, chan error){
		"tenant":    func() (*nats.Conn, chan error) { return h.tenant("evil", apikey.RoleTenant) },
		"operator":  func() (*nats.Conn, chan error) { return h.tenant("evil", apikey.RoleOperator) },
		"anonymous": func() (*nats.Conn, chan error) { return h.login() },
	}
	pubs := []string{
		"sirocco.api.victim.sandbox.get", "sirocco.api.*.sandbox.get", "sirocco.cmd.victim.sandbox.terminate.k",
		"sirocco.evt.victim.sandbox.sb-1", "sirocco.evt.evil.sandbox.sb-1", "sirocco.evt.default.sandbox.sb-1",
		"sirocco.node.n1.place", "sirocco.hb.eu.n1", "sirocco.dlq.SIROCCO_CMD.scheduler.victim.k",
		"$KV.sirocco-sandboxes.victim.sb-1", "$KV.sirocco-keys.x", "$O.sirocco-images.C.x",
		"$JS.API.STREAM.DELETE.SIROCCO_EVT", "$JS.API.STREAM.PURGE.KV_sirocco-sandboxes", "$JS.API.STREAM.CREATE.X", "$JS.API.STREAM.UPDATE.SIROCCO_CMD",
		"$JS.API.STREAM.MSG.GET.KV_sirocco-keys", "$JS.API.DIRECT.GET.KV_sirocco-keys", "$JS.API.DIRECT.GET.SIROCCO_EVT.sirocco.evt.victim.sandbox.sb-1",
		"$JS.API.CONSUMER.CREATE.SIROCCO_EVT.c.sirocco.evt.victim.>", "$JS.API.CONSUMER.CREATE.SIROCCO_CMD", "$JS.API.CONSUMER.MSG.NEXT.SIROCCO_CMD.scheduler",
		"$JS.API.CONSUMER.DELETE.SIROCCO_CMD.scheduler", "$JS.API.INFO", "$JS.ACK.SIROCCO_CMD.scheduler.1.1.1.1.1",
		"$SYS.REQ.USER.AUTH", "$SYS.REQ.SERVER.PING", "$SRV.PING", "_INBOX_victim.x", "_INBOX_sirocco.x", "anything",
	}
	subs := []string{
		">", "sirocco.>", "sirocco.evt.>", "sirocco.evt.victim.>", "sirocco.evt.*.sandbox.*", "sirocco.cmd.>", "sirocco.cmd.evil.>", "sirocco.api.>",
		"sirocco.api.evil.sandbox.create", "sirocco.hb.>", "sirocco.node.>", "$KV.>", "$JS.>", "$SYS.>", "$SRV.>", "_INBOX_victim.>", "_INBOX_sirocco.>", "_INBOX_*.>", "*.*",
	}
	for name, connect := range clients {
		t.Run(name, func(t *testing.T) {
			nc, violations := connect()
			for _, subj := range pubs {
				if err := nc.Publish(subj, []byte("{}")); err != nil {
					t.Fatal(err)
				}
				mustRefuse(t, nc, violations, "publish to", subj)
			}
			for _, subj := range append(subs, map[bool]string{true: "_INBOX_evil.>", false: "_INBOX.>"}[name == "anonymous"]) {
				if _, err := nc.SubscribeSync(subj); err != nil {
					t.Fatal(err)
				}
				mustRefuse(t, nc, violations, "subscribe to", subj)
			}
			js, err := jetstream.New(nc)
			if err != nil {
				t.Fatal(err)
			}
			short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
			defer cancel()
			if _, err := js.KeyValue(short, subject.BucketSandboxes); err == nil {
				t.Error("opened a bucket")
			}
		})
	}
	entry, err := records.Get(ctx, "victim.sb-1")
	if err != nil || string(entry.Value()) != "record" {
		t.Errorf("the victim's record: %v, %v", entry, err)
	}
}

func mustRefuse(t *testing.T, nc *nats.Conn, violations chan error, what, subj string) {
	t.Helper()
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-violations:
		if !errors.Is(err, nats.ErrPermissionViolation) {
			t.Errorf("%s %s: %v", what, subj, err)
		}
	case <-time.After(5 * time.Second):
		t.Errorf("%s %s was not refused", what, subj)
	}
}

// A tenant publishes commands and reads its events with the stock client.
func TestTenantPublishesAndFollows(t *testing.T) {
	h := open(t, "default")
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	named, _ := h.tenant("acme", apikey.RoleTenant)
	plain, _ := h.login()
	for name, c := range map[string]struct {
		nc     *nats.Conn
		tenant string
	}{"named": {named, "acme"}, "anonymous": {plain, "default"}} {
		t.Run(name, func(t *testing.T) {
			events, err := c.nc.SubscribeSync(subject.TenantEvents(c.tenant))
			if err != nil {
				t.Fatal(err)
			}
			js, err := jetstream.New(c.nc)
			if err != nil {
				t.Fatal(err)
			}
			ack, err := js.Publish(ctx, subject.Command(c.tenant, "create", "k1"), []byte(`{"command":["true"]}`), jetstream.WithMsgID("m"))
			if err != nil || ack.Stream != subject.StreamCommands || ack.Duplicate {
				t.Fatalf("publish: %+v, %v", ack, err)
			}
			if again, err := js.Publish(ctx, subject.Command(c.tenant, "create", "k1"), []byte(`{"command":["true"]}`), jetstream.WithMsgID("m")); err != nil || !again.Duplicate {
				t.Errorf("publish again: %+v, %v", again, err)
			}
			kv, err := h.js.KeyValue(ctx, subject.BucketSandboxes)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := kv.Put(ctx, c.tenant+".sb-9", []byte("x")); err != nil {
				t.Fatal(err)
			}
			msg, err := events.NextMsgWithContext(ctx)
			if err != nil || msg.Subject != subject.Event(c.tenant, "sb-9") {
				t.Errorf("event: %+v, %v", msg, err)
			}
		})
	}
}

// The reply subject of a command is where the stream's answer goes, with the
// platform's rights: it must not reach anybody else.
func TestNoDeputy(t *testing.T) {
	h := open(t, "default")
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	evil, _ := h.tenant("evil", apikey.RoleTenant)
	everything, err := h.tenants.SubscribeSync(">")
	if err != nil {
		t.Fatal(err)
	}
	if err := h.tenants.Flush(); err != nil {
		t.Fatal(err)
	}
	inbox := evil.NewInbox()
	answers, err := evil.SubscribeSync(inbox)
	if err != nil {
		t.Fatal(err)
	}
	replies := []string{
		"sirocco.cmd.victim.sandbox.create.k", "sirocco.evt.victim.sandbox.sb-1", "$KV.sirocco-sandboxes.victim.sb-1", "_INBOX_victim.x", "_INBOX.x", "_INBOX_sirocco.x", "_INBOX_evil",
		"sirocco.cmd.evil.sandbox.create.other",
	}
	for _, reply := range replies {
		if err := evil.PublishRequest(subject.Command("evil", "create", "dropped"), reply, []byte("{}")); err != nil {
			t.Fatal(err)
		}
	}
	// Headers that mean something to JetStream do not cross.
	last := nats.NewMsg(subject.Command("evil", "create", "kept"))
	last.Reply = inbox
	for _, name := range []string{"Nats-Rollup", "Nats-Expected-Stream", "Nats-Schedule", "Nats-Schedule-Target", "Nats-TTL", "Nats-Expected-Last-Sequence"} {
		last.Header.Set(name, "all")
	}
	if err := evil.PublishMsg(last); err != nil {
		t.Fatal(err)
	}
	answer, err := answers.NextMsgWithContext(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var ack struct{ Seq uint64 }
	if err := json.Unmarshal(answer.Data, &ack); err != nil || ack.Seq == 0 {
		t.Fatalf("ack %s: %v", answer.Data, err)
	}
	stream, err := h.js.Stream(ctx, subject.StreamCommands)
	if err != nil {
		t.Fatal(err)
	}
	if n := stream.CachedInfo().State.Msgs; n != 1 {
		t.Errorf("%d commands stored; want the one with an own inbox", n)
	}
	stored, err := stream.GetMsg(ctx, ack.Seq)
	if err != nil {
		t.Fatal(err)
	}
	for name := range last.Header {
		if stored.Header.Get(name) != "" {
			t.Errorf("the header %s crossed", name)
		}
	}
	// What was seen on the tenants' side: the commands and the one answer.
	for range len(replies) + 2 {
		msg, err := everything.NextMsgWithContext(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if msg.Subject != inbox && !strings.HasPrefix(msg.Subject, "sirocco.cmd.evil.") {
			t.Errorf("a message on %s", msg.Subject)
		}
	}
	if n, _, err := everything.Pending(); err != nil || n != 0 {
		t.Errorf("%d more messages, %v", n, err)
	}
}

func TestSecretsAreMadeOnce(t *testing.T) {
	dir := t.TempDir()
	results := make(chan busauth.Secrets, 8)
	for range 8 {
		go func() {
			s, err := busauth.Load(dir)
			if err != nil {
				t.Error(err)
			}
			results <- s
		}()
	}
	first := <-results
	for range 7 {
		if s := <-results; s != first {
			t.Fatal("two secrets in one folder")
		}
	}
}

// admitAllBut refuses the creates of the key "too-many".
func admitAllBut(_, key string, _ nats.Header, _ []byte) error {
	if key == "too-many" {
		return fault.New(fault.Quota, "you have enough")
	}
	return nil
}

// TestQuotaAtTheGateway: a create beyond the tenant's quota is marked for the
// schedulers, and a tenant can neither forge the mark nor remove it.
func TestQuotaAtTheGateway(t *testing.T) {
	h := open(t, "default")
	nc, err := nats.Connect(h.server.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	for key, want := range map[string]string{"too-many": fault.New(fault.Quota, "you have enough").Header(), "fine": ""} {
		msg := nats.NewMsg(subject.Command("default", subject.VerbCreate, key))
		msg.Header.Set(subject.HeaderOverQuota, "forged")
		if _, err := nc.RequestMsgWithContext(t.Context(), msg); err != nil {
			t.Fatal(err)
		}
		stream, err := h.js.Stream(t.Context(), subject.StreamCommands)
		if err != nil {
			t.Fatal(err)
		}
		stored, err := stream.GetLastMsgForSubject(t.Context(), msg.Subject)
		if err != nil {
			t.Fatal(err)
		}
		if got := stored.Header.Get(subject.HeaderOverQuota); got != want {
			t.Errorf("key %s: the mark says %q, want %q", key, got, want)
		}
	}
}
