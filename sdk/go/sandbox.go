package sirocco

import (
	"context"
	"crypto/rand"
	"iter"
	"sync"
	"time"

	"connectrpc.com/connect"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/sirocco-run/sirocco/proto/gen/sirocco/v1/siroccov1connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

// Sandbox is a handle on one sandbox. It holds no connection of its own.
type Sandbox struct {
	// ID of the sandbox, or the name by which the handle was made.
	ID string
	// Record as it was when the handle was made; nil for one made by
	// Client.Sandbox. Client.Get returns the newest.
	Record *siroccov1.Sandbox
	// Existed says that Create found the sandbox by its idempotency key.
	Existed bool

	client *Client

	mu    sync.Mutex
	token *siroccov1.SandboxToken
	exec  siroccov1connect.ExecServiceClient
	files siroccov1connect.FileServiceClient
	logs  siroccov1connect.LogServiceClient
}

// tokenMargin is how long before its end a token is replaced.
const tokenMargin = time.Minute

// Create makes a sandbox and waits as req.Wait says. Without an idempotency
// key it makes one up, so that a resend after a lost connection makes nothing
// twice. A sandbox that failed to start is no error: look at Record.State.
//
// Errors: InvalidArgument, AlreadyExists (the name), Quota, Unavailable,
// Deadline.
func (c *Client) Create(ctx context.Context, req *siroccov1.CreateSandboxRequest) (*Sandbox, error) {
	if req.GetIdempotencyKey() == "" {
		req = proto.CloneOf(req)
		if req == nil {
			req = &siroccov1.CreateSandboxRequest{}
		}
		req.IdempotencyKey = rand.Text()
	}
	resp, err := call(ctx, c, c.sandboxes.Create, req)
	if err != nil {
		return nil, err
	}
	s := c.Sandbox(resp.GetSandbox().GetId())
	s.Record, s.Existed = resp.GetSandbox(), resp.GetExisted()
	if resp.GetToken() != nil {
		s.use(resp.GetToken())
	}
	return s, nil
}

// Sandbox returns a handle without asking anybody. id may also be the name of
// a sandbox that has not ended, for everything but exec, files and logs.
func (c *Client) Sandbox(id string) *Sandbox { return &Sandbox{ID: id, client: c} }

// Open returns a handle on a sandbox that exists. id may be a name.
func (c *Client) Open(ctx context.Context, id string) (*Sandbox, error) {
	record, err := c.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	s := c.Sandbox(record.GetId())
	s.Record = record
	return s, nil
}

// Get returns the record of a sandbox, by id or by name. Errors: NotFound.
func (c *Client) Get(ctx context.Context, id string) (*siroccov1.Sandbox, error) {
	return call(ctx, c, c.sandboxes.Get, &siroccov1.GetSandboxRequest{Id: id})
}

// List returns the sandboxes that match, newest first, page after page. The
// last element may be an error.
func (c *Client) List(ctx context.Context, filter *siroccov1.ListSandboxesRequest) iter.Seq2[*siroccov1.Sandbox, error] {
	return func(yield func(*siroccov1.Sandbox, error) bool) {
		req := proto.CloneOf(filter)
		if req == nil {
			req = &siroccov1.ListSandboxesRequest{}
		}
		for {
			page, err := call(ctx, c, c.sandboxes.List, req)
			if err != nil {
				yield(nil, err)
				return
			}
			for _, sb := range page.GetSandboxes() {
				if !yield(sb, nil) {
					return
				}
			}
			if page.GetNextPageToken() == "" {
				return
			}
			req.PageToken = page.GetNextPageToken()
		}
	}
}

// Terminate ends the sandbox and returns the record once it has ended. Ending
// what has ended is no error. Errors: NotFound.
func (s *Sandbox) Terminate(ctx context.Context, reason string) (*siroccov1.Sandbox, error) {
	return s.TerminateWith(ctx, &siroccov1.TerminateSandboxRequest{Reason: reason})
}

// TerminateWith is Terminate with every option; the id is filled in.
func (s *Sandbox) TerminateWith(ctx context.Context, req *siroccov1.TerminateSandboxRequest) (*siroccov1.Sandbox, error) {
	req = proto.CloneOf(req)
	req.Id = s.ID
	return call(ctx, s.client, s.client.sandboxes.Terminate, req)
}

// Extend moves the deadline to now + by. Errors: NotFound, InvalidArgument
// (more than 24 h from acceptance), FailedPrecondition (it has ended).
func (s *Sandbox) Extend(ctx context.Context, by time.Duration) (*siroccov1.Sandbox, error) {
	return call(ctx, s.client, s.client.sandboxes.Extend, &siroccov1.ExtendSandboxRequest{Id: s.ID, By: durationpb.New(by)})
}

// Migrate moves the running sandbox, with its memory, files and processes, to another
// region, or to another node of its region if region is empty, and returns the record
// once it runs there. Requests through its tunnels are held meanwhile. node may be empty.
// Only for operators. Errors: NotFound, NoCapacity, FailedPrecondition (it does not run,
// or can't run there), Unavailable (it was called off); after any of them it goes on
// where it was.
func (s *Sandbox) Migrate(ctx context.Context, region, node string) (*siroccov1.Sandbox, error) {
	return call(ctx, s.client, s.client.sandboxes.Migrate, &siroccov1.MigrateSandboxRequest{Id: s.ID, Region: region, Node: node})
}

// SetTags replaces all tags.
func (s *Sandbox) SetTags(ctx context.Context, tags map[string]string) (*siroccov1.Sandbox, error) {
	return call(ctx, s.client, s.client.sandboxes.SetTags, &siroccov1.SetTagsRequest{Id: s.ID, Tags: tags})
}

// Token makes a token for the data services that lives for ttl; zero means 1 h,
// at most 24 h.
func (s *Sandbox) Token(ctx context.Context, ttl time.Duration) (*siroccov1.SandboxToken, error) {
	req := &siroccov1.CreateTokenRequest{Id: s.ID}
	if ttl > 0 {
		req.Ttl = durationpb.New(ttl)
	}
	return call(ctx, s.client, s.client.sandboxes.CreateToken, req)
}

// OpenTunnel publishes a port; opening it again is no error.
func (s *Sandbox) OpenTunnel(ctx context.Context, port *siroccov1.Port) (*siroccov1.Tunnel, error) {
	return call(ctx, s.client, s.client.tunnels.Open, &siroccov1.OpenTunnelRequest{SandboxId: s.ID, Port: port})
}

// CloseTunnel withdraws a port.
func (s *Sandbox) CloseTunnel(ctx context.Context, port uint32) error {
	_, err := call(ctx, s.client, s.client.tunnels.Close, &siroccov1.CloseTunnelRequest{SandboxId: s.ID, Port: port})
	return err
}

// Tunnels returns the ports that are published.
func (s *Sandbox) Tunnels(ctx context.Context) ([]*siroccov1.Tunnel, error) {
	resp, err := call(ctx, s.client, s.client.tunnels.List, &siroccov1.ListTunnelsRequest{SandboxId: s.ID})
	return resp.GetTunnels(), err
}

// use takes a token and makes the clients of the data services, if the address
// is new.
func (s *Sandbox) use(t *siroccov1.SandboxToken) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.token.GetDataUrl() != t.GetDataUrl() || s.exec == nil {
		opts := s.client.options(s.bearer)
		s.exec = siroccov1connect.NewExecServiceClient(s.client.http, t.GetDataUrl(), opts...)
		s.files = siroccov1connect.NewFileServiceClient(s.client.http, t.GetDataUrl(), opts...)
		s.logs = siroccov1connect.NewLogServiceClient(s.client.http, t.GetDataUrl(), opts...)
	}
	s.token = t
}

