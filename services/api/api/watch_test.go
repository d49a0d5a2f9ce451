package api_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/sirocco-run/sirocco/pkg/apikey"
	"github.com/sirocco-run/sirocco/pkg/bustest"
	"github.com/sirocco-run/sirocco/pkg/subject"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/sirocco-run/sirocco/proto/gen/sirocco/v1/siroccov1connect"
	"github.com/sirocco-run/sirocco/services/api/api"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// sse reads server-sent events.
type sse struct {
	t    testing.TB
	resp *http.Response
	in   *bufio.Scanner
}

func (r *region) events(ctx context.Context, key, query, last string) *sse {
	r.t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.url+"/v1/events"+query, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+key)
	if last != "" {
		req.Header.Set("Last-Event-ID", last)
	}
	resp, err := (&http.Client{}).Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { resp.Body.Close() })
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "text/event-stream" {
		r.t.Fatalf("events: %v", resp)
	}
	s := &sse{t: r.t, resp: resp, in: bufio.NewScanner(resp.Body)}
	s.in.Buffer(nil, 1<<20)
	return s
}

func (s *sse) next() (id, name string, event *siroccov1.SandboxEvent) {
	s.t.Helper()
	for s.in.Scan() {
		field, value, _ := strings.Cut(s.in.Text(), ": ")
		switch field {
		case "id":
			id = value
		case "event":
			name = value
		case "data":
			event = &siroccov1.SandboxEvent{}
			if err := protojson.Unmarshal([]byte(value), event); err != nil {
				s.t.Fatal(err)
			}
			return id, name, event
		}
	}
	s.t.Fatalf("the stream ended: %v", s.in.Err())
	return "", "", nil
}

