// Package cloudflare brings Cloudflare to what the controller of regions wants the
// outside world to see: the weights of the regions' pools at a load balancer with
// random steering, pools that are drained, and the DNS records of the relays and
// of the wildcard of the tunnels.
//
// What is sent, and when, is decided in package plan; here it is carried out with
// Cloudflare's own library.
//
// Safety: of the publishers of a region one writes, by a lease. Each write is
// noted in the bucket before it is sent, by compare-and-swap, so that a publisher
// that has been overtaken without noticing can't begin another; and whatever had
// no clear answer is read before anything is written again. Every write says what
// shall be, not what shall change, so that one that comes twice does no harm.
//
// Liveness: what is wanted, and what was last sent, are in the bucket. A publisher
// that dies is followed within seconds, and the next one sends what it could not.
package cloudflare

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/sirocco-run/sirocco/pkg/cloudflare/plan"
	"github.com/sirocco-run/sirocco/pkg/lease"
	"github.com/sirocco-run/sirocco/pkg/program"
	"github.com/sirocco-run/sirocco/pkg/subject"
	"github.com/sirocco-run/sirocco/pkg/topology"
	"golang.org/x/sync/errgroup"
)

const (
	// freshFor is how long what another publisher wanted is still sent by the next
	// one, when nobody has told it what is wanted now.
	freshFor = 5 * time.Minute
	// saveEvery is how often what is wanted is saved while it can't be sent.
	saveEvery = time.Second
)

// Publisher is one of the publishers of a region.
type Publisher struct {
	env     program.Env
	cfg     Config
	rules   plan.Rules
	log     *slog.Logger
	client  *client
	metrics metrics
	// changed wakes the one that writes.
	changed chan struct{}

	mu     sync.Mutex
	wanted plan.Desired
	asked  time.Time
	muted  bool
	// mutings counts how often it was muted.
	mutings int
}

// New builds a publisher. It does no I/O. Its configuration is not looked at when
// it is off.
func New(env program.Env, cfg Config) (*Publisher, error) {
	p := &Publisher{env: env, cfg: cfg, log: env.Log, changed: make(chan struct{}, 1)}
	if !cfg.on() {
		return p, nil
	}
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	p.rules, p.client = cfg.rules(), newClient(&p.cfg)
	var err error
	p.metrics, err = newMetrics(env.Meter)
	return p, err
}

// Want says what the outside world shall see from now on. The last word counts;
// what was said before and has not been sent never is. It does not wait.
func (p *Publisher) Want(d plan.Desired) {
	p.mu.Lock()
	p.wanted, p.asked, p.muted = d, time.Now(), false
	p.mu.Unlock()
	p.wake()
}

// Mute stops sending until the next Want, because another region's publisher
// sends: Cloudflare is one for all regions, and their buses share no lease. What is
// known of Cloudflare is read anew afterwards.
func (p *Publisher) Mute() {
	p.mu.Lock()
	if !p.muted {
		p.mutings++
	}
	p.wanted, p.asked, p.muted = plan.Desired{}, time.Time{}, true
	p.mu.Unlock()
	p.wake()
}

func (p *Publisher) wake() {
	select {
	case p.changed <- struct{}{}:
	default: // it is being woken already
	}
}

// Run works until ctx ends. Without a token it does nothing until then.
//
// Concurrency: Run owns every goroutine; the one that renews the lease, and under
// the lease the one that sends.
func (p *Publisher) Run(ctx context.Context) error {
	if p.client == nil {
		p.log.Info("nothing is sent to Cloudflare: there is no token", "env", TokenEnv)
		<-ctx.Done()
		return nil
	}
	if err := topology.Wait(ctx, p.env.JS); err != nil {
		return err
	}
	if p.cfg.DryRun {
		return p.rehearse(ctx)
	}
	stop, err := p.metrics.observe(p.env.Meter, p.rules.Pools)
	if err != nil {
		return err
	}
	defer stop()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		return lease.New(p.env.JS, subject.KeyCloudflare, p.env.Instance, p.log).Run(ctx, p.lead)
	})
	return group.Wait()
}

// lead sends until ctx ends or another publisher has taken over.
func (p *Publisher) lead(ctx context.Context) {
	p.metrics.leads.Store(true)
	defer p.metrics.leads.Store(false)
	if err := p.send(ctx); err != nil && ctx.Err() == nil {
		p.log.Warn("publishing to Cloudflare begins anew", "err", err)
	}
}

