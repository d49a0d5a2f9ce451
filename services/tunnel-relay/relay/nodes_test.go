package relay

import (
	"context"
	"maps"
	"net/http"
	"testing"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/link"
	"github.com/sirocco-run/sirocco/pkg/subject"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/proto"
)

// entry is an entry of the bucket of nodes.
type entry struct {
	jetstream.KeyValueEntry
	key   string
	value []byte // nil when it was deleted or has expired
}

func (e entry) Key() string   { return e.key }
func (e entry) Value() []byte { return e.value }
func (e entry) Operation() jetstream.KeyValueOp {
	if e.value == nil {
		return jetstream.KeyValueDelete
	}
	return jetstream.KeyValuePut
}

func nodeEntry(t *testing.T, key string, node *siroccov1.Node) entry {
	t.Helper()
	raw, err := proto.Marshal(node)
	if err != nil {
		t.Fatal(err)
	}
	return entry{key: key, value: raw}
}

// Only nodes on this machine have a socket that is used, and only for as long as
// they say so.
func TestNeighbours(t *testing.T) {
	sockets := map[string]string{}
	n := neighbours{machine: "here", known: map[string]string{}, tell: func(address, socket string) {
		if sockets[address] = socket; socket == "" {
			delete(sockets, address)
		}
	}}
	for _, step := range []struct {
		what string
		node *siroccov1.Node // nil: it is gone
		want map[string]string
	}{
		{"on another machine", &siroccov1.Node{Address: "a:1", BootId: "there", LinkSocket: "/s"}, nil},
		{"here, without a socket", &siroccov1.Node{Address: "a:1", BootId: "here"}, nil},
		{"here", &siroccov1.Node{Address: "a:1", BootId: "here", LinkSocket: "/s"}, map[string]string{"a:1": "/s"}},
		{"started again", &siroccov1.Node{Address: "a:1", BootId: "here", LinkSocket: "/t"}, map[string]string{"a:1": "/t"}},
		{"at another address", &siroccov1.Node{Address: "a:2", BootId: "here", LinkSocket: "/t"}, map[string]string{"a:2": "/t"}},
		{"gone", nil, nil},
		{"back", &siroccov1.Node{Address: "a:2", BootId: "here", LinkSocket: "/u"}, map[string]string{"a:2": "/u"}},
		{"moved to another machine", &siroccov1.Node{Address: "a:2", BootId: "there", LinkSocket: "/u"}, nil},
	} {
		e := entry{key: "test.n"}
		if step.node != nil {
			e = nodeEntry(t, e.key, step.node)
		}
		n.see(e)
		if !maps.Equal(sockets, step.want) {
			t.Errorf("%s: %v, want %v", step.what, sockets, step.want)
		}
	}
	n.see(nil) // the end of what was there
	n.see(entry{key: "test.n", value: []byte("\xff")})
	if len(sockets)+len(n.known) != 0 {
		t.Errorf("left: %v, %v", sockets, n.known)
	}
}

// The relay hears from the bus which agents are here, and reaches those by their
// sockets; requests notice nothing.
func TestANodeOnThisMachineIsReachedByItsSocket(t *testing.T) {
	g := newRig(t, Config{})
	machine, err := link.MachineID()
	if err != nil {
		t.Fatal(err)
	}
	kv, err := g.js.KeyValue(t.Context(), subject.BucketNodes)
	if err != nil {
		t.Fatal(err)
	}
	say := func(name string, a *agent, machine string) {
		node := nodeEntry(t, subject.NodeKey("test", name), &siroccov1.Node{Name: name, Address: a.address, BootId: machine, LinkSocket: a.listenLocal()})
		if _, err := kv.Put(t.Context(), node.key, node.value); err != nil {
			t.Fatal(err)
		}
	}
	network := func(a *agent, sb *siroccov1.Sandbox) string {
		h := link.Header{Kind: link.KindData, Sandbox: sb.GetId(), Epoch: sb.GetPlacement().GetEpoch()}
		conn, err := g.relay.router.dialer.Open(context.Background(), a.address, h)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		return conn.LocalAddr().Network()
	}
	far, near := g.agent(), g.agent()
	answer := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("hello")) })
	there, here := g.app(far, answer), g.app(near, answer)
	say("far", far, "another")
	say("near", near, machine)
	eventually(t, "the node here is reached by its socket", func() bool { return network(near, here) == "unix" })
	if got := network(far, there); got != "tcp" {
		t.Errorf("the node on another machine is reached by %s", got)
	}
	for _, sb := range []*siroccov1.Sandbox{there, here} {
		if resp, body := get(t, g.client(false), g.url(sb, "/")); resp.StatusCode != http.StatusOK || body != "hello" {
			t.Errorf("%d %q", resp.StatusCode, body)
		}
	}
}
