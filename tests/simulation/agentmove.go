package simulation

import (
	"errors"
	"slices"
	"time"

	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/move"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

var errRefused = errors.New("refused")

// leave does what the source of a move does next, if there is a move. It says whether
// the sandbox has gone.
func (u *unit) leave(t *task, forgotten bool) bool {
	a := u.a
	for !t.late() {
		do := move.Source{
			Epoch: u.e.epoch, Note: u.e.note, Record: u.record, Forgotten: forgotten, Ready: u.ready, Broken: u.broken,
		}.Next(a.clock())
		do = a.w.broken.source(do, u)
		if do != move.Live {
			a.w.seen["source, "+u.e.note.Phase.String()+": "+do.String()]++
			a.w.note(a.name, "%s: source, %s: %s", u.e.id, u.e.note.Phase, do)
		}
		epoch := u.record.GetMove().GetEpoch()
		if u.e.note.Phase != move.Idle {
			epoch = u.e.note.Epoch
		}
		switch do {
		case move.Live, move.Wait:
			return false
		case move.Send:
			u.ready, u.broken = false, false
			u.e.note = move.Note{Epoch: epoch, Phase: move.Sending}
			u.save(t)
			u.send(t)
		case move.Commit:
			u.e.note.Phase = move.Committing
			a.w.atCommit(u)
			u.save(t)
			if !u.write(t, lifecycle.Depart{Epoch: epoch}) {
				return false
			}
		case move.CallOff:
			if !u.write(t, lifecycle.CallOff{Epoch: epoch, Code: "unavailable"}) {
				return false
			}
		case move.Resume:
			u.e.note.Phase = move.Returned
			u.save(t)
			a.m.resume(u.copy())
			if !u.write(t, lifecycle.CallOff{Epoch: epoch, Code: "unavailable"}) {
				return false
			}
		case move.Forget:
			u.e.note = move.Note{}
			u.save(t)
			a.m.resume(u.copy())
		case move.Leave:
			a.m.pause(u.copy())
			u.tell(t)
			return true
		}
		if u.stopped != nil && do != move.Send && do != move.Commit {
			return false
		}
		// What was written, or read, decides; but one that is overtaken by an end is
		// no longer the move's.
		if u.superseded(u.record) && u.record.GetPlacement().GetEpoch() == u.e.epoch || u.record.GetDesired().GetStop() {
			t.poked = true
			return false
		}
		if do == move.CallOff || do == move.Commit {
			t.step()
		}
	}
	return false
}

// write takes a step on the record, once. It says whether its outcome is known.
func (u *unit) write(t *task, step lifecycle.Step) bool {
	sb, err := update(t, u.a.region.bus, u.e.id, u.record, step)
	if err == nil {
		u.see(sb)
	}
	return err == nil
}

// send pauses the sandbox and brings its copy to the target.
func (u *unit) send(t *task) {
	a, sb := u.a, u.record
	target := a.w.machine(sb.GetMove().GetRegion(), sb.GetMove().GetNode())
	a.m.pause(u.copy())
	t.sleep(a.w.between(10*time.Millisecond, 300*time.Millisecond))
	memory := slices.Clone(u.copy().memory)
	_, err := ask(t, &target.agent.process, carry{stream: true, timeout: streamTimeout}, handled(&target.agent.process, func(ht *task) (struct{}, error) {
		return struct{}{}, target.agent.receive(ht, sb, memory, a.region)
	}))
	u.ready, u.broken = err == nil, err != nil
}

// tell tells the target that the move is made; it can find out by itself too. The
// answer is the record there, which the shadow here takes over at once.
func (u *unit) tell(t *task) {
	a, sb := u.a, u.record
	target := a.w.home(sb)
	if target == nil || u.e.note.Epoch != sb.GetPlacement().GetEpoch() {
		return
	}
	arrived, err := ask(t, &target.agent.process, carry{timeout: streamTimeout}, handled(&target.agent.process, func(ht *task) (*siroccov1.Sandbox, error) {
		return target.agent.goOn(ht, sb)
	}))
	if err == nil && arrived != nil && target.region != a.region {
		_, _ = update(t, a.region.bus, u.e.id, nil, lifecycle.Follow{Region: a.region.name, Record: arrived})
	}
}

// reserve keeps room for a sandbox that moves here.
func (a *agent) reserve(id string, until time.Time) (bool, error) {
	if a.units[id] != nil || !a.fits(id) {
		return false, nil
	}
	a.reserved[id] = until
	return true, nil
}

// receive takes a copy in. It answers when the copy is whole, noted, and announced in
// this region.
func (a *agent) receive(t *task, parcel *siroccov1.Sandbox, memory []int, from *region) error {
	id, epoch := parcel.GetId(), parcel.GetMove().GetEpoch()
	if a.units[id] != nil || !a.fits(id) {
		return errRefused
	}
	u := &unit{a: a, e: &entry{id: id, epoch: epoch, record: parcel, waits: true, source: from}, record: parcel}
	u.t, a.units[id] = t, u
	u.save(t)
	t.sleep(a.w.between(10*time.Millisecond, 300*time.Millisecond))
	a.m.begin(&execution{id: id, epoch: epoch, memory: memory})
	t.step()
	if from != a.region && !a.w.broken.Unannounced {
		_, err := change(t, a.region.bus, id, nil, func(here *siroccov1.Sandbox) (*siroccov1.Sandbox, bool, error) {
			next, write := move.Announce(here, parcel, a.region.name, a.clock())
			if !write {
				next = here
			}
			return next, write, nil
		})
		if err != nil {
			u.drop(t)
			delete(a.units, id)
			return err
		}
	}
	told := u.told
	a.launch(u.e, false).told = told
	return nil
}

// goOn takes the source's word that the move is made, and answers with the record once
// it says that the sandbox has arrived.
func (a *agent) goOn(t *task, committed *siroccov1.Sandbox) (*siroccov1.Sandbox, error) {
	u := a.units[committed.GetId()]
	if u == nil || u.e.epoch != committed.GetPlacement().GetEpoch() {
		return nil, errRefused
	}
	u.told = committed
	for range 20 {
		u.t.poke()
		t.sleep(100 * time.Millisecond)
		if u.e.landed {
			return u.record, nil
		}
	}
	return nil, errRefused
}

// awaitCommit waits for the copy's fate, and says whether it is to be the sandbox.
func (u *unit) awaitCommit(t *task) bool {
	a := u.a
	for {
		seen := move.Target{Region: a.region.name, Node: a.m.node, Epoch: u.e.epoch, Record: u.told}
		told := u.told != nil
		if !told {
			sb, err := get(t, u.e.source.bus, u.e.id)
			seen.Record, seen.Forgotten = sb, errors.Is(err, errNone)
		}
		u.told = nil
		fate := a.w.broken.target(seen.Next(), &seen, u)
		how := ", not told"
		if seen.Record == nil && !seen.Forgotten {
			how = ", nobody answers"
		} else if told {
			how = ", told"
		}
		a.w.seen["target: "+fate.String()+how]++
		if fate != move.Unknown {
			a.w.note(a.name, "%s epoch %d: target: %s", u.e.id, u.e.epoch, fate)
		}
		switch fate {
		case move.Release:
			u.record = seen.Record
			u.e.waits, u.e.ready = false, true
			u.save(t)
			u.copy().ready = true
			return true
		case move.Discard:
			return false
		}
		t.rest(2 * time.Second)
	}
}
