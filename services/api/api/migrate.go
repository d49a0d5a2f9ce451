package api

import (
	"context"
	"slices"

	"github.com/sirocco-run/sirocco/pkg/admission"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/subject"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

// migrate has a sandbox moved, and waits until it runs where it was to go. A move that
// was called off is an error.
func (a *API) migrate(ctx context.Context, c caller, req *siroccov1.MigrateSandboxRequest) (*siroccov1.Sandbox, error) {
	if err := c.mustOperate(); err != nil {
		return nil, err
	}
	if err := admission.CheckReason("reason", req.GetReason()); err != nil {
		return nil, err
	}
	if req.GetNode() != "" && !subject.ValidToken(req.GetNode()) {
		return nil, fault.Invalid("node", "%q is not the name of a node", req.GetNode())
	}
	sb, err := a.findOpen(ctx, c, "id", req.GetId())
	if err != nil {
		return nil, err
	}
	region := req.GetRegion()
	switch {
	case region == "":
		region = a.env.Region
	case region == a.env.Region && (req.GetNode() == "" || req.GetNode() == sb.GetPlacement().GetNode()):
		return sb, nil // it is there
	}
	if region != a.env.Region && !slices.Contains(a.env.Peers.Regions(), region) {
		return nil, fault.Invalid("region", "there is no region %q; there are %v", region, append([]string{a.env.Region}, a.env.Peers.Regions()...))
	}
	if allowed := sb.GetSpec().GetRegions(); len(allowed) > 0 && !slices.Contains(allowed, region) {
		return nil, fault.New(fault.FailedPrecondition, "sandbox %s may run in %v only, as it was created so", sb.GetId(), allowed)
	}
	key, err := c.changeKey()
	if err != nil {
		return nil, err
	}
	command := &siroccov1.MigrateSandboxRequest{Id: sb.GetId(), Region: req.GetRegion(), Node: req.GetNode(), Reason: req.GetReason(), Epoch: sb.GetPlacement().GetEpoch()}
	if e := req.GetEpoch(); e != 0 && e != command.Epoch {
		return nil, fault.New(fault.FailedPrecondition, "sandbox %s is at epoch %d by now", sb.GetId(), command.Epoch)
	}
	if req.GetNoWait() {
		_, err := a.command(ctx, c.tenant, subject.VerbMigrate, key, sb.GetId(), command)
		return sb, err
	}
	over := func(sb *siroccov1.Sandbox) bool {
		return sb.GetMove().GetKey() == key && sb.GetMove().GetEnded() != nil
	}
	out, err := a.changeAs(ctx, c, subject.VerbMigrate, key, sb, command, effect{done: over, open: true})
	if err != nil {
		return nil, err
	}
	if move := out.GetMove(); move.GetFailure() != "" {
		return nil, &fault.Fault{Code: fault.Code(move.GetFailureCode()), Message: "sandbox " + out.GetId() + " did not move and goes on where it was: " + move.GetFailure()}
	}
	return out, nil
}
