// Package pool decides what the warm pools of one node hold: how many sandboxes
// are kept ready of each template, which one is built next and which one is
// given up. Values and a time in, decisions out; it builds nothing, knows no
// clock and keeps no state but [Demand], which is a value too.
//
// How many: what is expected to be claimed while the pool is refilled, and some
// more for chance ([Demand.Target]); never fewer than declared, never more than
// allowed. When memory is short, declared minimums come first, each cut by the
// same share, then what is most likely to be claimed for its memory.
//
// What holds of every plan ([Rules.Plan]), whatever the input:
//   - Builds never lead over the budget, over what real sandboxes leave free, or
//     over the number of builds at a time.
//   - While claims or cold creates are in progress nothing is built, except for
//     the declared fill of a node that is not ready yet, and one at a time once
//     the node has been busy for longer than [Rules.Patience]; and in the lull that
//     follows, only what is below half of its size.
//   - Only what is in a warm list is dropped, and each at most once.
//   - The same input gives the same plan, in whatever order templates come.
//   - Carried out again and again with nothing else happening, plans come to
//     rest: what one plan builds, the next does not drop.
package pool

import "time"

// Room is what sandboxes take of a node, or what it has for them.
type Room struct {
	MemoryBytes int64
	Sandboxes   int
}

// Rules are what the operator of a node wants of its pools.
type Rules struct {
	// BudgetBytes is the memory that all warm sandboxes of the node may take.
	BudgetBytes int64
	// Reserve is kept free for real sandboxes when one is built: warm ones give
	// way only once it is used up, so that a node that is nearly full does not
	// build and drop with every sandbox that comes and goes.
	Reserve Room
	// Parallel is how many are built at a time.
	Parallel int
	// Patience is how long refilling waits behind claims and cold creates that
	// follow each other without a pause; zero: as long as it takes. A create may be
	// slow without needing the machine, as when it fetches an image, and must not
	// keep all pools empty.
	Patience time.Duration
	// MaxAge is how long a sandbox may stay warm; zero: for ever. Each is given up
	// after between three quarters of it and all of it, so that those that were
	// built together do not go together.
	MaxAge time.Duration
}

// Template is a template with its pool.
type Template struct {
	// Key is the template's, unique among those of a State.
	Key string
	// Version is what a sandbox built now would have, such as the digest of its
	// image; a warm one of another is dropped.
	Version string
	// Min is the declared size, zero if none is declared; Max the most that the
	// demand may ask for, and the larger of the two is not exceeded. Both zero
	// empty the pool.
	Min, Max int
	// CostBytes is the memory that one warm sandbox takes.
	CostBytes int64
	// Warm are those that can be claimed, in any order. One that is claimed
	// leaves this list before its claimer gets it, so a plan can't drop it.
	Warm []Warm
	// Building is how many are being built.
	Building int
	// NotBefore is when one may be built again after a build that failed; zero: at
	// once.
	NotBefore time.Time
	// BuildTime is how long a build takes, smoothed.
	BuildTime time.Duration
	// Demand is what has been claimed so far, hits and misses alike.
	Demand Demand
}

// Warm is one warm sandbox.
type Warm struct {
	ID      string
	Version string
	BuiltAt time.Time
}

// State is what a node's pools are at one time.
type State struct {
	Templates []Template
	// Free is what the real sandboxes leave of the node: its capacity without
	// what they take. Warm ones and those being built are not taken off it.
	Free Room
	// Busy is how many claims and cold creates are in progress.
	Busy int
	// BusySince is when Busy last rose from zero.
	BusySince time.Time
	// Lull says that a start has ended a moment ago: its client's first command is on
	// its way, and feels whatever is built beside it.
	Lull bool
	// Ready is false until the node takes sandboxes: declared minimums are being
	// filled.
	Ready bool
}

// Decision is what is to be done now.
type Decision struct {
	// Build are the templates of which one is to be built, most valuable first; a
	// template is there once for each.
	Build []string
	// Drop are those to be destroyed. The room they free is not counted on by this
	// plan's builds.
	Drop []Drop
	// Filled says that nothing is missing of the declared minimums, as far as they
	// fit and builds do not fail: the node may report ready.
	Filled bool
}

// Drop is a warm sandbox to be destroyed.
type Drop struct {
	Template, ID string
	Why          Why
}

// Why says why a warm sandbox is given up.
type Why string

// The reasons, in the order in which they are checked.
const (
	// Outdated: a sandbox built now would have another version.
	Outdated Why = "outdated"
	// Stale: it has been warm for too long.
	Stale Why = "stale"
	// NoRoom: real sandboxes need its room, or the budget has shrunk.
	NoRoom Why = "no_room"
	// Unused: more are warm than the demand asks for.
	Unused Why = "unused"
	// Outbid: another template needs its room more.
	Outbid Why = "outbid"
)
