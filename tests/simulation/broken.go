package simulation

import (
	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/move"
)

// Broken are faults put into the code on purpose: each is one that the design forbids,
// and that the simulation must find.
type Broken struct {
	// ResumeUnknown: the source lets the sandbox go on when it does not know whether
	// its Depart was stored.
	ResumeUnknown bool
	// ReleaseUntold: the target lets the copy run although nobody has said that the
	// move is made.
	ReleaseUntold bool
	// DiscardOnOld: the target takes a record from before the move for one that says
	// that there is none.
	DiscardOnOld bool
	// AdoptRunning: an agent that was started again lets what is paused go on.
	AdoptRunning bool
	// MoveBeforeDeadline: a node that waits for an answer about a move does not look at
	// the sandbox's deadline.
	MoveBeforeDeadline bool
	// ShadowsLocal: the reaper judges what has moved to another region by its own.
	ShadowsLocal bool
	// ChangeShadows: commands change the record of a sandbox that is elsewhere.
	ChangeShadows bool
	// CreateAnew: a create command that comes again makes another sandbox.
	CreateAnew bool
	// GiveUpRunning: a scheduler that ran out of nodes ends what the last one, whose
	// answer was lost, has begun.
	GiveUpRunning bool
	// EpochAgain: the epoch of a move that was called off is given again.
	EpochAgain bool
	// FollowBlindly: a record that comes from another region replaces the own one.
	FollowBlindly bool
	// LandAtOnce: the record of a sandbox that has arrived is taken over whole or not at
	// all, although a reaper may have brought the departure before.
	LandAtOnce bool
	// Unannounced: the target does not write into its region before the move is made.
	Unannounced bool
	// StaleUpdate: what a step is judged on may be older than what its writer has seen.
	StaleUpdate bool
}

// source changes what the source of a move does.
func (b Broken) source(do move.Do, u *unit) move.Do {
	switch {
	case b.ResumeUnknown && do == move.CallOff && u.e.note.Phase == move.Committing:
		return move.Resume
	case b.ResumeUnknown && do == move.Commit && u.e.note.Phase == move.Committing:
		return move.Resume
	}
	return do
}

// target changes what becomes of a copy.
func (b Broken) target(fate move.Fate, seen *move.Target, u *unit) move.Fate {
	old := seen.Record != nil && seen.Record.GetMove().GetEpoch() < u.e.epoch
	switch {
	case b.DiscardOnOld && fate == move.Unknown && old:
		return move.Discard
	case b.ReleaseUntold && fate == move.Unknown && u.a.clock().After(u.e.record.GetMove().GetDeadline().AsTime()):
		if untold, err := lifecycle.Apply(u.e.record, lifecycle.Depart{Epoch: u.e.epoch}, u.a.clock()); err == nil {
			seen.Record = untold
			return move.Release
		}
	}
	return fate
}
