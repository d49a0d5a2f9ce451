package fleet

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/subject"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	sirocco "github.com/sirocco-run/sirocco/sdk/go"
	"github.com/sirocco-run/sirocco/services/sirocco/bench"
)

// regulars is how many sandboxes are kept in which commands are run again and again,
// each through one handle: whoever holds it is not told that its sandbox moves.
const regulars = 200

// clients are what users of the regions do. What they ask over the bus is asked once:
// each failure counts. Commands are run by the SDK, as its users run them.
type clients struct {
	cfg  Evacuation
	load *load
	// handles are of the regulars.
	handles []*sirocco.Sandbox
	times   times
	gets    bench.Samples
	execs   bench.Samples
	running sync.WaitGroup
}

// keepRegulars takes the sandboxes in which commands are run out of those that end.
func (c *clients) keepRegulars(all []*sirocco.Client) {
	c.load.mu.Lock()
	defer c.load.mu.Unlock()
	n := min(regulars, (len(c.load.live)+1)/2)
	for i, id := range c.load.live[:n] {
		c.handles = append(c.handles, all[i%len(all)].Sandbox(id))
	}
	c.load.live = c.load.live[n:]
}

// start lets them come until the returned function is called, which waits until the last
// is answered.
func (c *clients) start(ctx context.Context) (stop func()) {
	open, shut := context.WithCancel(ctx)
	for _, x := range []struct {
		rate float64
		do   func(i int)
	}{
		{c.cfg.Churn, func(int) { _, _ = c.load.create(ctx, &c.times) }},
		{c.cfg.Churn, func(int) { c.load.endOldest(ctx, &c.times) }},
		{c.cfg.Gets, func(int) { c.get(ctx) }},
		{c.cfg.Execs, func(i int) { c.exec(ctx, i) }},
	} {
		c.running.Go(func() {
			bench.Pace(open, math.MaxInt32, x.rate, func(i int, _ time.Time) { x.do(i) })
		})
	}
	return func() { shut(); c.running.Wait() }
}

// get asks any region for any sandbox that lives.
func (c *clients) get(ctx context.Context) {
	id := c.load.any()
	if id == "" {
		return
	}
	began := time.Now()
	sb := &siroccov1.Sandbox{}
	err := c.load.ask(ctx, c.load.next(), subject.VerbGet, &siroccov1.GetSandboxRequest{Id: id}, sb)
	took := time.Since(began)
	if len(c.load.still([]string{id})) == 0 {
		return // somebody has ended it meanwhile
	}
	if err == nil && (sb.GetId() != id || !lifecycle.Live(sb.GetState())) {
		err = fmt.Errorf("sandbox %s lives and is answered as %v: %s", id, sb.GetState(), sb.GetEnd().GetMessage())
	}
	if !c.load.failures.Add(doing("get "+id, err)) {
		c.gets.Add(began.Sub(c.load.began), took)
	}
}

// exec runs a command in one of the regulars.
func (c *clients) exec(ctx context.Context, i int) {
	sb := c.handles[rand.N(len(c.handles))]
	want := "word " + strconv.Itoa(i)
	began := time.Now()
	ectx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	var out bytes.Buffer
	end, err := sb.Run(ectx, sirocco.Command{Args: []string{"echo", want}, Stdout: &out})
	if got := strings.TrimSpace(out.String()); err == nil && (end.GetExitCode() != 0 || got != want) {
		err = fmt.Errorf("it ended with %v and said %q, not %q", end, got, want)
	}
	if !c.load.failures.Add(doing("run a command in "+sb.ID, err)) {
		c.execs.Add(began.Sub(c.load.began), time.Since(began))
	}
}

// any returns one of those that live, at random; "" if there is none.
func (l *load) any() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.live) == 0 {
		return ""
	}
	return l.live[rand.N(len(l.live))]
}
