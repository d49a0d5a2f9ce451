package api_test

import (
	"context"
	"testing"
	"time"

	"github.com/sirocco-run/sirocco/pkg/apikey"
	"github.com/sirocco-run/sirocco/pkg/fault"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/sirocco-run/sirocco/services/api/api"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

// Every way in gives the same records and answers.
func TestEveryTransportIsTheSameApi(t *testing.T) {
	r := start(t, api.Config{})
	key := r.key("acme", apikey.RoleTenant)
	ctx, cancel := context.WithTimeout(t.Context(), 2*wait)
	defer cancel()
	all := r.transports("acme", key)
	for _, tr := range all {
		t.Run(tr.name, func(t *testing.T) {
			created := &siroccov1.CreateSandboxResponse{}
			err := tr.call(ctx, "SandboxService/Create", &siroccov1.CreateSandboxRequest{
				Command: []string{"echo", "hi"}, Name: "web-" + tr.name, Tags: map[string]string{"via": tr.name}, Env: map[string]string{"A": "ä"},
				Ports: []*siroccov1.Port{{Port: 3000}},
			}, created)
			if err != nil {
				t.Fatal(err)
			}
			sb := created.GetSandbox()
			if sb.GetState() != siroccov1.State_STATE_RUNNING || created.GetExisted() || sb.GetTenant() != "acme" || sb.GetRevision() == 0 {
				t.Fatalf("created: %v", created)
			}
			if created.GetToken().GetDataUrl() != "https://data.sandbox.localhost:7443" || created.GetToken().GetToken() == "" {
				t.Fatalf("token: %v", created.GetToken())
			}
			if want := "https://3000-" + sb.GetId() + ".sandbox.localhost:7443/"; sb.GetTunnels()[0].GetUrl() != want {
				t.Fatalf("tunnel %q; want %q", sb.GetTunnels()[0].GetUrl(), want)
			}
			// The same record by all the others, by id and by name.
			for _, other := range all {
				for _, id := range []string{sb.GetId(), "web-" + tr.name} {
					got := &siroccov1.Sandbox{}
					if err := other.call(ctx, "SandboxService/Get", &siroccov1.GetSandboxRequest{Id: id}, got); err != nil {
						t.Fatalf("get %s over %s: %v", id, other.name, err)
					}
					if !proto.Equal(got, sb) {
						t.Errorf("over %s: %v\nwant %v", other.name, got, sb)
					}
				}
			}
			step := func(procedure string, req, resp proto.Message) {
				t.Helper()
				if err := tr.call(ctx, procedure, req, resp); err != nil {
					t.Fatalf("%s: %v", procedure, err)
				}
			}
			got := &siroccov1.Sandbox{}
			step("SandboxService/Extend", &siroccov1.ExtendSandboxRequest{Id: sb.GetId(), By: durationpb.New(time.Hour)}, got)
			if left := time.Until(got.GetDesired().GetDeadline().AsTime()); left < 59*time.Minute || left > 61*time.Minute {
				t.Errorf("extended by an hour; %v left", left)
			}
			step("SandboxService/SetTags", &siroccov1.SetTagsRequest{Id: sb.GetId(), Tags: map[string]string{"x": "y"}}, got)
			if len(got.GetSpec().GetTags()) != 1 || got.GetSpec().GetTags()["x"] != "y" {
				t.Errorf("tags: %v", got.GetSpec().GetTags())
			}
			opened := &siroccov1.Tunnel{}
			for range 2 { // opening twice is no error
				step("TunnelService/Open", &siroccov1.OpenTunnelRequest{SandboxId: sb.GetId(), Port: &siroccov1.Port{Port: 8000, BearerToken: "s3cret"}}, opened)
				if opened.GetPort() != 8000 || !opened.GetAuthenticated() {
					t.Errorf("opened: %v", opened)
				}
			}
			tunnels := &siroccov1.ListTunnelsResponse{}
			step("TunnelService/List", &siroccov1.ListTunnelsRequest{SandboxId: sb.GetId()}, tunnels)
			if len(tunnels.GetTunnels()) != 2 {
				t.Errorf("tunnels: %v", tunnels)
			}
			step("TunnelService/Close", &siroccov1.CloseTunnelRequest{SandboxId: sb.GetId(), Port: 8000}, &siroccov1.CloseTunnelResponse{})
			fresh := &siroccov1.SandboxToken{}
			step("SandboxService/CreateToken", &siroccov1.CreateTokenRequest{Id: sb.GetId(), Ttl: durationpb.New(time.Minute)}, fresh)
			if left := time.Until(fresh.GetExpiresAt().AsTime()); left > time.Minute || left < 50*time.Second {
				t.Errorf("token for a minute; %v left", left)
			}
			for range 2 { // ending twice is no error
				step("SandboxService/Terminate", &siroccov1.TerminateSandboxRequest{Id: sb.GetId()}, got)
				if got.GetState() != siroccov1.State_STATE_STOPPED || got.GetEnd().GetCause() != siroccov1.Cause_CAUSE_USER {
					t.Errorf("terminated: %v", got)
				}
			}
			for procedure, req := range map[string]proto.Message{
				"SandboxService/Extend": &siroccov1.ExtendSandboxRequest{Id: sb.GetId(), By: durationpb.New(time.Hour)},
				"TunnelService/Open":    &siroccov1.OpenTunnelRequest{SandboxId: sb.GetId(), Port: &siroccov1.Port{Port: 8000}},
			} {
				if err := tr.call(ctx, procedure, req, &siroccov1.Sandbox{}); fault.CodeOf(err) != fault.FailedPrecondition {
					t.Errorf("%s of what has ended: %v", procedure, err)
				}
			}
			// What it wrote can still be read.
			step("SandboxService/CreateToken", &siroccov1.CreateTokenRequest{Id: sb.GetId()}, fresh)
			// The name is free again.
			if err := tr.call(ctx, "SandboxService/Get", &siroccov1.GetSandboxRequest{Id: "web-" + tr.name}, got); fault.CodeOf(err) != fault.NotFound {
				t.Errorf("get by the name of what has ended: %v", err)
			}
		})
	}
}

func TestFailedSandboxes(t *testing.T) {
	r := start(t, api.Config{})
	for _, tr := range r.transports("acme", r.key("acme", apikey.RoleTenant)) {
		create := func(image string) (*siroccov1.Sandbox, error) {
			resp := &siroccov1.CreateSandboxResponse{}
			err := tr.call(t.Context(), "SandboxService/Create", &siroccov1.CreateSandboxRequest{Image: image}, resp)
			return resp.GetSandbox(), err
		}
		// What was started and failed is an answer.
		if sb, err := create("unprobed"); err != nil || sb.GetState() != siroccov1.State_STATE_FAILED || sb.GetEnd().GetCause() != siroccov1.Cause_CAUSE_PROBE_FAILED {
			t.Errorf("%s: %v, %v", tr.name, sb, err)
		}
		// What could not be had is an error.
		if _, err := create("missing"); fault.CodeOf(err) != fault.ImageNotFound {
			t.Errorf("%s: no image: %v", tr.name, err)
		}
		_, err := create("too-big")
		if f := fault.From(err); f.Code != fault.NoCapacity || f.Scope != "node" || f.RetryAfter <= 0 {
			t.Errorf("%s: no capacity: %+v", tr.name, f)
		}
	}
}