// Every change is an event, live and replayed, the same over all transports.
func TestWatch(t *testing.T) {
	r := start(t, api.Config{})
	key := r.key("acme", apikey.RoleTenant)
	ctx, cancel := context.WithTimeout(t.Context(), 2*wait)
	defer cancel()
	h2c := &http.Transport{Protocols: &http.Protocols{}}
	h2c.Protocols.SetUnencryptedHTTP2(true)
	defer h2c.CloseIdleConnections()
	watch := func(client *http.Client, from uint64, id string, opts ...connect.ClientOption) *connect.ServerStreamForClient[siroccov1.SandboxEvent] {
		t.Helper()
		req := connect.NewRequest(&siroccov1.WatchSandboxesRequest{FromSequence: from, Id: id})
		req.Header().Set("Authorization", "Bearer "+key)
		stream, err := siroccov1connect.NewSandboxServiceClient(client, r.url, opts...).Watch(ctx, req)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = stream.Close() })
		return stream
	}
	live := r.events(ctx, key, "", "")
	// A watcher that never reads must not keep the others.
	lazy := watch(&http.Client{Transport: h2c}, 1, "", connect.WithGRPC())
	liveGRPC := watch(&http.Client{Transport: h2c}, 0, "", connect.WithGRPC())

	tr := r.transports("acme", key)[1]
	resp := &siroccov1.CreateSandboxResponse{}
	if err := tr.call(ctx, "SandboxService/Create", &siroccov1.CreateSandboxRequest{Name: "seen"}, resp); err != nil {
		t.Fatal(err)
	}
	// What happens to others is not seen.
	if err := r.transports("other", r.key("other", apikey.RoleTenant))[1].call(ctx, "SandboxService/Create", &siroccov1.CreateSandboxRequest{}, &siroccov1.CreateSandboxResponse{}); err != nil {
		t.Fatal(err)
	}
	if err := tr.call(ctx, "SandboxService/Terminate", &siroccov1.TerminateSandboxRequest{Id: "seen"}, &siroccov1.Sandbox{}); err != nil {
		t.Fatal(err)
	}
	want := []string{"accepted", "placed", "starting", "running", "stopping", "stopped"}
	var all []*siroccov1.SandboxEvent
	var ids []string
	for _, name := range want {
		id, got, event := live.next()
		if got != name || id != fmt.Sprint(event.GetSequence()) || event.GetSandbox().GetId() != resp.GetSandbox().GetId() || event.GetSandbox().GetRevision() == 0 || event.GetAt() == nil {
			t.Errorf("event %s %s: %v; want %s", id, got, event, name)
		}
		ids, all = append(ids, id), append(all, event)
	}
	if got := all[3].GetSandbox(); !proto.Equal(got, resp.GetSandbox()) {
		t.Errorf("the event of running: %v\nthe answer: %v", got, resp.GetSandbox())
	}
	// A command that can't be understood is an event too.
	letter := nats.NewMsg(subject.DeadLetter(subject.StreamCommands, subject.ConsumerScheduler, "acme", "k9"))
	body, err := proto.Marshal(&siroccov1.RejectedCommand{Tenant: "acme", Key: "k9", Verb: "create", Code: "invalid_argument", Message: "no", Field: "image"})
	if err != nil {
		t.Fatal(err)
	}
	letter.Data = body
	letter.Header.Set(subject.HeaderEvent, "rejected")
	if _, err := r.js.PublishMsg(ctx, letter); err != nil {
		t.Fatal(err)
	}
	_, name, event := live.next()
	if name != "rejected" || event.GetRejected().GetKey() != "k9" || event.GetRejected().GetField() != "image" {
		t.Errorf("rejected: %s %v", name, event)
	}
	all = append(all, event)

	check := func(how string, got *siroccov1.SandboxEvent, want *siroccov1.SandboxEvent) {
		t.Helper()
		if !proto.Equal(got, want) {
			t.Errorf("%s: %v\nwant %v", how, got, want)
		}
	}
	for _, w := range all {
		if !liveGRPC.Receive() {
			t.Fatal(liveGRPC.Err())
		}
		check("live gRPC", liveGRPC.Msg(), w)
	}
	for name, stream := range map[string]*connect.ServerStreamForClient[siroccov1.SandboxEvent]{
		"gRPC": watch(&http.Client{Transport: h2c}, 1, "", connect.WithGRPC()), "Connect": watch(&http.Client{}, 1, ""), "Connect JSON": watch(&http.Client{}, 1, "", connect.WithProtoJSON()),
		"the lazy one": lazy,
	} {
		for _, w := range all {
			if !stream.Receive() {
				t.Fatalf("replay over %s: %v", name, stream.Err())
			}
			check("replay over "+name, stream.Msg(), w)
		}
	}
	replayed := r.events(ctx, key, "?from=1", "")
	resumed := r.events(ctx, key, "", ids[2])
	one := r.events(ctx, key, "?from=1&id="+resp.GetSandbox().GetId(), "")
	for i, w := range all {
		_, _, got := replayed.next()
		check("replay over SSE", got, w)
		if w.GetSandbox() != nil {
			_, _, got := one.next()
			check("events of one sandbox", got, w)
		}
		if i > 2 {
			_, _, got := resumed.next()
			check("resumed over SSE", got, w)
		}
	}
	// The same over the bus: one message each, and one that ends it.
	inbox := r.nc.NewInbox()
	sub, err := r.nc.SubscribeSync(inbox)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.nc.PublishRequest(subject.API("acme", "sandbox", "events"), inbox, []byte(`{"from_sequence":1}`)); err != nil {
		t.Fatal(err)
	}
	for _, w := range all {
		msg, err := sub.NextMsgWithContext(ctx)
		if err != nil {
			t.Fatal(err)
		}
		got := &siroccov1.SandboxEvent{}
		if err := protojson.Unmarshal(msg.Data, got); err != nil {
			t.Fatalf("%q: %v", msg.Data, err)
		}
		check("replay over the bus", got, w)
	}
	msg, err := sub.NextMsgWithContext(ctx)
	if err != nil || len(msg.Data) != 0 || msg.Header.Get(subject.HeaderEvent) != "end" || msg.Header.Get(api.HeaderNext) != fmt.Sprint(all[len(all)-1].GetSequence()+1) {
		t.Errorf("the end of a replay: %+v, %v", msg, err)
	}
	cancel()
}