// bearer returns a token that is good for another minute, a fresh one if
// necessary.
func (s *Sandbox) bearer(ctx context.Context) (string, error) {
	s.mu.Lock()
	t := s.token
	s.mu.Unlock()
	if t != nil && time.Until(t.GetExpiresAt().AsTime()) > tokenMargin {
		return t.GetToken(), nil
	}
	t, err := s.Token(ctx, 0)
	if err != nil {
		return "", err
	}
	s.use(t)
	return t.GetToken(), nil
}

// data makes sure that there is a token, and with it the address of the data
// services.
func (s *Sandbox) data(ctx context.Context) error {
	_, err := s.bearer(ctx)
	return err
}

// forget drops a token that was refused, for the next call to fetch another.
func (s *Sandbox) forget(err error) bool {
	if CodeOf(err) != Unauthenticated {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.token == nil {
		return false
	}
	s.token = nil
	return true
}

// dataCall is call for the data services: a token that is refused is replaced
// once.
func dataCall[Req, Res any](ctx context.Context, s *Sandbox, do func(context.Context, *connect.Request[Req]) (*connect.Response[Res], error), req *Req) (*Res, error) {
	resp, err := call(ctx, s.client, do, req)
	if err != nil && s.forget(err) {
		return call(ctx, s.client, do, req)
	}
	return resp, err
}
