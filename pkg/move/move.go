// Package move decides what the two nodes of a move do next: pure functions from what
// a node has noted and what it has seen to one thing to do. Crashes, lost answers and
// late messages are nothing special: whatever happened, the node looks at its note and
// at the record, and asks again.
//
//	source:  Send ─▶ Commit ─▶ Leave           the record has departed: the copy alone may run
//	           └─▶ Resume ─▶ Forget            it had not tried to commit: it goes on at once
//	                 Commit ─▶ CallOff ─▶ …    it had, and does not know: the record decides
//	target:  Wait ─▶ Release                   the record has departed to this copy
//	           └─▶ Discard                     it never will
//
// What holds, whatever is lost, late, twice or restarted, if the caller does what it is
// told and keeps its note (Note) and the target its copy through a restart:
//   - The source runs only while no Depart of it can still be stored: either it never
//     tried (the note says so), or the record shows that the move is over. Depart and
//     CallOff are written over the revision that was read, so one of them wins.
//   - The copy runs only after Depart was stored. An epoch names one attempt
//     (lifecycle.NextEpoch): no older copy is taken for it.
//   - A record from before the move says nothing about it, neither to the source nor to
//     the target: servers of the bus may answer with what was.
//   - Some region holds a record that names each node with a copy: the target writes
//     what it is to get, still a shadow, into its own region's bucket before it says
//     that it is ready (Announce). So whoever dies, a reaper knows whom to ask.
package move

import (
	"time"

	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/proto"
)

// Phase is how far the source has come with a move. It is noted before the phase is
// begun.
type Phase int

const (
	// Idle: there is no move.
	Idle Phase = iota
	// Sending: the sandbox may be paused, and a copy may be under way. Nothing has been
	// tried that could make the move.
	Sending
	// Committing: Depart may have been written, or may still be.
	Committing
	// Returned: the sandbox runs here again, and Depart was never tried. The record may
	// not say so yet.
	Returned
)

// String returns the phase in one word.
func (p Phase) String() string {
	return [...]string{"idle", "sending", "committing", "returned"}[p]
}

// Note is what the source keeps of a move where it survives the agent.
type Note struct {
	// Epoch is that of the move; 0 without one.
	Epoch uint64
	Phase Phase
}

// Source is what the node that a sandbox leaves knows.
type Source struct {
	// Epoch of the execution here.
	Epoch uint64
	Note  Note
	// Record is the newest of this region that is known, never replaced by an older
	// one; nil if none is. Forgotten says that the bus has none any more.
	Record    *siroccov1.Sandbox
	Forgotten bool
	// Ready: the target has the whole copy and has said so to this agent. Broken: it
	// will not, because something failed or the agent was started again.
	Ready, Broken bool
}

// Do is what the source does next.
type Do int

const (
	// Live: nothing about a move. What the record says otherwise, such as an end,
	// counts as it does without one.
	Live Do = iota
	// Wait: nothing until something else is known.
	Wait
	// Send: note Sending, then pause, checkpoint, send.
	Send
	// Commit: note Committing, then write Depart and look at what is stored.
	Commit
	// Resume: note Returned, let the sandbox go on, tell the target if it can be told,
	// and write CallOff until it is stored.
	Resume
	// CallOff: it may have been made. Write CallOff, keep the sandbox paused, and look
	// at what is stored.
	CallOff
	// Forget: the move is over and was not made. The sandbox goes on; the note goes.
	Forget
	// Leave: the sandbox is elsewhere. Tell the target, destroy what is here, write
	// nothing.
	Leave
)

// String returns what is to be done in one word.
func (d Do) String() string {
	return [...]string{"live", "wait", "send", "commit", "resume", "call off", "forget", "leave"}[d]
}

