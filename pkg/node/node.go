// Package node asks node-agents: to take a sandbox, new or from another node, to look
// at a record again,
// and what they run. The agent's side is in services/node-agent.
package node

import (
	"context"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/record"
	"github.com/sirocco-run/sirocco/pkg/subject"
	nodev1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/node/v1"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

// Client asks the nodes of a region.
type Client struct {
	nc    *nats.Conn
	store *record.Store
	// Timeout bounds each ask.
	timeout time.Duration
}

// NewClient makes a client whose asks take at most timeout.
func NewClient(nc *nats.Conn, store *record.Store, timeout time.Duration) *Client {
	return &Client{nc: nc, store: store, timeout: timeout}
}

// Place asks a node to run a sandbox whose record has just been placed on it. A
// nil refusal is a yes. On an error the node may or may not have taken it: the
// epoch decides.
func (c *Client) Place(ctx context.Context, sb *siroccov1.Sandbox) (*nodev1.Refusal, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	resp := &nodev1.PlaceResponse{}
	err := bus.Ask(ctx, c.nc, subject.Node(sb.GetPlacement().GetNode(), subject.NodePlace),
		&nodev1.PlaceRequest{Sandbox: sb, Revision: sb.GetRevision()}, resp)
	return resp.GetRefusal(), err
}

// Receive asks a node to keep a place for a sandbox that moves there: its record, with
// the move. A nil refusal is a yes.
func (c *Client) Receive(ctx context.Context, name string, sb *siroccov1.Sandbox) (*nodev1.Refusal, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	resp := &nodev1.ReceiveResponse{}
	err := bus.Ask(ctx, c.nc, subject.Node(name, subject.NodeReceive), &nodev1.ReceiveRequest{Sandbox: sb}, resp)
	return resp.GetRefusal(), err
}

// Inventory returns what a node really runs.
func (c *Client) Inventory(ctx context.Context, name string) ([]*nodev1.InventoryItem, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	resp := &nodev1.InventoryResponse{}
	err := bus.Ask(ctx, c.nc, subject.Node(name, subject.NodeInventory), &nodev1.InventoryRequest{}, resp)
	return resp.GetItems(), err
}

// Sync tells a node to read a record again, and says whether the node holds
// the sandbox.
func (c *Client) Sync(ctx context.Context, name, tenant, id string) (known bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	resp := &nodev1.SyncResponse{}
	err = bus.Ask(ctx, c.nc, subject.Node(name, subject.NodeSync), &nodev1.SyncRequest{Tenant: tenant, Id: id}, resp)
	return resp.GetKnown(), err
}

// Stop asks the node of a running sandbox to end it for its tenant. It says whether
// the node will; the record then tells when it has.
func (c *Client) Stop(ctx context.Context, sb *siroccov1.Sandbox, reason string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	resp := &nodev1.StopResponse{}
	err := bus.Ask(ctx, c.nc, subject.Node(sb.GetPlacement().GetNode(), subject.NodeStop),
		&nodev1.StopRequest{Tenant: sb.GetTenant(), Id: sb.GetId(), Epoch: sb.GetPlacement().GetEpoch(), Reason: reason}, resp)
	return resp.GetKnown(), err
}

// Tell tells the node of a live sandbox that its record has changed. A node
// that does not answer finds out by itself, since it compares its sandboxes
// with their records; so only an answer matters: a node that does not hold a
// sandbox which is to stop has nothing to stop, and the record ends here.
func (c *Client) Tell(ctx context.Context, sb *siroccov1.Sandbox) error {
	if !lifecycle.Live(sb.GetState()) {
		return nil
	}
	known, err := c.Sync(ctx, sb.GetPlacement().GetNode(), sb.GetTenant(), sb.GetId())
	if err != nil || known || sb.GetState() != siroccov1.State_STATE_STOPPING {
		return nil //nolint:nilerr // see above: the node finds out by itself
	}
	_, err = c.store.Update(ctx, sb.GetTenant(), sb.GetId(), nil, lifecycle.Finish{
		Epoch: sb.GetPlacement().GetEpoch(),
		End:   &siroccov1.End{Cause: sb.GetDesired().GetStopCause(), Message: sb.GetDesired().GetStopReason()},
	})
	return err
}
