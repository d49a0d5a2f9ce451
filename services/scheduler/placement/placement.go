// Package placement decides on which node a sandbox goes: a pure function from
// what is known of the nodes to the best few candidates, with the reasons why
// the others are none and why the first is the first.
//
// What holds of every plan ([Rules.Rank]), whatever the input:
//   - No candidate's capacity is exceeded, and none is cordoned, not ready,
//     suspect, outside the regions asked for, or unlike what a sandbox that runs needs.
//   - The same input gives the same plan, in whatever order the nodes come.
//   - Of two nodes that are otherwise equal, one that starts more slowly than the
//     fleet does, or fails more often, is not preferred; one with a warm sandbox
//     of the template is.
package placement

import (
	"math/bits"
	"slices"
	"time"
)

// Amount is what a sandbox asks for and a node has.
type Amount struct {
	CPUMillis   int64
	MemoryBytes int64
	DiskBytes   int64
	Sandboxes   int64
}

// Add returns the sum.
func (a Amount) Add(b Amount) Amount {
	return Amount{a.CPUMillis + b.CPUMillis, a.MemoryBytes + b.MemoryBytes, a.DiskBytes + b.DiskBytes, a.Sandboxes + b.Sandboxes}
}

// Sub returns the difference.
func (a Amount) Sub(b Amount) Amount {
	return Amount{a.CPUMillis - b.CPUMillis, a.MemoryBytes - b.MemoryBytes, a.DiskBytes - b.DiskBytes, a.Sandboxes - b.Sandboxes}
}

// Node is what the scheduler knows of a node.
type Node struct {
	// Name is unique among the nodes that are ranked.
	Name, Region    string
	Capacity, Used  Amount
	Ready, Cordoned bool
	// Suspect: it did not answer a moment ago.
	Suspect bool
	// Warm is how many warm sandboxes of the request's template it has left: what
	// it reported, without those that were placed there since.
	Warm int32
	// Standing is how its starts went, compared with those of the other nodes.
	Standing Standing
	// Machine is what a running sandbox must have had where it comes from: runtime,
	// its version and the processor.
	Machine Machine
}

// Machine is what must be equal for a running sandbox to move from one node to another.
type Machine struct{ Runtime, Version, Processor string }

// Request is what is to be placed.
type Request struct {
	// ID breaks ties, so that equal nodes share the load.
	ID   string
	Need Amount
	// Regions that are allowed; empty means any.
	Regions []string
	// Except are nodes that have refused this sandbox just now, or have it.
	Except []string
	// Like is what the node must be like, for a sandbox that runs already; zero means
	// anything.
	Like Machine
	// Only is the one node that is wanted; empty means any.
	Only string
}

// Policy says how nodes are preferred.
type Policy int

const (
	// Spread prefers the emptiest node.
	Spread Policy = iota
	// Pack prefers the fullest node that still fits.
	Pack
)

// Rules shape all plans of a scheduler.
type Rules struct {
	Policy Policy
	// Candidates is how many nodes a plan names at most; zero: DefaultCandidates.
	Candidates int
}

// DefaultCandidates is how many nodes a plan names at most, if nobody says how
// many: the first takes nearly every sandbox, and when all refuse, a new plan
// without them is cheaper than to have ordered every node.
const DefaultCandidates = 4

// What the parts of a score weigh, as parts of a node's load: from empty to full
// is 1.
const (
	// warmWorth: a warm sandbox outweighs every difference in load.
	warmWorth = 1
	// slowFrom is how many times the fleet's latency a node may take without
	// losing, slowest the most that being slow can cost: more than a warm sandbox
	// on an empty node is worth. A fleet that is quicker than quick is taken to be
	// as quick: below that, nodes differ by chance.
	slowFrom = 1.5
	slowest  = 2.5
	quick    = 10 * time.Millisecond
	// failWorth is what failing every time costs, and so half of it for every
	// second time; failFrom is how much more than the fleet's share of failures a
	// node may have without losing.
	failWorth = 5
	failFrom  = 0.02
)

// Rank returns the plan for a request. It looks at each node once and allocates
// the candidates only.
func (r Rules) Rank(nodes []Node, req Request) Plan {
	most := r.Candidates
	if most <= 0 {
		most = DefaultCandidates
	}
	plan := Plan{Candidates: make([]Candidate, 0, min(most, len(nodes)))}
	usual, id := usualOf(nodes), hash(offset, req.ID)
	for i := range nodes {
		n := &nodes[i]
		if why := refuse(n, &req); why != fits {
			plan.refused[why]++
			continue
		}
		plan.Fit++
		c := r.judge(n, &req, usual)
		c.tie = mix(hash(id, n.Name))
		plan.offer(&c, most)
	}
	return plan
}

// judge makes a candidate of a node that fits.
func (r Rules) judge(n *Node, req *Request, usual Standing) Candidate {
	c := Candidate{Node: n.Name, Region: n.Region, Load: load(n, req.Need), Warm: n.Warm > 0}
	c.Score = 1 - c.Load
	if r.Policy == Pack {
		c.Score = c.Load
	}
	if c.Warm {
		c.Score += warmWorth
	}
	times := float64(n.Standing.Latency) / float64(usual.Latency)
	c.Slow = min(max(times-slowFrom, 0), slowest) * n.Standing.Trust
	if n.Standing.failing(usual) {
		c.Failing = failWorth * (n.Standing.Failures - usual.Failures)
	}
	c.Score -= c.Slow + c.Failing
	return c
}