// Next returns what the source does next.
func (s Source) Next(now time.Time) Do {
	sb := s.Record
	switch {
	case s.Forgotten, sb.GetPlacement().GetEpoch() > s.Epoch:
		return Leave
	case sb == nil && s.Note.Phase == Idle:
		return Live
	case lifecycle.Ended(sb.GetState()), sb.GetDesired().GetStop():
		return Live // and it can't depart any more
	}
	// A move that was made is that of the execution here, which has come by it.
	moving := sb.GetState() == siroccov1.State_STATE_MIGRATING && sb.GetPlacement().GetEpoch() < sb.GetMove().GetEpoch()
	late := moving && now.After(sb.GetMove().GetDeadline().AsTime())
	if s.Note.Phase == Idle {
		switch {
		case !moving:
			return Live
		case late:
			return CallOff
		}
		return Send
	}
	if e := sb.GetMove().GetEpoch(); e > s.Note.Epoch || e == s.Note.Epoch && !moving {
		return Forget
	}
	// Known is at most that the move is wanted; the record may be older than that.
	switch {
	case s.Note.Phase == Returned:
		return Resume
	case s.Note.Phase == Committing && s.Ready && !s.Broken && !late:
		return Commit
	case s.Note.Phase == Committing:
		return CallOff
	case s.Broken, late:
		return Resume
	case s.Ready:
		return Commit
	}
	return Wait
}

// Target is what the node to which a sandbox goes knows of a copy that has not run yet.
type Target struct {
	Region, Node string
	// Epoch of the copy: that of the move.
	Epoch uint64
	// Record of the region that the sandbox leaves, or the committed one that the
	// source sent; nil if nothing is known. Forgotten says that the bus there has none.
	Record    *siroccov1.Sandbox
	Forgotten bool
}

// Fate is what becomes of a copy.
type Fate int

const (
	// Unknown: it waits, and asks again. It is never let go because of time alone.
	Unknown Fate = iota
	// Release: the copy is the sandbox. Note that it is, let it run, and write Land.
	Release
	// Discard: it will never run. Destroy it, write nothing.
	Discard
)

// String returns the fate in one word.
func (f Fate) String() string { return [...]string{"unknown", "release", "discard"}[f] }

// Next returns what becomes of the copy.
func (t Target) Next() Fate {
	sb, p := t.Record, t.Record.GetPlacement()
	switch {
	case t.Forgotten:
		return Discard
	case sb.GetMove().GetEpoch() < t.Epoch:
		return Unknown // from before the move
	case p.GetEpoch() == t.Epoch && p.GetRegion() == t.Region && p.GetNode() == t.Node &&
		!lifecycle.Ended(sb.GetState()) && sb.GetMove().GetEnded() == nil:
		return Release // and no other copy has arrived in its name
	case p.GetEpoch() < t.Epoch && sb.GetMove().GetEpoch() == t.Epoch && sb.GetState() == siroccov1.State_STATE_MIGRATING:
		return Unknown
	}
	return Discard
}

// Announce returns the record that the target writes into its own region's bucket
// before it is ready: what came with the copy, a shadow until the move is made. here is
// what the bucket holds, nil if nothing. write is false if nothing is to be written.
func Announce(here, parcel *siroccov1.Sandbox, region string, at time.Time) (next *siroccov1.Sandbox, write bool) {
	if here == nil {
		next = proto.CloneOf(parcel)
		next.Revision = 0
		return next, true
	}
	next, err := lifecycle.Apply(here, lifecycle.Follow{Region: region, Record: parcel}, at)
	return next, err == nil
}

// Land returns the record of the region where a sandbox has arrived: the committed one,
// if what is here is older, and the arrival. write is false if the record has it already
// or has moved past it; next is then what is here.
func Land(here, committed *siroccov1.Sandbox, region string, arrive lifecycle.Arrive, at time.Time) (next *siroccov1.Sandbox, write bool) {
	next = here
	if announced, ok := Announce(here, committed, region, at); ok {
		next, write = announced, true
	}
	if arrived, err := lifecycle.Apply(next, arrive, at); err == nil {
		return arrived, true
	}
	return next, write
}

// Route is where a change of a sandbox is made.
type Route int

const (
	// Here: in this region.
	Here Route = iota
	// There: in the region of the placement.
	There
	// Later: the sandbox has left and has not been seen to arrive. Its record there may
	// not take the change yet, so it waits.
	Later
)

// RouteOf says where a change is made of which the record was read in a region.
func RouteOf(sb *siroccov1.Sandbox, region string) Route {
	switch {
	case !lifecycle.Shadow(sb, region):
		return Here
	case sb.GetMove().GetEpoch() == sb.GetPlacement().GetEpoch() && sb.GetMove().GetEnded() == nil:
		return Later
	}
	return There
}
