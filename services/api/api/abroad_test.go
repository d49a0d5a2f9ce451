package api_test

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/sirocco-run/sirocco/pkg/apikey"
	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/bustest"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/peer"
	"github.com/sirocco-run/sirocco/pkg/program"
	"github.com/sirocco-run/sirocco/pkg/subject"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/sirocco-run/sirocco/proto/gen/sirocco/v1/siroccov1connect"
	"github.com/sirocco-run/sirocco/services/api/api"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

// pair is two regions; the bus of the second can be killed and brought back.
type pair struct {
	t      testing.TB
	eu, us *region
	euKey  string
	usKey  string

	usPort int
	usDir  string
	usBus  *server.Server
}

func startPair(t testing.TB) *pair {
	t.Helper()
	p := &pair{t: t, usPort: server.RANDOM_PORT, usDir: t.TempDir()}
	euBus := bustest.Server(t, nil)
	p.usUp()
	p.usPort = p.usBus.Addr().(*net.TCPAddr).Port
	urls := map[string]string{"eu": euBus.ClientURL(), "us": p.usBus.ClientURL()}
	begin := func(name string, s *server.Server) *region {
		nc, js := bustest.Connect(t, s)
		peers := peer.NewSet(name, urls, func(url string) (*nats.Conn, error) {
			return nats.Connect(url, nats.CustomInboxPrefix(bus.ServiceInbox), nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.ReconnectWait(20*time.Millisecond))
		})
		t.Cleanup(peers.Close)
		return startIn(t, program.Env{Region: name, NC: nc, JS: js, Peers: peers}, api.Config{RegionLostAfter: time.Second})
	}
	p.us = begin("us", p.usBus)
	p.eu = begin("eu", euBus)
	// A service that ends while a bus is away waits for it for some seconds.
	t.Cleanup(func() {
		if !p.usBus.Running() {
			p.usUp()
		}
	})
	p.euKey, p.usKey = p.eu.key("acme", apikey.RoleTenant), p.us.key("acme", apikey.RoleTenant)
	return p
}

func (p *pair) usUp() {
	p.usBus = bustest.Server(p.t, func(o *server.Options) { o.Port, o.StoreDir = p.usPort, p.usDir })
}

func (p *pair) usDown() {
	p.usBus.Shutdown()
	p.usBus.WaitForShutdown()
}

// create makes a sandbox in a region, through it.
func (p *pair) create(r *region, req *siroccov1.CreateSandboxRequest) *siroccov1.Sandbox {
	p.t.Helper()
	resp := &siroccov1.CreateSandboxResponse{}
	ctx, cancel := context.WithTimeout(p.t.Context(), wait)
	defer cancel()
	if err := bus.Ask(ctx, r.nc, subject.API("acme", "sandbox", "create"), req, resp); err != nil {
		p.t.Fatal(err)
	}
	return resp.GetSandbox()
}

// eventually asks again until check is content.
func eventually(t testing.TB, check func() error) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(wait); ; <-tick.C {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %v", wait, err)
		}
	}
}

