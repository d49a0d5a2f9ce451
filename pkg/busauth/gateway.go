package busauth

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/fair"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/subject"
)

const (
	// carryBudget covers the election of a stream's leader.
	carryBudget = 12 * time.Second
	// maxCarried is how many commands are carried at once.
	maxCarried = 512
	// lineBytes is how much the commands that wait to be carried may take, and
	// lineCost what each takes beside its body.
	lineBytes, lineCost = 64 << 20, 1 << 10
)

// passed are the headers of a command that are carried over. Every other may
// mean something to JetStream: a roll-up, an expectation, a schedule.
var passed = []string{subject.HeaderContentType, "traceparent", "tracestate"}

// Gateway carries the commands of tenants over to the services' account, in turns
// of the tenants, and the stream's acknowledgements back.
type Gateway struct {
	tenants, services *nats.Conn
	anonymous         string
	admit             Admit
	log               *slog.Logger
}

// Admit says whether a tenant may have one more sandbox: what its create command
// asks for under a key. The error is for the tenant.
type Admit func(tenant, key string, h nats.Header, body []byte) error

// Login connects as the gateway's user, to the server and in the way of a
// service's connection.
func Login(services *nats.Conn, secrets Secrets) (*nats.Conn, error) {
	opts := services.Opts
	opts.User, opts.Password, opts.Token = UserGateway, secrets.GatewayPassword, ""
	opts.Name += " gateway"
	opts.InboxPrefix = "_INBOX_" + UserGateway
	nc, err := opts.Connect()
	if err != nil {
		return nil, fmt.Errorf("connect to the tenants' side of the bus: %w", err)
	}
	return nc, nil
}

// NewGateway builds a gateway. anonymous is as for NewCallout.
func NewGateway(tenants, services *nats.Conn, anonymous string, admit Admit, log *slog.Logger) *Gateway {
	return &Gateway{tenants: tenants, services: services, anonymous: anonymous, admit: admit, log: log}
}

// Run carries until ctx ends, and then returns nil once what was under way has
// arrived. serving is closed once tenants can publish.
func (g *Gateway) Run(ctx context.Context, serving chan<- struct{}) error {
	lines := fair.NewQueue[*nats.Msg](lineBytes)
	sub, err := g.tenants.QueueSubscribe(subject.All("cmd"), "gateway", func(msg *nats.Msg) {
		_ = lines.Push(ctx, subject.Tenant(msg.Subject), msg, lineCost+len(msg.Data)) // at the end nobody is promised anything
	})
	if err != nil {
		return fmt.Errorf("serve tenants' commands: %w", err)
	}
	if err := g.tenants.FlushTimeout(carryBudget); err != nil {
		return fmt.Errorf("serve tenants' commands: %w", err)
	}
	close(serving)
	var running sync.WaitGroup
	slots := make(chan struct{}, maxCarried)
	for {
		slots <- struct{}{}
		_, msg, err := lines.Pop(ctx)
		if err != nil {
			break
		}
		running.Go(func() {
			defer func() { <-slots }()
			g.carry(context.WithoutCancel(ctx), msg)
		})
	}
	_ = sub.Unsubscribe()
	running.Wait()
	return nil
}

// carry brings one command over. Without an inbox of the tenant's own for the
// answer it is dropped: see the package comment.
func (g *Gateway) carry(ctx context.Context, msg *nats.Msg) {
	tenant, verb, key, err := subject.ParseCommand(msg.Subject)
	if msg.Reply != "" && !OwnInbox(subject.Tenant(msg.Subject), msg.Reply, g.anonymous) {
		g.log.Warn("command dropped: its reply subject is no inbox of the tenant", "subject", msg.Subject, "reply", msg.Reply)
		return
	}
	if err != nil {
		g.answer(msg, refusal(400, err.Error()))
		return
	}
	over := nats.NewMsg(msg.Subject)
	over.Data = msg.Data
	for _, name := range passed {
		if v := bus.Header(msg.Header, name); v != "" {
			over.Header.Set(name, v)
		}
	}
	if verb == subject.VerbCreate {
		if err := g.admit(tenant, key, over.Header, over.Data); err != nil {
			// It goes on: a refusal is an event, for those too who wait for no ack.
			over.Header.Set(subject.HeaderOverQuota, fault.From(err).Header())
		}
	}
	if id := msg.Header.Get(nats.MsgIdHdr); id != "" {
		// The stream knows ids of all tenants: one must not use up another's.
		over.Header.Set(nats.MsgIdHdr, tenant+"/client/"+verb+"/"+key+"/"+id)
	}
	ctx, cancel := context.WithTimeout(ctx, carryBudget)
	defer cancel()
	for {
		ack, err := g.services.RequestMsgWithContext(ctx, over)
		if err == nil {
			g.answer(msg, ack.Data)
			return
		}
		if ctx.Err() != nil || !errors.Is(err, nats.ErrNoResponders) {
			g.log.Warn("command not stored", "subject", msg.Subject, "err", err)
			g.answer(msg, refusal(503, "the command was not stored: try again"))
			return
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

func (g *Gateway) answer(msg *nats.Msg, body []byte) {
	if msg.Reply == "" {
		return
	}
	if err := msg.Respond(body); err != nil {
		g.log.Warn("command not acknowledged", "subject", msg.Subject, "err", err)
	}
}

// refusal is an acknowledgement that says no, in the words of JetStream.
func refusal(code int, why string) []byte {
	body, err := json.Marshal(map[string]any{"error": map[string]any{"code": code, "description": why}, "stream": subject.StreamCommands, "seq": 0})
	if err != nil {
		return nil // cannot be: plain values only
	}
	return body
}
