package chaos

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	sirocco "github.com/sirocco-run/sirocco/sdk/go"
	"github.com/sirocco-run/sirocco/tests/platform"
	"google.golang.org/protobuf/types/known/durationpb"
)

// callLimit bounds a call of a client, restarts of services included.
const callLimit = 45 * time.Second

// load makes, uses and ends sandboxes without end, as users do who retry.
type load struct {
	t      *testing.T
	fleet  *platform.Fleet
	client *sirocco.Client
	// gate is held for reading during each turn, for writing to pause.
	gate sync.RWMutex

	created, execs, published, refused, lost atomic.Int64

	mu sync.Mutex
	// ids is what each key has given; of commands that the bus took, "" until
	// unanswered has seen the record.
	ids map[string]string
}

// run works until ctx ends, with so many users.
func (l *load) run(ctx context.Context, users int) (wait func()) {
	var wg sync.WaitGroup
	for user := range users {
		wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				l.gate.RLock()
				if n%5 == user%5 {
					l.publish()
				} else {
					l.turn(n)
				}
				l.gate.RUnlock()
			}
		})
	}
	return wg.Wait
}

// remember checks that a key always gives the same sandbox.
func (l *load) remember(key, id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if before, ok := l.ids[key]; ok && before != id {
		l.t.Errorf("key %s gave %s, then %s", key, before, id)
	}
	l.ids[key] = id
}

// publish gives a command to the bus and leaves: the stream's answer is the
// promise. Its sandbox ends by its lifetime.
func (l *load) publish() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	key := rand.Text()
	ack, err := l.fleet.JS.Publish(ctx, "sirocco.cmd."+platform.Tenant+".sandbox.create."+key, []byte(`{"max_lifetime":"2s","tags":{"by":"bus"}}`))
	if err != nil || ack == nil {
		l.refused.Add(1)
		return
	}
	l.published.Add(1)
	l.mu.Lock()
	l.ids[key] = ""
	l.mu.Unlock()
}

// unanswered says of which commands that the bus took there is no record, a line each.
func (l *load) unanswered(records []*siroccov1.Sandbox) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, sb := range records {
		if id, published := l.ids[sb.GetIdempotencyKey()]; published && id == "" {
			l.ids[sb.GetIdempotencyKey()] = sb.GetId()
		}
	}
	var missing []string
	for key, id := range l.ids {
		if id == "" {
			missing = append(missing, "the bus took the command "+key+", and there is no record of it")
		}
	}
	return missing
}

// turn is the life of one sandbox: created, used, ended.
func (l *load) turn(n int) {
	ctx, cancel := context.WithTimeout(context.Background(), callLimit)
	defer cancel()
	key, began := rand.Text(), time.Now()
	req := &siroccov1.CreateSandboxRequest{IdempotencyKey: key, MaxLifetime: durationpb.New(5 * time.Minute), Tags: map[string]string{"by": "api"}}
	s, err := l.client.Create(ctx, req)
	if err != nil {
		l.note("create", err)
		return
	}
	l.created.Add(1)
	l.remember(key, s.ID)
	if n%3 == 0 {
		if again, err := l.client.Create(ctx, req); err == nil {
			l.remember(key, again.ID)
		}
	}
	if s.Record.GetState() != siroccov1.State_STATE_RUNNING {
		l.ended(s)
		return
	}
	var out bytes.Buffer
	created := time.Since(began)
	end, err := s.Run(ctx, sirocco.Command{ID: "one", Args: []string{"echo", key}, Stdout: &out})
	switch {
	case err != nil:
		sb, gerr := l.client.Get(ctx, s.ID)
		l.t.Errorf("exec in %s, %v after its create began (turn %d), for %v: %v; the record: %v %v, %v", s.ID, created, n, time.Since(began)-created, err, sb.GetState(), sb.GetEnd(), gerr)
	case end.GetExitCode() != 0 || out.String() != key+"\n":
		l.t.Errorf("exec in %s: %v, %q", s.ID, end, out.String())
	default:
		l.execs.Add(1)
	}
	sb, err := s.Terminate(ctx, "")
	if err != nil {
		l.note("terminate", err)
	} else if sb.GetEnd().GetCause() != siroccov1.Cause_CAUSE_USER {
		l.t.Errorf("%s was ended by its user: %v", s.ID, sb.GetEnd())
	}
}

// note takes an error that a client must expect while services are killed.
func (l *load) note(what string, err error) {
	switch sirocco.CodeOf(err) {
	case sirocco.Unavailable, sirocco.Deadline, sirocco.NoCapacity: // see ended
		l.refused.Add(1)
	default:
		l.t.Errorf("%s: %v", what, err)
	}
}

// ended judges a sandbox that never ran: only because its node died with it.
func (l *load) ended(s *sirocco.Sandbox) {
	l.lost.Add(1)
	l.t.Logf("%s did not start: %v", s.ID, s.Record.GetEnd())
	if end := s.Record.GetEnd(); end.GetCause() != siroccov1.Cause_CAUSE_NODE_LOST && end.GetCause() != siroccov1.Cause_CAUSE_NO_CAPACITY {
		l.t.Errorf("%s did not start for another reason", s.ID)
	}
}

func (l *load) String() string {
	return fmt.Sprintf("%d created, %d execs, %d published, %d calls refused, %d lost while starting", l.created.Load(), l.execs.Load(), l.published.Load(), l.refused.Load(), l.lost.Load())
}