// leading is what the one that writes keeps between two steps.
type leading struct {
	store *store
	saved saved
	// at is when saved was last saved, mutings how often it had been muted then.
	at      time.Time
	mutings int
	// dirty: there is something to save even if nothing is sent.
	dirty bool
}

func (p *Publisher) send(ctx context.Context) error {
	db, err := openStore(ctx, p.env.JS)
	if err != nil {
		return err
	}
	st, err := db.load(ctx)
	if err != nil {
		return err
	}
	l := &leading{store: db, saved: st}
	l.saved.State = st.TakeOver()
	if l.mutings = p.mutingsNow(); l.mutings > 0 {
		l.saved.State = l.saved.Forget()
	}
	// From here on the one before can't begin to write.
	if err := p.save(ctx, l); err != nil {
		return err
	}
	for ctx.Err() == nil {
		if err := p.step(ctx, l); err != nil {
			return err
		}
	}
	return nil
}

// step does one thing, or waits for the time of the next.
func (p *Publisher) step(ctx context.Context, l *leading) error {
	now := time.Now()
	want, muted := p.want(l, now)
	if n := p.mutingsNow(); n != l.mutings {
		l.mutings = n
		l.saved.State = l.saved.Forget()
		l.saved.Want, l.saved.Asked = plan.Wanted{}, time.Time{}
		if err := p.save(ctx, l); err != nil {
			return err
		}
	}
	if muted {
		p.sleep(ctx, now.Add(p.rules.Check))
		return nil
	}
	next := plan.Decide(now, want, l.saved.State, p.rules)
	switch next.Action {
	case plan.Read:
		return p.read(ctx, l, next.Part, want)
	case plan.Write:
		return p.write(ctx, l, next.Part, want)
	}
	until := next.Until
	fresh := !reflect.DeepEqual(want, l.saved.Want) && plan.Due(want, l.saved.State)
	if fresh || l.dirty {
		if due := l.at.Add(saveEvery); now.Before(due) {
			until = earlier(until, due)
		} else {
			if fresh {
				l.saved.Want, l.saved.Asked = want, now
			}
			if err := p.save(ctx, l); err != nil {
				return err
			}
		}
	}
	p.sleep(ctx, until)
	return nil
}

// want returns what is wanted: what this publisher was told, else what another was
// not long ago.
func (p *Publisher) want(l *leading, now time.Time) (want plan.Wanted, muted bool) {
	p.mu.Lock()
	desired, asked, muted := p.wanted, p.asked, p.muted
	p.mu.Unlock()
	if muted {
		return plan.Wanted{}, true
	}
	if asked.IsZero() {
		if age := now.Sub(l.saved.Asked); age < 0 || age > freshFor {
			return plan.Wanted{}, false
		}
		return l.saved.Want, false
	}
	want, problems := plan.Target(desired, p.rules)
	if p.cfg.Account == "" {
		want.Enabled = nil
	}
	p.untold(l, problems)
	return want, false
}

// untold tells what can't be sent as it was wanted, once.
func (p *Publisher) untold(l *leading, problems []error) {
	var texts []string
	for _, problem := range problems {
		text := problem.Error()
		texts = append(texts, text)
		if !slices.Contains(l.saved.Untold, text) {
			p.log.Error("not sent to Cloudflare", "err", problem)
		}
	}
	if !slices.Equal(texts, l.saved.Untold) {
		l.saved.Untold, l.dirty = texts, true
	}
}

func (p *Publisher) read(ctx context.Context, l *leading, part plan.Part, want plan.Wanted) error {
	begun := time.Now()
	have, a, err := p.client.read(ctx, part, want)
	p.metrics.asked(ctx, "read", part, begun, a, err)
	return p.outcome(ctx, l, part, have, a, err)
}

func (p *Publisher) write(ctx context.Context, l *leading, part plan.Part, want plan.Wanted) error {
	begun := time.Now()
	l.saved.State, l.saved.Asked = l.saved.Begin(part, want, begun), begun
	if err := p.save(ctx, l); err != nil {
		return err
	}
	have, a, err := p.client.write(ctx, part, want)
	p.metrics.asked(ctx, "write", part, begun, a, err)
	l.saved.State = l.saved.Ended(part, time.Now())
	if err == nil {
		l.saved.Sent = time.Now()
		p.log.Info("sent to Cloudflare", "part", string(part), "sent", shown(part, have))
	}
	return p.outcome(ctx, l, part, have, a, err)
}

