package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/sirocco-run/sirocco/proto/gen/sirocco/v1/siroccov1connect"
	sirocco "github.com/sirocco-run/sirocco/sdk/go"
)

// otherKey makes the key of a second tenant, once.
var otherKey = sync.OnceValues(func() (string, string) {
	out, errs, code := up.CLI(context.Background(), nil, "key", "create", "--tenant", "other", "--data", up.Data())
	if code != 0 {
		return "", errs
	}
	return strings.TrimSpace(out), ""
})

// otherTenant returns a key of the tenant "other".
func otherTenant(t testing.TB) string {
	t.Helper()
	key, why := otherKey()
	if why != "" {
		t.Fatal(why)
	}
	return key
}

// dataURL is where the data services of a sandbox are.
func dataURL(t *testing.T, s *sirocco.Sandbox) string {
	t.Helper()
	token, err := s.Token(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	return token.GetDataUrl()
}

// Another tenant's id is not found on any route, and its sandbox goes on.
func TestAnotherTenantsID(t *testing.T) {
	t.Parallel()
	mine := create(t, &siroccov1.CreateSandboxRequest{Name: "mine-alone", Tags: map[string]string{"secret": "tag"}, Ports: []*siroccov1.Port{{Port: 8000}}})
	key := otherTenant(t)
	other := clientOf(t, key)
	for _, name := range []string{mine.ID, "mine-alone"} {
		theirs := other.Sandbox(name)
		ctx := t.Context()
		calls := map[string]func() error{
			"get":          func() error { _, err := other.Get(ctx, name); return err },
			"terminate":    func() error { _, err := theirs.Terminate(ctx, ""); return err },
			"extend":       func() error { _, err := theirs.Extend(ctx, time.Hour); return err },
			"set tags":     func() error { _, err := theirs.SetTags(ctx, nil); return err },
			"token":        func() error { _, err := theirs.Token(ctx, 0); return err },
			"open tunnel":  func() error { _, err := theirs.OpenTunnel(ctx, &siroccov1.Port{Port: 81}); return err },
			"close tunnel": func() error { return theirs.CloseTunnel(ctx, 8000) },
			"tunnels":      func() error { _, err := theirs.Tunnels(ctx); return err },
			"exec":         func() error { _, err := theirs.Start(ctx, sirocco.Command{Args: []string{"true"}}); return err },
			"files":        func() error { _, err := theirs.ListFiles(ctx, "/"); return err },
			"logs":         func() error { _, err := theirs.Logs(ctx, false); return err },
		}
		for what, call := range calls {
			wantCode(t, what+" "+name, call(), sirocco.NotFound)
		}
		for _, r := range []struct{ method, path, body string }{
			{"GET", "", ""}, {"DELETE", "", ""}, {"POST", "/extend", `{"by":"60s"}`}, {"PUT", "/tags", `{"tags":{}}`}, {"POST", "/token", `{}`},
			{"POST", "/tunnels", `{"port":{"port":81}}`}, {"GET", "/tunnels", ""}, {"DELETE", "/tunnels/8000", ""},
		} {
			if status, got := object(t, plainClient, r.method, up.API+"/v1/sandboxes/"+name+r.path, r.body, key); status != 404 || detail(got, "code") != "not_found" {
				t.Errorf("%s %s%s: %d %v", r.method, name, r.path, status, got)
			}
		}
		grpc := siroccov1connect.NewSandboxServiceClient(plainClient, up.API, connect.WithProtoJSON())
		req := connect.NewRequest(&siroccov1.GetSandboxRequest{Id: name})
		req.Header().Set("Authorization", "Bearer "+key)
		if _, err := grpc.Get(ctx, req); connect.CodeOf(err) != connect.CodeNotFound {
			t.Errorf("connect get %s: %v", name, err)
		}
	}
	for sb, err := range other.List(t.Context(), &siroccov1.ListSandboxesRequest{All: true}) {
		if err != nil || sb.GetTenant() != "other" {
			t.Errorf("list shows %v, %v", sb, err)
		}
	}
	_, err := other.Nodes().Drain(t.Context(), connect.NewRequest(&siroccov1.DrainNodeRequest{Name: up.Node}))
	wantCode(t, "drain a node", err, sirocco.PermissionDenied)
	if got := sh(t, mine, "echo still here"); got != "still here" {
		t.Error(got)
	}
	if sb, err := client(t).Get(t.Context(), mine.ID); err != nil || sb.GetSpec().GetTags()["secret"] != "tag" || len(sb.GetTunnels()) != 1 {
		t.Errorf("it has changed: %v, %v", sb, err)
	}
	// The same name, tags and key are another sandbox for another tenant.
	theirs, err := other.Create(t.Context(), &siroccov1.CreateSandboxRequest{Name: "mine-alone", IdempotencyKey: mine.Record.GetIdempotencyKey()})
	if err != nil || theirs.ID == mine.ID || theirs.Existed {
		t.Fatalf("got %v, %v", theirs, err)
	}
	tokenOfAnother(t, mine, theirs)
	if _, err := theirs.Terminate(t.Context(), ""); err != nil {
		t.Error(err)
	}
}

// A token opens the data services of its own sandbox only.
func tokenOfAnother(t *testing.T, mine, theirs *sirocco.Sandbox) {
	t.Helper()
	token, err := theirs.Token(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	c := httpClient(t)
	base := token.GetDataUrl() + "/v1/sandboxes/" + mine.ID
	for _, r := range []struct{ method, path, body string }{
		{"GET", "/execs", ""}, {"POST", "/execs", `{"command":["true"]}`}, {"GET", "/execs/main", ""}, {"GET", "/execs/main/output", ""},
		{"POST", "/execs/main/stdin", `{"data":"eA=="}`}, {"POST", "/execs/main/signal", `{"signal":"KILL"}`}, {"POST", "/execs/main/resize", `{"size":{"rows":1,"cols":1}}`},
		{"GET", "/files?path=/", ""}, {"GET", "/files/content?path=/etc/passwd", ""}, {"GET", "/files/stat?path=/", ""}, {"DELETE", "/files?path=/etc", ""},
		{"POST", "/files/dir", `{"path":"/x"}`}, {"POST", "/files/move", `{"from":"/etc","to":"/x"}`}, {"GET", "/logs", ""},
	} {
		resp := restAt(t, c, r.method, base+r.path, r.body, token.GetToken())
		_ = resp.Body.Close()
		if resp.StatusCode != 403 && resp.StatusCode != 404 {
			t.Errorf("%s %s with another's token: %s", r.method, r.path, resp.Status)
		}
	}
}

// On the bus a tenant is confined to its own subjects, whoever it says it is.
func TestTenantsOnTheBus(t *testing.T) {
	t.Parallel()
	mine := create(t, nil)
	key := otherTenant(t)
	refused := make(chan error, 16)
	nc, err := nats.Connect(up.Bus, nats.UserInfo("other", key), nats.CustomInboxPrefix("_INBOX_other"), nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
		refused <- err
	}))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	body := fmt.Appendf(nil, `{"id":%q}`, mine.ID)
	msg, err := nc.Request("sirocco.api.other.sandbox.get", body, 10*time.Second)
	if err != nil || msg.Header.Get("Nats-Service-Error-Code") != "not_found" {
		t.Errorf("under its own name: %v, %v", msg, err)
	}
	mustRefuse := func(what string) {
		t.Helper()
		_ = nc.Flush()
		select {
		case err := <-refused:
			if !errors.Is(err, nats.ErrPermissionViolation) {
				t.Errorf("%s: %v", what, err)
			}
		case <-time.After(5 * time.Second):
			t.Errorf("%s was not refused", what)
		}
	}
	for _, subject := range []string{
		"sirocco.api.default.sandbox.get", "sirocco.api.default.sandbox.terminate", "sirocco.cmd.default.sandbox.terminate.x", "sirocco.node." + up.Node + ".inventory",
		"$KV.sirocco-sandboxes.default." + mine.ID, "$JS.API.STREAM.DELETE.SIROCCO_EVT", "$JS.API.STREAM.MSG.GET.KV_sirocco-keys",
	} {
		_ = nc.Publish(subject, body)
		mustRefuse("publish to " + subject)
	}
	for _, subject := range []string{"sirocco.evt.default.>", "sirocco.evt.>", "sirocco.cmd.>", ">", "_INBOX.>", "_INBOX_sirocco.>", "$KV.>"} {
		if _, err := nc.SubscribeSync(subject); err != nil {
			t.Fatal(err)
		}
		mustRefuse("subscribe to " + subject)
	}
	// A command under its own name about another's sandbox is rejected.
	events, err := nc.SubscribeSync("sirocco.evt.other.>")
	if err != nil {
		t.Fatal(err)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(t.Context(), "sirocco.cmd.other.sandbox.terminate.of-another", body); err != nil {
		t.Fatal(err)
	}
	for {
		msg, err := events.NextMsg(10 * time.Second)
		if err != nil {
			t.Fatalf("no event of the refusal: %v", err)
		}
		if strings.HasSuffix(msg.Subject, ".of-another") {
			var fact map[string]any
			if err := json.Unmarshal([]byte(msg.Header.Get("Sirocco-Fact")), &fact); err != nil || !strings.Contains(fmt.Sprint(fact), "not_found") {
				t.Errorf("the fact: %s, %v", msg.Header.Get("Sirocco-Fact"), err)
			}
			break
		}
	}
	if got := sh(t, mine, "echo still here"); got != "still here" {
		t.Error(got)
	}
	if _, err := nats.Connect(up.Bus, nats.UserInfo("default", key)); !errors.Is(err, nats.ErrAuthorization) {
		t.Errorf("another tenant's name with this key: %v", err)
	}
}