// What was in a region that is away is shown, and said to be lost, over every way in;
// it can't be changed, and the error says so; when the region is back it answers again.
func TestALostRegion(t *testing.T) {
	p := startPair(t)
	far := p.create(p.us, &siroccov1.CreateSandboxRequest{Name: "far"})
	near := p.create(p.eu, &siroccov1.CreateSandboxRequest{Name: "near"})
	ways := p.eu.transports("acme", p.euKey)
	get := func(tr transport, id string) (*siroccov1.Sandbox, error) {
		sb := &siroccov1.Sandbox{}
		return sb, tr.call(t.Context(), "SandboxService/Get", &siroccov1.GetSandboxRequest{Id: id}, sb)
	}
	eventually(t, func() error {
		sb, err := get(ways[1], "far")
		if err == nil && (sb.GetId() != far.GetId() || sb.GetLost() != nil) {
			t.Fatalf("us answers with %v", sb)
		}
		return err
	})
	// What is in both is asked for until what us said has reached eu.
	eventually(t, func() error {
		page := &siroccov1.ListSandboxesResponse{}
		err := ways[1].call(t.Context(), "SandboxService/List", &siroccov1.ListSandboxesRequest{}, page)
		if err == nil && (len(page.GetSandboxes()) != 2 || len(page.GetLostRegions())+len(page.GetMissingRegions()) > 0) {
			return fmt.Errorf("the list is %v", page)
		}
		return err
	})

	p.usDown()
	for _, tr := range ways {
		for _, id := range []string{far.GetId(), "far"} {
			began := time.Now()
			sb, err := get(tr, id)
			if err != nil {
				t.Fatalf("%s: %v", tr.name, err)
			}
			if took := time.Since(began); took > time.Second {
				t.Errorf("%s: it took %v", tr.name, took)
			}
			lost := sb.GetLost()
			if sb.GetId() != far.GetId() || sb.GetState() != siroccov1.State_STATE_RUNNING || lost.GetRegion() != "us" || lost.GetSince() == nil || lost.GetNote() == "" {
				t.Errorf("%s: %v", tr.name, sb)
			}
		}
		if sb, err := get(tr, near.GetId()); err != nil || sb.GetLost() != nil {
			t.Errorf("%s: one that is here: %v, %v", tr.name, sb, err)
		}
		if _, err := get(tr, "nobody"); fault.CodeOf(err) != fault.Unavailable {
			t.Errorf("%s: one that us may have: %v", tr.name, err)
		}
		page := &siroccov1.ListSandboxesResponse{}
		if err := tr.call(t.Context(), "SandboxService/List", &siroccov1.ListSandboxesRequest{}, page); err != nil {
			t.Fatalf("%s: %v", tr.name, err)
		}
		var lost []string
		for _, sb := range page.GetSandboxes() {
			lost = append(lost, sb.GetSpec().GetName()+" "+sb.GetLost().GetRegion())
		}
		slices.Sort(lost)
		if !slices.Equal(lost, []string{"far us", "near "}) || len(page.GetMissingRegions()) > 0 || len(page.GetLostRegions()) != 1 || page.GetLostRegions()[0].GetRegion() != "us" {
			t.Errorf("%s: the list is %v", tr.name, page)
		}
		for name, req := range map[string]proto.Message{
			"SandboxService/Terminate": &siroccov1.TerminateSandboxRequest{Id: far.GetId()},
			"SandboxService/Extend":    &siroccov1.ExtendSandboxRequest{Id: "far", By: durationpb.New(time.Minute)},
		} {
			err := tr.call(t.Context(), name, req, &siroccov1.Sandbox{})
			if f := fault.From(err); f.Code != fault.Unavailable || f.Scope != "region" || f.RetryAfter <= 0 || !strings.Contains(f.Message, "us has been silent since") {
				t.Errorf("%s: %s: %v", tr.name, name, err)
			}
		}
	}
	// A stranger is told nothing of it.
	if _, err := get(p.eu.transports("other", p.eu.key("other", apikey.RoleTenant))[1], far.GetId()); fault.CodeOf(err) != fault.Unavailable || strings.Contains(err.Error(), "silent") {
		t.Errorf("another tenant: %v", err)
	}
	eventually(t, func() error {
		if sb, err := get(ways[1], "far"); err != nil || !sb.GetLost().GetDead() {
			return fmt.Errorf("it is not dead: %v, %v", sb.GetLost(), err)
		}
		return nil
	})
	for filter, want := range map[*siroccov1.ListSandboxesRequest]int{
		{Name: "far"}: 1, {States: []siroccov1.State{siroccov1.State_STATE_STOPPED}}: 0, {PageSize: 1}: 1, {PageToken: min(far.GetId(), near.GetId())}: 0,
	} {
		page := &siroccov1.ListSandboxesResponse{}
		if err := ways[1].call(t.Context(), "SandboxService/List", filter, page); err != nil || len(page.GetSandboxes()) != want {
			t.Errorf("%v: %v, %v; want %d", filter, page, err, want)
		}
	}

	p.usUp()
	eventually(t, func() error {
		sb, err := get(ways[1], "far")
		if err == nil && sb.GetLost() != nil {
			err = fmt.Errorf("still lost: %v", sb.GetLost())
		}
		return err
	})
	// Its bus may be back before its api.
	eventually(t, func() error {
		return ways[1].call(t.Context(), "SandboxService/Terminate", &siroccov1.TerminateSandboxRequest{Id: far.GetId()}, &siroccov1.Sandbox{})
	})
}

// One that has gone to a region that was lost before it said so is known by what it
// left behind.
func TestLostOnArrival(t *testing.T) {
	p := startPair(t)
	sb := p.create(p.eu, &siroccov1.CreateSandboxRequest{})
	p.usDown()
	for _, step := range []lifecycle.Step{
		lifecycle.Migrate{Move: &siroccov1.Move{Key: "m", Region: "us", Node: "n9", Epoch: 2}}, lifecycle.Depart{Epoch: 2},
	} {
		if _, err := p.eu.store.Update(t.Context(), "acme", sb.GetId(), nil, step); err != nil {
			t.Fatal(err)
		}
	}
	tr := p.eu.transports("acme", p.euKey)[1]
	eventually(t, func() error {
		got, page := &siroccov1.Sandbox{}, &siroccov1.ListSandboxesResponse{}
		if err := tr.call(t.Context(), "SandboxService/Get", &siroccov1.GetSandboxRequest{Id: sb.GetId()}, got); err != nil {
			return err
		}
		if got.GetLost().GetRegion() != "us" || got.GetPlacement().GetEpoch() != 2 {
			return fmt.Errorf("it is %v", got)
		}
		if err := tr.call(t.Context(), "SandboxService/List", &siroccov1.ListSandboxesRequest{}, page); err != nil {
			return err
		}
		if len(page.GetSandboxes()) != 1 || page.GetSandboxes()[0].GetLost().GetRegion() != "us" {
			return fmt.Errorf("the list is %v", page)
		}
		return nil
	})
}

// cursorWatch follows by cursor over gRPC.
func (r *region) cursorWatch(ctx context.Context, key string, req *siroccov1.WatchSandboxesRequest) *connect.ServerStreamForClient[siroccov1.SandboxEvent] {
	r.t.Helper()
	watch := connect.NewRequest(req)
	watch.Header().Set("Authorization", "Bearer "+key)
	stream, err := siroccov1connect.NewSandboxServiceClient(client, r.url).Watch(ctx, watch)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = stream.Close() })
	return stream
}
