// Package placement decides on which node a sandbox goes: a pure function from
// what is known of the nodes to an order of candidates, with a reason for each
// node that is not one. Same input, same plan.
package placement

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"
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
	Name, Region    string
	Capacity, Used  Amount
	Ready, Cordoned bool
	// Suspect: it did not answer a moment ago.
	Suspect bool
	// Warm is how many warm sandboxes of the request's template it holds.
	Warm int32
	// StartLatency is its own smoothed time of a start.
	StartLatency time.Duration
}

// Request is what is to be placed.
type Request struct {
	// ID breaks ties, so that equal nodes share the load.
	ID   string
	Need Amount
	// Regions that are allowed; empty means any.
	Regions []string
}

// Policy says how nodes are preferred.
type Policy int

const (
	// Spread prefers the emptiest node.
	Spread Policy = iota
	// Pack prefers the fullest node that still fits.
	Pack
)

// Plan is the answer: the candidates, best first, and the others with why not.
type Plan struct {
	Candidates []string
	Refusals   map[string]Reason
}

// Reason says why a node is no candidate.
type Reason string

// The reasons, in the order in which they are checked.
const (
	NotReady   Reason = "not ready"
	Cordoned   Reason = "cordoned"
	Region     Reason = "region"
	Suspect    Reason = "does not answer"
	OutOfSlots Reason = "slots"
	OutOfMem   Reason = "memory"
	OutOfCPU   Reason = "cpu"
	OutOfDisk  Reason = "disk"
)

// Rank returns the plan for a request.
func Rank(nodes []Node, req Request, policy Policy) Plan {
	plan := Plan{Refusals: map[string]Reason{}}
	type scored struct {
		name  string
		warm  bool
		score float64
		tie   uint64
	}
	var fit []scored
	for _, n := range nodes {
		if why := refuse(n, req); why != "" {
			plan.Refusals[n.Name] = why
			continue
		}
		score := 1 - load(n, req.Need)
		if policy == Pack {
			score = 1 - score
		}
		// A slow node is worth less: each 100 ms costs as much as a tenth of load.
		score -= n.StartLatency.Seconds()
		fit = append(fit, scored{n.Name, n.Warm > 0, score, tie(n.Name, req.ID)})
	}
	slices.SortFunc(fit, func(a, b scored) int {
		if a.warm != b.warm {
			if a.warm {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(b.score, a.score), cmp.Compare(a.tie, b.tie), cmp.Compare(a.name, b.name))
	})
	for _, s := range fit {
		plan.Candidates = append(plan.Candidates, s.name)
	}
	return plan
}

func refuse(n Node, req Request) Reason {
	free := n.Capacity.Sub(n.Used).Sub(req.Need)
	switch {
	case !n.Ready:
		return NotReady
	case n.Cordoned:
		return Cordoned
	case len(req.Regions) > 0 && !slices.Contains(req.Regions, n.Region):
		return Region
	case n.Suspect:
		return Suspect
	case free.Sandboxes < 0:
		return OutOfSlots
	case free.MemoryBytes < 0:
		return OutOfMem
	case free.CPUMillis < 0:
		return OutOfCPU
	case free.DiskBytes < 0:
		return OutOfDisk
	}
	return ""
}

// load is how full the fullest dimension of the node would be, 0 to 1.
func load(n Node, need Amount) float64 {
	after := n.Used.Add(need)
	most := 0.0
	for _, d := range [][2]int64{
		{after.CPUMillis, n.Capacity.CPUMillis}, {after.MemoryBytes, n.Capacity.MemoryBytes},
		{after.DiskBytes, n.Capacity.DiskBytes}, {after.Sandboxes, n.Capacity.Sandboxes},
	} {
		if d[1] > 0 {
			most = max(most, float64(d[0])/float64(d[1]))
		}
	}
	return most
}

func tie(node, id string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(node))
	h.Write([]byte{0})
	h.Write([]byte(id))
	return h.Sum64()
}

// Explain puts the refusals into one sentence: "no node fits: memory on 3,
// cordoned on 1".
func (p Plan) Explain() string {
	if len(p.Refusals) == 0 {
		return "no node fits: there are no nodes"
	}
	counts := map[Reason]int{}
	for _, why := range p.Refusals {
		counts[why]++
	}
	reasons := make([]Reason, 0, len(counts))
	for why := range counts {
		reasons = append(reasons, why)
	}
	slices.SortFunc(reasons, func(a, b Reason) int {
		return cmp.Or(cmp.Compare(counts[b], counts[a]), cmp.Compare(a, b))
	})
	parts := make([]string, len(reasons))
	for i, why := range reasons {
		parts[i] = fmt.Sprintf("%s on %d", why, counts[why])
	}
	return "no node fits: " + strings.Join(parts, ", ")
}

// Scope says what ran out: "region" when no node of the allowed regions can
// take sandboxes at all, "node" when they are full.
func (p Plan) Scope() string {
	for _, why := range p.Refusals {
		switch why {
		case OutOfSlots, OutOfMem, OutOfCPU, OutOfDisk:
			return "node"
		}
	}
	return "region"
}
