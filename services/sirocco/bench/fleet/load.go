package fleet

import (
	"context"
	"crypto/rand"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/subject"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/sirocco-run/sirocco/services/sirocco/bench"
	"github.com/sirocco-run/sirocco/services/sirocco/up"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

const (
	// patience is how long a call is tried again while the platform says that it
	// can't answer: longer than a restart takes.
	patience = time.Minute
	// answerLimit is how long one call may take.
	answerLimit = 30 * time.Second
	// twice is which share of the creates is asked for twice, under one key: the
	// second must be the first.
	twice = 100
)

// load makes sandboxes and ends them, and knows which there must be. Its methods
// may be called concurrently.
type load struct {
	// buses are those of the regions, which are asked in turn. patience is for how long
	// a call is tried again; none where a single failure counts.
	buses    []*nats.Conn
	turn     atomic.Uint64
	patience time.Duration
	began    time.Time
	failures bench.Failures
	// created is called with what was made; nil for nothing.
	created func(*siroccov1.Sandbox)

	mu sync.Mutex
	// live are those that were answered with running and that nobody has asked to
	// end, oldest first; since is when each was answered.
	live  []string
	since map[string]time.Time
	made  int
	ended int
	// doubles are keys that gave two sandboxes.
	doubles []string
	// unmade counts creates that failed; unended are sandboxes whose end did. Nobody
	// knows what came of them.
	unmade  int
	unended map[string]bool
}

func newLoad(patience time.Duration, buses ...*nats.Conn) *load {
	return &load{buses: buses, patience: patience, began: time.Now(), since: map[string]time.Time{}, unended: map[string]bool{}}
}

// next is the bus whose turn it is.
func (l *load) next() *nats.Conn { return l.buses[l.turn.Add(1)%uint64(len(l.buses))] }

// times are what is taken of creates and ends.
type times struct {
	// create is from the call until it is answered with running; platform is the
	// part from accepted to running, by the record, less what the node took.
	create, platform, end bench.Samples
}

// create makes a sandbox and waits until it runs.
func (l *load) create(ctx context.Context, t *times) (id string, err error) {
	req := &siroccov1.CreateSandboxRequest{MaxLifetime: durationpb.New(12 * time.Hour)}
	l.mu.Lock()
	again := l.made%twice == twice-1
	l.made++
	l.mu.Unlock()
	if again {
		req.IdempotencyKey = rand.Text()
	}
	began, nc := time.Now(), l.next()
	resp := &siroccov1.CreateSandboxResponse{}
	err = l.ask(ctx, nc, subject.VerbCreate, req, resp)
	took := time.Since(began)
	sb := resp.GetSandbox()
	if err == nil && sb.GetState() != siroccov1.State_STATE_RUNNING {
		err = fmt.Errorf("sandbox %s is %v after its create: %s", sb.GetId(), sb.GetState(), sb.GetEnd().GetMessage())
	}
	if l.failures.Add(doing("create", err)) {
		l.mu.Lock()
		l.unmade++
		l.mu.Unlock()
		return "", err
	}
	t.create.Add(began.Sub(l.began), took)
	accepted, running := lifecycle.Entered(sb, siroccov1.State_STATE_ACCEPTED), lifecycle.Entered(sb, siroccov1.State_STATE_RUNNING)
	t.platform.Add(began.Sub(l.began), running.Sub(accepted)-sb.GetObserved().GetStartLatency().AsDuration())
	l.mu.Lock()
	l.live = append(l.live, sb.GetId())
	l.since[sb.GetId()] = time.Now()
	l.mu.Unlock()
	if l.created != nil {
		l.created(sb)
	}
	if again {
		second := &siroccov1.CreateSandboxResponse{}
		if err := l.ask(ctx, nc, subject.VerbCreate, req, second); !l.failures.Add(doing("create again", err)) && second.GetSandbox().GetId() != sb.GetId() {
			l.mu.Lock()
			l.doubles = append(l.doubles, fmt.Sprintf("the key %s gave %s and %s", req.GetIdempotencyKey(), sb.GetId(), second.GetSandbox().GetId()))
			l.mu.Unlock()
		}
	}
	return sb.GetId(), nil
}

// end ends a sandbox that lives and waits until it has ended.
func (l *load) end(ctx context.Context, id string, t *times) error {
	l.mu.Lock()
	delete(l.since, id)
	l.mu.Unlock()
	began := time.Now()
	sb := &siroccov1.Sandbox{}
	err := l.ask(ctx, l.next(), subject.VerbTerminate, &siroccov1.TerminateSandboxRequest{Id: id, Reason: "measured"}, sb)
	if err == nil && (sb.GetState() != siroccov1.State_STATE_STOPPED || sb.GetEnd().GetCause() != siroccov1.Cause_CAUSE_USER) {
		err = fmt.Errorf("sandbox %s is %v (%v) after its end", id, sb.GetState(), sb.GetEnd())
	}
	if l.failures.Add(doing("end "+id, err)) {
		l.mu.Lock()
		l.unended[id] = true
		l.mu.Unlock()
		return err
	}
	t.end.Add(began.Sub(l.began), time.Since(began))
	l.mu.Lock()
	l.ended++
	l.mu.Unlock()
	return nil
}

// endOldest ends the sandbox that has lived longest; false if there is none.
func (l *load) endOldest(ctx context.Context, t *times) bool {
	id, ok := l.oldest()
	if ok {
		_ = l.end(ctx, id, t)
	}
	return ok
}

// oldest takes the one that has lived longest out of the list. One that lifecycles
// have ended meanwhile is passed over.
func (l *load) oldest() (id string, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.live) > 0 {
		id, l.live = l.live[0], l.live[1:]
		if _, ok := l.since[id]; ok {
			return id, true
		}
	}
	return "", false
}