// refuse says why a node is no candidate.
func refuse(n *Node, req *Request) Reason {
	switch {
	case !n.Ready:
		return NotReady
	case n.Cordoned:
		return Cordoned
	case len(req.Regions) > 0 && !slices.Contains(req.Regions, n.Region):
		return Region
	case n.Suspect:
		return Suspect
	case slices.Contains(req.Except, n.Name):
		return Refused
	case n.Used.Sandboxes+req.Need.Sandboxes > n.Capacity.Sandboxes:
		return OutOfSlots
	case n.Used.MemoryBytes+req.Need.MemoryBytes > n.Capacity.MemoryBytes:
		return OutOfMem
	case n.Used.CPUMillis+req.Need.CPUMillis > n.Capacity.CPUMillis:
		return OutOfCPU
	case n.Used.DiskBytes+req.Need.DiskBytes > n.Capacity.DiskBytes:
		return OutOfDisk
	case req.Like != Machine{} && req.Like != n.Machine:
		return Unlike
	case req.Only != "" && req.Only != n.Name:
		return Unwanted
	}
	return fits
}

// load is how full the fullest dimension of the node would be, 0 to 1.
func load(n *Node, need Amount) float64 {
	return max(
		part(n.Used.CPUMillis+need.CPUMillis, n.Capacity.CPUMillis),
		part(n.Used.MemoryBytes+need.MemoryBytes, n.Capacity.MemoryBytes),
		part(n.Used.DiskBytes+need.DiskBytes, n.Capacity.DiskBytes),
		part(n.Used.Sandboxes+need.Sandboxes, n.Capacity.Sandboxes),
	)
}

func part(used, capacity int64) float64 {
	if capacity <= 0 {
		return 0
	}
	return float64(used) / float64(capacity)
}

// usualOf returns the usual standing: the lower median of the nodes' shares of
// failures, to a hundredth, and of the latencies that are known, to a quarter
// of a power of two; a node that fails more often than usual says nothing about
// what a start takes. Counting into buckets needs no sorting and no memory, and
// is finer than what nodes differ by without a reason.
func usualOf(nodes []Node) (usual Standing) {
	var failures [101]int32
	for i := range nodes {
		failures[int(100*min(max(nodes[i].Standing.Failures, 0), 1))]++
	}
	usual.Failures = float64(middle(failures[:])) / 100
	var latencies [256]int32
	for i := range nodes {
		if s := &nodes[i].Standing; s.Latency > 0 && !s.failing(usual) {
			latencies[bucket(s.Latency)]++
		}
	}
	usual.Latency = max(bucketEnd(middle(latencies[:])), quick)
	return usual
}

// failing says that a node fails more often than is usual.
func (s *Standing) failing(usual Standing) bool { return s.Failures-usual.Failures > failFrom }

// middle returns the bucket with the lower median; the first if all are empty.
func middle(counts []int32) int {
	all, seen := int32(0), int32(0)
	for _, c := range counts {
		all += c
	}
	for i, c := range counts {
		if seen += c; seen >= (all+1)/2 {
			return i
		}
	}
	return 0
}

// bucket numbers durations by the position and the next two bits of their first
// bit.
func bucket(d time.Duration) int {
	n := uint64(d) << 2 //nolint:gosec // positive; those beyond 2^61 ns do not occur
	first := bits.Len64(n) - 1
	return 4*first + int(n>>(first-2)&3) //nolint:gosec // two bits
}

// bucketEnd returns the duration at which a bucket ends.
func bucketEnd(b int) time.Duration {
	quarters, first := uint64(b&3)+5, b/4 //nolint:gosec // two bits
	if first < 4 {
		return time.Duration(quarters >> (4 - first)) //nolint:gosec // small
	}
	return time.Duration(quarters << (first - 4)) //nolint:gosec // see bucket
}

// offer takes a candidate in if it is among the best.
func (p *Plan) offer(c *Candidate, most int) {
	at := len(p.Candidates)
	for at > 0 && before(c, &p.Candidates[at-1]) {
		at--
	}
	if at == most {
		return
	}
	if len(p.Candidates) == most {
		p.Candidates = p.Candidates[:most-1]
	}
	p.Candidates = slices.Insert(p.Candidates, at, *c)
}

// before orders candidates; no two are equal, since names are not.
func before(a, b *Candidate) bool {
	switch {
	case a.Score != b.Score:
		return a.Score > b.Score
	case a.tie != b.tie:
		return a.tie < b.tie
	default:
		return a.Node < b.Node
	}
}

// offset is where a hash begins.
const offset = 14695981039346656037

// hash continues a 64-bit FNV-1a hash, with what ends a string.
func hash(h uint64, s string) uint64 {
	const prime = 1099511628211
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * prime
	}
	return h * prime
}

// mix is the finalizer of MurmurHash3. Names that differ in their last digit only
// differ in few bits of their hash; their order must change from sandbox to
// sandbox.
func mix(h uint64) uint64 {
	h = (h ^ h>>33) * 0xff51afd7ed558ccd
	h = (h ^ h>>33) * 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}
