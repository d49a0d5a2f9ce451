package simulation

import (
	"container/heap"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// errLost says that no answer came in time: what was asked may have been done, may
// still be done, or never will be.
var errLost = errors.New("no answer")

// t0 is where the time of every history begins.
var t0 = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// event is something that happens at a time; of two at one time the older comes first.
type event struct {
	at  time.Duration
	seq uint64
	do  func()
}

type agenda []event

func (a agenda) Len() int { return len(a) }
func (a agenda) Less(i, j int) bool {
	return a[i].at < a[j].at || a[i].at == a[j].at && a[i].seq < a[j].seq
}
func (a agenda) Swap(i, j int) { a[i], a[j] = a[j], a[i] }
func (a *agenda) Push(x any)   { *a = append(*a, x.(event)) } //nolint:forcetypeassert // heap's contract
func (a *agenda) Pop() any {
	old := *a
	last := old[len(old)-1]
	old[len(old)-1].do = nil
	*a = old[:len(old)-1]
	return last
}

// engine is time and chance: it runs what happens, one thing after another.
type engine struct {
	rng    *rand.Rand
	now    time.Duration
	seq    uint64
	agenda agenda
	trail  []line
	// violation is what did not hold, the first time that something did not; the
	// history ends there.
	violation string
	// seen counts situations, so that a test can tell that they come about.
	seen map[string]int
}

// line is one step of the history. It is put into words only if somebody reads it.
type line struct {
	at     time.Duration
	who    string
	format string
	args   []any
}

func (l line) String() string {
	return fmt.Sprintf("%9.3fs  %-14s %s", l.at.Seconds(), l.who, fmt.Sprintf(l.format, l.args...))
}

// note adds a step to the history. Arguments are values that nobody changes.
func (e *engine) note(who, format string, args ...any) {
	e.trail = append(e.trail, line{e.now, who, format, args})
}

// violated ends the history.
func (e *engine) violated(invariant, format string, args ...any) {
	if e.violation == "" {
		e.violation = invariant + ": " + fmt.Sprintf(format, args...)
		e.note("INVARIANT", "%s", e.violation)
	}
}

// history returns the last n steps, all for 0.
func (e *engine) history(n int) string {
	lines := e.trail
	if n > 0 && len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	var b strings.Builder
	for _, l := range lines {
		b.WriteString(l.String())
		b.WriteByte('\n')
	}
	return b.String()
}

func (e *engine) after(d time.Duration, do func()) {
	e.seq++
	heap.Push(&e.agenda, event{e.now + max(d, 0), e.seq, do})
}

// runUntil lets everything happen that happens before a time.
func (e *engine) runUntil(end time.Duration) {
	for len(e.agenda) > 0 && e.agenda[0].at <= end && e.violation == "" {
		next := heap.Pop(&e.agenda).(event) //nolint:forcetypeassert // the agenda holds events
		e.now = next.at
		next.do()
	}
	e.now = max(e.now, end)
}

func (e *engine) chance(p float64) bool { return p > 0 && e.rng.Float64() < p }

// between draws a duration.
func (e *engine) between(low, high time.Duration) time.Duration {
	return low + time.Duration(e.rng.Int64N(int64(high-low)+1))
}

// process is a program that may crash at any time and be started again. What it keeps
// is in its tasks and dies with them.
type process struct {
	w      *world
	name   string
	region *region
	up     bool
	// life counts its starts.
	life  int
	skew  time.Duration
	boot  func()
	tasks []*task
}

// clock is the time as this process sees it.
func (p *process) clock() time.Time { return t0.Add(p.w.now + p.skew) }

func (p *process) start() {
	if p.up {
		return
	}
	p.up = true
	p.life++
	p.w.note(p.name, "starts")
	if p.boot != nil {
		p.boot()
	}
}

// crash ends every task where it is: between two things that can be seen from outside.
func (p *process) crash() {
	if !p.up {
		return
	}
	p.w.note(p.name, "crashes")
	p.halt()
}

// halt ends its tasks.
func (p *process) halt() {
	p.up = false
	for _, t := range slices.Clone(p.tasks) {
		t.dead = true
		t.stop()
	}
	p.tasks = nil
}

// task is one thread of a process. Only one of all tasks runs at a time, and only until
// it waits for something: a coroutine, so that nothing depends on Go's scheduler.
type task struct {
	p     *process
	next  func() (struct{}, bool)
	stop  func()
	yield func(struct{}) bool
	dead  bool
	// turn numbers what it waits for; waiting says that it does.
	turn    uint64
	waiting bool
	// idle says that a poke ends the waiting; poked that one came before.
	idle, poked bool
	// limit is when it gives up to wait for an answer; 0 for never.
	limit time.Duration
}

// late says whether the task's limit has passed.
func (t *task) late() bool { return t.limit != 0 && t.p.w.now >= t.limit }

type killed struct{}

// spawn starts a task. It runs at once until it waits.
func (p *process) spawn(run func(t *task)) *task {
	t := &task{p: p}
	t.next, t.stop = iter.Pull(func(yield func(struct{}) bool) {
		defer func() {
			if r := recover(); r != nil {
				if _, ok := r.(killed); !ok {
					panic(r)
				}
			}
		}()
		t.yield = yield
		run(t)
	})
	p.tasks = append(p.tasks, t)
	p.w.after(0, func() { p.w.resume(t) })
	return t
}

// resume lets a task run on. A process may crash just before.
func (w *world) resume(t *task) {
	if t.dead {
		return
	}
	if w.crashNow(t.p) {
		t.p.crash()
		return
	}
	if _, ok := t.next(); !ok {
		t.dead = true
		t.p.tasks = slices.DeleteFunc(t.p.tasks, func(other *task) bool { return other == t })
	}
}

// suspend waits until the world resumes the task in this turn.
func (t *task) suspend() {
	t.waiting = true
	if !t.yield(struct{}{}) {
		panic(killed{})
	}
}

// wake returns what ends the present turn of waiting, once.
func (t *task) wake() func() {
	t.turn++
	turn := t.turn
	return func() {
		if t.waiting && t.turn == turn && !t.dead {
			t.waiting, t.idle = false, false
			t.p.w.resume(t)
		}
	}
}

// sleep waits.
func (t *task) sleep(d time.Duration) {
	t.p.w.after(d, t.wake())
	t.suspend()
}

// step is a moment in which the process may crash.
func (t *task) step() { t.sleep(time.Millisecond) }

// rest waits until somebody pokes the task, and for d at most.
func (t *task) rest(d time.Duration) {
	if t.poked {
		t.poked = false
		t.step()
		return
	}
	t.p.w.after(d, t.wake())
	t.idle = true
	t.suspend()
	t.poked = false
}

func (t *task) poke() {
	t.poked = true
	if t.waiting && t.idle && !t.dead {
		t.idle = false
		t.p.w.after(0, t.wake())
	}
}

// carry says how a question travels.
type carry struct {
	// stream: over a connection, which delivers once and breaks with either end.
	stream  bool
	timeout time.Duration
}

// ask asks another process, or a bus, and waits for the answer. It may be lost on
// either way, come late (also after the asker has given up) or, if it is no stream,
// twice.
func ask[R any](t *task, to *process, c carry, serve func(answer func(R, error))) (R, error) {
	w := t.p.w
	var out R
	err := errLost
	done := t.wake()
	turn, life := t.turn, to.life
	arrive := func(first bool) func() {
		return func() {
			if !to.up || w.cut(t.p, to) || c.stream && (to.life != life || t.dead) {
				return
			}
			serve(func(v R, e error) {
				if !first {
					return
				}
				w.after(w.latency(), func() {
					if !w.cut(t.p, to) && t.waiting && t.turn == turn {
						out, err = v, e
						done()
					}
				})
			})
		}
	}
	if !w.cut(t.p, to) && to.up {
		way := w.latency()
		w.after(way, arrive(true))
		if !c.stream && w.chance(w.mood.twice) {
			w.after(way+w.latency(), arrive(false))
		}
	}
	timeout := c.timeout
	if t.limit != 0 {
		timeout = min(timeout, t.limit-w.now)
	}
	w.after(timeout, done)
	t.suspend()
	return out, err
}

// handled answers by a task of the process that is asked.
func handled[R any](to *process, handle func(t *task) (R, error)) func(func(R, error)) {
	return func(answer func(R, error)) { to.spawn(func(t *task) { answer(handle(t)) }) }
}
