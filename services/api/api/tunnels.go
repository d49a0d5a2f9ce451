package api

import (
	"context"
	"slices"

	"github.com/sirocco-run/sirocco/pkg/admission"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/subject"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/proto"
)

func (a *API) openTunnel(ctx context.Context, c caller, req *siroccov1.OpenTunnelRequest) (*siroccov1.Tunnel, error) {
	port := proto.CloneOf(req.GetPort())
	if err := admission.CheckPort("port", port); err != nil {
		return nil, err
	}
	if port.GetProtocol() == siroccov1.Protocol_PROTOCOL_TCP && a.env.Front.TCPFirst == 0 {
		return nil, fault.Invalid("port.protocol", "raw TCP is not offered here: the operator has set no range of public ports")
	}
	sb, err := a.findOpen(ctx, c, "sandbox_id", req.GetSandboxId())
	if err != nil {
		return nil, err
	}
	if t := published(sb, port); t != nil {
		return t, nil
	}
	if len(sb.GetTunnels()) >= lifecycle.MaxPorts {
		return nil, fault.Invalid("port", "the sandbox publishes %d ports; at most %d are allowed", len(sb.GetTunnels()), lifecycle.MaxPorts)
	}
	body := &siroccov1.OpenTunnelRequest{SandboxId: sb.GetId(), Port: port}
	sb, err = a.changeAndAwait(ctx, c, subject.VerbOpenTunnel, sb, body, effect{open: true, done: func(sb *siroccov1.Sandbox) bool {
		return published(sb, port) != nil
	}})
	if err != nil {
		return nil, err
	}
	return published(sb, port), nil
}

// published returns the tunnel of a port; nil if it is not published in just
// that way.
func published(sb *siroccov1.Sandbox, port *siroccov1.Port) *siroccov1.Tunnel {
	if !slices.ContainsFunc(sb.GetSpec().GetPorts(), func(p *siroccov1.Port) bool { return proto.Equal(p, port) }) {
		return nil
	}
	for _, t := range sb.GetTunnels() {
		if t.GetPort() == port.GetPort() {
			return t
		}
	}
	return nil
}

func (a *API) closeTunnel(ctx context.Context, c caller, req *siroccov1.CloseTunnelRequest) (*siroccov1.CloseTunnelResponse, error) {
	if req.GetPort() == 0 || req.GetPort() > 65535 {
		return nil, fault.Invalid("port", "%d is out of range: 1 to 65535", req.GetPort())
	}
	sb, err := a.findOpen(ctx, c, "sandbox_id", req.GetSandboxId())
	if err != nil {
		return nil, err
	}
	closed := func(sb *siroccov1.Sandbox) bool {
		for _, t := range sb.GetTunnels() {
			if t.GetPort() == req.GetPort() {
				return false
			}
		}
		return true
	}
	if closed(sb) {
		return nil, fault.New(fault.NotFound, "sandbox %s does not publish port %d", sb.GetId(), req.GetPort())
	}
	body := &siroccov1.CloseTunnelRequest{SandboxId: sb.GetId(), Port: req.GetPort()}
	if _, err := a.changeAndAwait(ctx, c, subject.VerbCloseTunnel, sb, body, effect{done: closed, open: true}); err != nil {
		return nil, err
	}
	return &siroccov1.CloseTunnelResponse{}, nil
}

func (a *API) listTunnels(ctx context.Context, c caller, req *siroccov1.ListTunnelsRequest) (*siroccov1.ListTunnelsResponse, error) {
	sb, err := a.find(ctx, c, "sandbox_id", req.GetSandboxId())
	if err != nil {
		return nil, err
	}
	return &siroccov1.ListTunnelsResponse{Tunnels: sb.GetTunnels()}, nil
}
