// Package guard decides who may run a sandbox that is to be brought up in another region
// if its own is lost.
//
// A node of another region, the guard, keeps the sandbox's last checkpoint. That region's
// bus holds two things, and whoever decides something asks its leader:
//
//   - a fence for each node whose sandboxes are guarded there, which that node renews
//     (Renew) and which expires after FenceTTL by the clock of the bus;
//   - an Entry for each sandbox, changed by compare-and-swap only.
//
// The node that runs the sandbox, the source, lets it run only while its Hold holds: for
// 10 s, by a clock of its own, from when it sent the last renewal. The guard takes the
// sandbox over (Claim) only where the fence has expired, 15 s after the last renewal came.
// So the source has stopped before. A source that was without its fence has to write the
// entry (Confirm) after it has renewed the fence and before it goes on: a claim that read
// the entry before loses its swap by that, one that reads it later sees the fence.
//
// Safety: never does a source serve an epoch that was claimed, if clocks of machines run
// equally fast within a third. Liveness: while the guard's region can be reached, whoever
// may not go on learns so; while it can't, guarded sandboxes stand still, as nobody can
// tell then which of the two regions is lost.
package guard

import (
	"errors"
	"time"
)

// Hold is for how long a source goes on after it sent a renewal; RenewEvery is when it
// sends the next.
const (
	Hold       = 10 * time.Second
	RenewEvery = 3 * time.Second
)

// ErrTaken says that the sandbox was taken over: its newest epoch is in another region.
var ErrTaken = errors.New("guard: the sandbox was taken over")

// ErrOver says that a term of guarding is over, or has never begun.
var ErrOver = errors.New("guard: the sandbox is not guarded under this term")

// ErrFenced says that the node where the sandbox is may still run it.
var ErrFenced = errors.New("guard: its node may still run it")

// Entry says who guards a sandbox, and what has become of it.
type Entry struct {
	// Region, Node and Epoch are those of the execution that is guarded.
	Region string `json:"region"`
	Node   string `json:"node"`
	Epoch  uint64 `json:"epoch"`
	// Term is one time of being guarded: the source chooses it. Empty once it has
	// released the guard.
	Term string `json:"term,omitempty"`
	// Guard is the node that keeps the newest checkpoint, Folder the name under which,
	// and Taken when it was made; empty before the first.
	Guard  string    `json:"guard,omitempty"`
	Folder string    `json:"folder,omitempty"`
	Taken  time.Time `json:"taken,omitzero"`
	// Claimed is the epoch under which Guard has taken it over; 0 if it has not.
	Claimed uint64 `json:"claimed,omitempty"`
	// Confirmed counts the source's returns.
	Confirmed uint64 `json:"confirmed,omitempty"`
}

// takenFrom says whether somebody else has the sandbox in a newer epoch.
func (e *Entry) takenFrom(epoch uint64) bool { return e != nil && e.Claimed > epoch }

// Engage begins a term: the source's first word, before any checkpoint is sent. Error:
// ErrTaken.
func Engage(here *Entry, region, node string, epoch uint64, term string) (*Entry, error) {
	if here.takenFrom(epoch) {
		return nil, ErrTaken
	}
	return &Entry{Region: region, Node: node, Epoch: epoch, Term: term}, nil
}

// Confirm is the word of a source that was without its fence and has it again: it may go
// on once this is written. A term that was never written, because the source was cut off
// before, begins. Error: ErrTaken.
func Confirm(here *Entry, region, node string, epoch uint64, term string) (*Entry, error) {
	if here == nil || here.Term != term {
		return Engage(here, region, node, epoch, term)
	}
	if here.takenFrom(epoch) {
		return nil, ErrTaken
	}
	next := *here
	next.Confirmed++
	return &next, nil
}

// Release ends a term: from then on nobody takes the sandbox over. Errors: ErrTaken, and
// ErrOver if there is nothing to release.
func Release(here *Entry, epoch uint64, term string) (*Entry, error) {
	switch {
	case here.takenFrom(epoch):
		return nil, ErrTaken
	case here == nil || here.Term != term:
		return nil, ErrOver
	}
	return &Entry{Region: here.Region, Node: here.Node, Epoch: here.Epoch}, nil
}

// Keep says that a guard has a checkpoint, whole. Error: ErrOver, also for one that comes
// after the term, or after the sandbox was taken over from an older one.
func Keep(here *Entry, term, guard, folder string, taken time.Time) (*Entry, error) {
	if here == nil || term == "" || here.Term != term || here.Claimed != 0 {
		return nil, ErrOver
	}
	next := *here
	next.Guard, next.Folder, next.Taken = guard, folder, taken
	return &next, nil
}

// Claim takes the sandbox over under an epoch, from a checkpoint that the guard keeps.
// fenced is whether the source's fence stood, read after the entry. again: it was claimed
// before, by the same guard, from the same checkpoint, and nothing is to be written.
// Errors: ErrOver, ErrFenced.
func Claim(here *Entry, fenced bool, guard, folder string, epoch uint64) (next *Entry, again bool, err error) {
	switch {
	case here == nil || here.Term == "" || here.Guard == "" || here.Guard != guard || here.Folder != folder || epoch <= here.Epoch:
		return nil, false, ErrOver
	case here.Claimed != 0:
		return here, true, nil
	case fenced:
		return nil, false, ErrFenced
	}
	claimed := *here
	claimed.Claimed = epoch
	return &claimed, false, nil
}

// Fence is what a source knows of its fence in one region. The zero Fence does not hold.
type Fence struct {
	until time.Time
	spell uint64
}

// Renewed takes a renewal that succeeded, and when it was sent.
func (f *Fence) Renewed(sent, now time.Time) {
	until := sent.Add(Hold)
	if !until.After(now) {
		return // it says nothing about now any more
	}
	if !now.Before(f.until) {
		f.spell++ // it may have expired meanwhile
	}
	if until.After(f.until) {
		f.until = until
	}
}

// Spell returns since which time without a gap the fence holds, as a number that grows
// with each gap; 0 while it does not.
func (f *Fence) Spell(now time.Time) uint64 {
	if !now.Before(f.until) {
		return 0
	}
	return f.spell
}
