package simulation

import (
	"errors"
	"time"

	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

var (
	errConflict = errors.New("written by somebody else meanwhile")
	errNone     = errors.New("there is none")
)

// busTimeout bounds one question to a bus; writeBudget a write with all its tries, as
// in package record.
const (
	busTimeout  = 2 * time.Second
	writeBudget = 6 * time.Second
)

// revision is one state of a record.
type revision struct {
	at time.Duration
	sb *siroccov1.Sandbox // nil: it was deleted
}

// bus is the NATS of a region. What it has acknowledged survives it.
type bus struct {
	process
	seq     uint64
	records map[string][]revision
	ids     []string // keys of records, in the order in which they came
	keys    map[string]string
	hearts  map[string]time.Duration
	queue   []*command
}

// command is one message of the work queue.
type command struct {
	verb, key, id string
	region        string // for migrate
	tag           string
	by            time.Duration
	life          time.Duration
	at            time.Duration
	done          bool
}

// latest is what the leader says.
func (b *bus) latest(id string) *siroccov1.Sandbox {
	if revisions := b.records[id]; len(revisions) > 0 {
		return revisions[len(revisions)-1].sb
	}
	return nil
}

// read is what any server says: it may be behind. That there is nothing is what the
// leader says.
func (b *bus) read(id string) (*siroccov1.Sandbox, error) {
	revisions := b.records[id]
	if b.w.chance(b.w.mood.stale) {
		asOf := b.w.now - b.w.between(0, 3*time.Second)
		for i := len(revisions) - 1; i >= 0; i-- {
			if revisions[i].at <= asOf && revisions[i].sb != nil {
				return revisions[i].sb, nil
			}
		}
	}
	if sb := b.latest(id); sb != nil {
		return sb, nil
	}
	return nil, errNone
}

// write stores sb over a revision; 0 for none. What is stored is not changed any more.
func (b *bus) write(sb *siroccov1.Sandbox, over uint64) (*siroccov1.Sandbox, error) {
	id := sb.GetId()
	if b.latest(id).GetRevision() != over {
		return nil, errConflict
	}
	if len(b.records[id]) == 0 {
		b.ids = append(b.ids, id)
	}
	b.seq++
	sb.Revision = b.seq
	b.records[id] = append(b.records[id], revision{b.w.now, sb})
	b.w.note(b.name, "%s rev %d: %s", id, b.seq, state{sb})
	b.w.written(b, sb)
	return sb, nil
}

func (b *bus) delete(id string) {
	if b.latest(id) != nil {
		b.records[id] = append(b.records[id], revision{b.w.now, nil})
		b.w.note(b.name, "%s is forgotten", id)
	}
}

// onBus asks a bus.
func onBus[R any](t *task, b *bus, op func() (R, error)) (R, error) {
	return ask(t, &b.process, carry{timeout: busTimeout}, func(answer func(R, error)) { answer(op()) })
}

func get(t *task, b *bus, id string) (*siroccov1.Sandbox, error) {
	return onBus(t, b, func() (*siroccov1.Sandbox, error) { return b.read(id) })
}

func leader(t *task, b *bus, id string) (*siroccov1.Sandbox, error) {
	return onBus(t, b, func() (*siroccov1.Sandbox, error) {
		if sb := b.latest(id); sb != nil {
			return sb, nil
		}
		return nil, errNone
	})
}

// swap writes a record as record.Store does: again while nobody answers, and knowing
// its own write when it meets it.
func swap(t *task, b *bus, next *siroccov1.Sandbox, over uint64) (*siroccov1.Sandbox, error) {
	began := t.p.w.now
	for again := false; ; again = true {
		stored, err := onBus(t, b, func() (*siroccov1.Sandbox, error) { return b.write(next, over) })
		switch {
		case err == nil:
			return stored, nil
		case errors.Is(err, errConflict) && again:
			if sb, err := leader(t, b, next.GetId()); err == nil && sb == next {
				return sb, nil
			}
			return nil, errConflict
		case errors.Is(err, errConflict), t.p.w.now-began > writeBudget, t.late():
			return nil, err
		}
		t.sleep(100 * time.Millisecond)
	}
}

// update is record.Store's: it reads, decides by step and writes until it is not
// overtaken. What it reads after it was overtaken comes from the leader: an older
// record would make a step look as if it had been taken or were not wanted.
func update(t *task, b *bus, id string, from *siroccov1.Sandbox, step lifecycle.Step) (*siroccov1.Sandbox, error) {
	return change(t, b, id, from, func(sb *siroccov1.Sandbox) (*siroccov1.Sandbox, bool, error) {
		if sb == nil {
			return nil, false, errNone
		}
		next, err := lifecycle.Apply(sb, step, t.p.clock())
		if errors.Is(err, lifecycle.ErrNoChange) {
			return sb, false, nil
		}
		return next, err == nil, err
	})
}

// change is update with any decision. It is asked about nil where there is no record.
func change(t *task, b *bus, id string, from *siroccov1.Sandbox, decide func(*siroccov1.Sandbox) (*siroccov1.Sandbox, bool, error)) (*siroccov1.Sandbox, error) {
	sb, err := from, error(nil)
	if sb == nil || t.p.w.broken.StaleUpdate {
		sb, err = get(t, b, id)
	}
	for {
		if err != nil && !errors.Is(err, errNone) {
			return nil, err
		}
		next, write, err2 := decide(sb)
		if err2 != nil || !write {
			return next, err2
		}
		written, err2 := swap(t, b, next, sb.GetRevision())
		if !errors.Is(err2, errConflict) {
			return written, err2
		}
		if t.p.w.broken.StaleUpdate {
			sb, err = get(t, b, id)
		} else {
			sb, err = leader(t, b, id)
		}
	}
}

// publish puts a command on the queue; its key makes a second one harmless.
func publish(t *task, b *bus, c command) error {
	_, err := onBus(t, b, func() (struct{}, error) {
		b.enqueue(c)
		return struct{}{}, nil
	})
	return err
}

func (b *bus) enqueue(c command) {
	if c.at == 0 {
		c.at = b.w.now // counted from its first acceptance, wherever it goes on to
	}
	b.w.note(b.name, "queue: %s %s", c.verb, c.key)
	b.queue = append(b.queue, &c)
	b.deliver(&c, b.w.latency())
}

// redelivery is when a command comes again that nobody has acknowledged.
const redelivery = 10 * time.Second

// deliver gives a command to one of the schedulers, now and again until it is done.
func (b *bus) deliver(c *command, wait time.Duration) {
	b.w.after(wait, func() {
		if c.done {
			return
		}
		if b.up {
			live := b.region.reachable(b)
			if len(live) > 0 {
				s := live[b.w.rng.IntN(len(live))]
				s.spawn(func(t *task) { b.region.carryOut(t, b, c) })
			}
		}
		again := redelivery
		if b.w.chance(b.w.mood.twice) {
			again = b.w.between(0, 2*time.Second)
		}
		b.deliver(c, again)
	})
}

// settle ends a command; an acknowledgement may be lost.
func (b *bus) settle(t *task, c *command) {
	_, _ = onBus(t, b, func() (struct{}, error) {
		c.done = true
		return struct{}{}, nil
	})
}
