package api_test

import (
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/bustest"
	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/peer"
	"github.com/sirocco-run/sirocco/pkg/program"
	"github.com/sirocco-run/sirocco/pkg/subject"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/sirocco-run/sirocco/services/api/api"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// A sandbox has left eu and is not yet in us: who asks us or a third region for it is
// answered as soon as it has arrived, and not told that there is none.
func TestAskedForOnItsWay(t *testing.T) {
	names := []string{"eu", "us", "ap"}
	urls, servers, all := map[string]string{}, map[string]*server.Server{}, map[string]*region{}
	for _, name := range names {
		servers[name] = bustest.Server(t, nil)
		urls[name] = servers[name].ClientURL()
	}
	for _, name := range names {
		peers := peer.NewSet(name, urls, func(url string) (*nats.Conn, error) {
			return nats.Connect(url, nats.CustomInboxPrefix(bus.ServiceInbox))
		})
		t.Cleanup(peers.Close)
		nc, js := bustest.Connect(t, servers[name])
		all[name] = startIn(t, program.Env{Region: name, NC: nc, JS: js, Peers: peers}, api.Config{})
	}
	eu, us, ap := all["eu"], all["us"], all["ap"]
	ctx := t.Context()
	resp := &siroccov1.CreateSandboxResponse{}
	if err := bus.Ask(ctx, eu.nc, subject.API("acme", "sandbox", "create"), &siroccov1.CreateSandboxRequest{Regions: names}, resp); err != nil {
		t.Fatal(err)
	}
	id := resp.GetSandbox().GetId()
	epoch := resp.GetSandbox().GetPlacement().GetEpoch() + 1
	move := &siroccov1.Move{Key: "k", Region: "us", Node: "n1", NodeAddress: "127.0.0.1:1", Epoch: epoch, Deadline: timestamppb.New(time.Now().Add(wait))}
	var left *siroccov1.Sandbox
	for _, step := range []lifecycle.Step{lifecycle.Migrate{Move: move}, lifecycle.Depart{Epoch: epoch}} {
		var err error
		if left, err = eu.store.Update(ctx, "acme", id, nil, step); err == nil && left.GetPlacement().GetRegion() == "eu" {
			err = us.store.Announce(ctx, left, "us")
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	// It arrives a moment after somebody was asked, who does not know where it is either.
	questions, answered := make(chan *nats.Msg, 100), make(chan *nats.Msg, 1000)
	for _, r := range []*region{eu, us} {
		for subject, to := range map[string]chan *nats.Msg{subject.API("acme", "sandbox", "*"): questions, bus.ServiceInbox + ".>": answered} {
			if _, err := r.nc.ChanSubscribe(subject, to); err != nil {
				t.Fatal(err)
			}
		}
		if err := r.nc.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	type answer struct {
		how string
		sb  *siroccov1.Sandbox
		err error
	}
	answers := make(chan answer, 2)
	ask := func(r *region, verb string, req proto.Message) {
		sb := &siroccov1.Sandbox{}
		err := bus.Ask(ctx, r.nc, subject.API("acme", "sandbox", verb), req, sb)
		answers <- answer{verb + " through " + r.name, sb, err}
	}
	go ask(us, "get", &siroccov1.GetSandboxRequest{Id: id})
	go ask(ap, "terminate", &siroccov1.TerminateSandboxRequest{Id: id})
	var question *nats.Msg
	select {
	case question = <-questions:
	case <-time.After(wait):
		t.Fatal("nobody was asked")
	}
	for moment, said := time.After(300*time.Millisecond), ""; said != question.Reply; {
		select {
		case msg := <-answered:
			said = msg.Subject
		case <-moment: // whoever waits for it says nothing yet
			said = question.Reply
		}
	}
	arrived, err := us.store.Land(ctx, left, "us", lifecycle.Arrive{Observed: &siroccov1.Observed{Epoch: epoch}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := eu.store.Update(ctx, "acme", id, nil, lifecycle.OfShadow{Region: "eu", Step: lifecycle.Follow{Region: "eu", Record: arrived}}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		// A get may be answered with what eu knew a moment before.
		if got := <-answers; got.err != nil || got.sb.GetId() != id {
			t.Errorf("%s while it was on its way: %v", got.how, got.err)
		}
	}
	sb := &siroccov1.Sandbox{}
	if err := bus.Ask(ctx, ap.nc, subject.API("acme", "sandbox", "get"), &siroccov1.GetSandboxRequest{Id: id}, sb); err != nil || sb.GetState() != siroccov1.State_STATE_STOPPED {
		t.Errorf("asked for behind that: %v, %v", sb.GetState(), err)
	}
}