// shown is what of a part goes into the log.
func shown(part plan.Part, have plan.Edge) any {
	if pool, ok := part.Pool(); ok {
		return have.Enabled[pool]
	}
	if part == plan.Weights {
		return have.Weights
	}
	return have.Records
}

// outcome notes what came of a request. When ctx has ended nothing is known, and
// somebody else may be writing: what was begun stays begun.
func (p *Publisher) outcome(ctx context.Context, l *leading, part plan.Part, have plan.Edge, a *answer, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	now := time.Now()
	before, failed := l.saved.Problems[part]
	if err == nil {
		l.saved.State = l.saved.Saw(part, have, now)
		if failed {
			p.log.Info("Cloudflare takes it again", "part", string(part))
		}
	} else {
		f := a.failure(string(part), err, now)
		var conflict *conflictError
		if errors.As(err, &conflict) {
			f = plan.Failure{Text: err.Error(), Refused: true}
		}
		l.saved.State = l.saved.Failed(part, f, now, rand.Float64()) //nolint:gosec // spreads tries, hides nothing
		p.complain(part, f, failed && before.Text == f.Text, l.saved.NotBefore)
	}
	if remaining, reset, ok := a.limit(); ok {
		l.saved.State = l.saved.Limited(remaining, reset, now)
	}
	// The answer must get into the bucket, or the next one reads what is known here.
	for {
		saveErr := p.save(ctx, l)
		if saveErr == nil || errors.Is(saveErr, errOvertaken) || ctx.Err() != nil {
			return saveErr
		}
		p.log.Debug("answer of Cloudflare not saved yet", "err", saveErr)
		p.sleep(ctx, time.Now().Add(saveEvery))
	}
}

// complain logs a failure; one that was told already, for debugging only.
func (p *Publisher) complain(part plan.Part, f plan.Failure, told bool, again time.Time) {
	level, msg := slog.LevelWarn, "Cloudflare did not take it; it is tried again"
	if f.Refused {
		level, msg = slog.LevelError, "Cloudflare refuses it: somebody has to change something"
	}
	if told {
		level = slog.LevelDebug
	}
	p.log.Log(context.Background(), level, msg, "part", string(part), "err", f.Text, "not_before", again)
}

func (p *Publisher) save(ctx context.Context, l *leading) error {
	l.at, l.dirty = time.Now(), false
	l.saved.Holder, l.saved.Pools = p.env.Instance, p.rules.Pools
	p.metrics.holds(l.saved.Have)
	return l.store.save(ctx, l.saved)
}

func (p *Publisher) mutingsNow() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mutings
}

func (p *Publisher) sleep(ctx context.Context, until time.Time) {
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-p.changed:
	case <-ctx.Done():
	}
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// rehearse is a dry run: it begins with what the bucket says and with no knowledge
// of Cloudflare, takes no lease, and changes nothing.
func (p *Publisher) rehearse(ctx context.Context) error {
	db, err := openStore(ctx, p.env.JS)
	if err != nil {
		return err
	}
	st, err := db.load(ctx)
	if err != nil {
		return err
	}
	l := &leading{store: db, saved: st}
	l.saved.State = st.TakeOver()
	for ctx.Err() == nil {
		now := time.Now()
		want, muted := p.want(l, now)
		if muted {
			want = plan.Wanted{}
		}
		next := plan.Decide(now, want, l.saved.State, p.rules)
		switch next.Action {
		case plan.Read:
			// What would be read is not known: as if it had not changed.
			l.saved.State = l.saved.Saw(next.Part, l.saved.Have, now)
		case plan.Write:
			line := p.client.describe(next.Part, want)
			p.log.Info("would be sent to Cloudflare", "request", line)
			if p.cfg.Out != nil {
				fmt.Fprintln(p.cfg.Out, line)
			}
			l.saved.State = l.saved.Begin(next.Part, want, now).Saw(next.Part, want.Edge, now)
		default:
			p.sleep(ctx, next.Until)
		}
	}
	return nil
}
