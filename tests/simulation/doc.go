// Package simulation lives through histories of whole regions in virtual time and checks
// after each that the invariants of the design hold. Everything about a history comes
// from its seed: a seed that fails is replayed, step by step, by `make simulate SEED=…`.
//
// Real is what decides: the steps of records (pkg/lifecycle), the moves (pkg/move),
// placement, the reaper's sweeps, weights, and the checks (pkg/invariants). Modelled,
// after their originals, is what acts on that: buses with records by compare-and-swap,
// stale reads and redelivered commands; api, schedulers, agents, reapers, relays; machines
// with their sandboxes, of which each is a list of the values that users wrote into it;
// and users who remember what was answered.
//
// What goes wrong: programs crash between any two of their steps and start again from what
// is durable; messages are lost, late or come twice; regions, or any two programs, do not
// hear each other; buses, whole regions and machines go away, some machines for good;
// clocks are wrong and jump; and around the write that makes a move all of this is
// likelier.
//
// Programs are coroutines (iter.Pull) that run one at a time, until each waits for
// something. So the code reads as in earnest, and no history depends on Go's scheduler,
// the order of maps or the time of day.
package simulation