// ask asks the api of a region, and again while nobody answers, if there is patience.
func (l *load) ask(ctx context.Context, nc *nats.Conn, verb string, req, resp proto.Message) error {
	ctx, cancel := context.WithTimeout(ctx, max(l.patience, answerLimit))
	defer cancel()
	until := time.Now().Add(l.patience)
	for {
		err := bus.Ask(ctx, nc, subject.API(up.Tenant, subject.NounSandbox, verb), req, resp)
		if fault.CodeOf(err) != fault.Unavailable || ctx.Err() != nil || !time.Now().Before(until) {
			return err
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return err
		}
	}
}

// doing says with what something went wrong; nil stays nil.
func doing(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}

// together runs f with n workers until it returns false or ctx ends.
func together(ctx context.Context, n int, f func() bool) {
	var workers sync.WaitGroup
	for range n {
		workers.Go(func() {
			for ctx.Err() == nil && f() {
			}
		})
	}
	workers.Wait()
}

// count returns how many sandboxes must live, and how many were made and ended.
func (l *load) count() (live, made, ended int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.since), l.made, l.ended
}

// settled returns those that must live and were answered before a time.
func (l *load) settled(before time.Time) (ids []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, since := range l.since {
		if since.Before(before) {
			ids = append(ids, id)
		}
	}
	return ids
}

// still returns those of ids that nobody has asked to end meanwhile.
func (l *load) still(ids []string) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.DeleteFunc(ids, func(id string) bool { _, ok := l.since[id]; return !ok })
}

// fill makes sandboxes until n live, or ends some until no more do.
func (l *load) fill(ctx context.Context, n, workers int, t *times) {
	live, _, _ := l.count()
	var mu sync.Mutex
	left := int(math.Abs(float64(n - live)))
	take := func() bool {
		mu.Lock()
		defer mu.Unlock()
		left--
		return left >= 0
	}
	together(ctx, workers, func() bool {
		if !take() {
			return false
		}
		if live < n {
			_, _ = l.create(ctx, t)
			return true
		}
		return l.endOldest(ctx, t)
	})
}