// A watch goes on, without a gap, when its consumer is lost.
func TestWatchSurvivesTheLossOfItsConsumer(t *testing.T) {
	r := start(t, api.Config{})
	key := r.key("acme", apikey.RoleTenant)
	ctx, cancel := context.WithTimeout(t.Context(), 3*wait)
	defer cancel()
	stream := r.events(ctx, key, "", "")
	tr := r.transports("acme", key)[1]
	var last uint64
	for i := range 3 {
		if err := tr.call(ctx, "SandboxService/Create", &siroccov1.CreateSandboxRequest{}, &siroccov1.CreateSandboxResponse{}); err != nil {
			t.Fatal(err)
		}
		for range 4 {
			_, _, event := stream.next()
			if event.GetSequence() <= last {
				t.Errorf("round %d: %d after %d", i, event.GetSequence(), last)
			}
			last = event.GetSequence()
		}
		events, err := r.js.Stream(ctx, subject.StreamEvents)
		if err != nil {
			t.Fatal(err)
		}
		names := events.ConsumerNames(ctx)
		for name := range names.Name() {
			if err := events.DeleteConsumer(ctx, name); err != nil {
				t.Fatal(err)
			}
		}
	}
	cancel()
}

func TestOpenAPIAndHealth(t *testing.T) {
	r := start(t, api.Config{})
	for path, want := range map[string]string{"/healthz": "ok", "/readyz": "ready"} {
		resp, err := http.Get(r.url + path)
		if err != nil {
			t.Fatal(err)
		}
		line, _ := bufio.NewReader(resp.Body).ReadString('\n')
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK || strings.TrimSpace(line) != want {
			t.Errorf("%s: %d %q", path, resp.StatusCode, line)
		}
	}
	resp, err := http.Get(r.url + "/openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var doc struct {
		OpenAPI string `json:"openapi"`
		Paths   map[string]any
	}
	if err := json.NewDecoder(resp.Body).Decode(&doc); err != nil || !strings.HasPrefix(doc.OpenAPI, "3.") || doc.Paths["/v1/sandboxes/{id}"] == nil {
		t.Errorf("%v: %v", err, doc)
	}
}

// A watch goes on, without a gap, when the bus was restarted, and so does
// everything else.
func TestTheBusComesBack(t *testing.T) {
	dir := t.TempDir()
	port := server.RANDOM_PORT
	configure := func(o *server.Options) { o.StoreDir, o.Port = dir, port }
	s := bustest.Server(t, configure)
	nc, js := bustest.Connect(t, s)
	r := startOn(t, nc, js, api.Config{})
	key := r.key("acme", apikey.RoleTenant)
	ctx, cancel := context.WithTimeout(t.Context(), 3*wait)
	defer cancel()
	stream := r.events(ctx, key, "", "")
	var last uint64
	round := func(name string) {
		t.Helper()
		tr := r.transports("acme", key)[1]
		resp := &siroccov1.CreateSandboxResponse{}
		if err := tr.call(ctx, "SandboxService/Create", &siroccov1.CreateSandboxRequest{}, resp); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for _, want := range []string{"accepted", "placed", "starting", "running"} {
			_, got, event := stream.next()
			if got != want || event.GetSandbox().GetId() != resp.GetSandbox().GetId() || event.GetSequence() <= last {
				t.Errorf("%s: %s %v; want %s", name, got, event, want)
			}
			last = event.GetSequence()
		}
	}
	round("before")
	port = s.Addr().(*net.TCPAddr).Port
	back := nc.StatusChanged(nats.CONNECTED)
	s.Shutdown()
	s.WaitForShutdown()
	began := time.Now()
	bustest.Server(t, configure)
	<-back
	round("after")
	t.Logf("%v from the restart of the bus to the last event", time.Since(began))
}
