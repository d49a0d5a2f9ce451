package placement

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Plan is the answer: the best candidates, and how many nodes were none, by
// reason.
type Plan struct {
	// Candidates are the best nodes, best first.
	Candidates []Candidate
	// Fit is how many nodes fit, candidates or not.
	Fit int

	refused [reasons]int
}

// Candidate is a node that may take the sandbox, with the parts of its score.
type Candidate struct {
	Node, Region string
	// Score is what candidates are ordered by.
	Score float64
	// Load is how full its fullest dimension will be, 0 to 1.
	Load float64
	// Warm: a warm sandbox waits there.
	Warm bool
	// Slow and Failing are what the score lost for slow starts and for failed
	// ones.
	Slow, Failing float64

	tie uint64 // by node and sandbox
}

// String says what the score is made of: "node-1: load 0.42, warm, slow -0.50,
// score 1.08".
func (c Candidate) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: load %.2f", c.Node, c.Load)
	if c.Warm {
		b.WriteString(", warm")
	}
	if c.Slow > 0 {
		fmt.Fprintf(&b, ", slow -%.2f", c.Slow)
	}
	if c.Failing > 0 {
		fmt.Fprintf(&b, ", failing -%.2f", c.Failing)
	}
	fmt.Fprintf(&b, ", score %.2f", c.Score)
	return b.String()
}

// Reason says why a node is no candidate.
type Reason int

// The reasons, in the order in which they are checked.
const (
	fits Reason = iota
	NotReady
	Cordoned
	Region
	Suspect
	Refused
	OutOfSlots
	OutOfMem
	OutOfCPU
	OutOfDisk
	Unlike
	Unwanted

	reasons = iota
)

var reasonNames = [reasons]string{
	"fits", "not ready", "cordoned", "region", "does not answer", "refused just now", "slots", "memory", "cpu", "disk",
	"another runtime or processor", "not the node asked for",
}

// String returns the reason in words.
func (r Reason) String() string { return reasonNames[r] }

// Refused returns how many nodes are no candidates for a reason.
func (p Plan) Refused(why Reason) int { return p.refused[why] }

// Explain puts the plan into one sentence. With candidates, why the first is the
// first: "node-1: load 0.42, warm, score 1.58; next node-2: load 0.30, score
// 0.70; 12 fit; memory on 3, cordoned on 1". Without, why there is none: "no
// node fits: memory on 3, cordoned on 1".
func (p Plan) Explain() string {
	var refusals []string
	order := make([]Reason, 0, reasons)
	for why, n := range p.refused {
		if n > 0 {
			order = append(order, Reason(why))
		}
	}
	slices.SortFunc(order, func(a, b Reason) int {
		return cmp.Or(cmp.Compare(p.refused[b], p.refused[a]), cmp.Compare(a, b))
	})
	for _, why := range order {
		refusals = append(refusals, fmt.Sprintf("%s on %d", why, p.refused[why]))
	}
	switch {
	case len(p.Candidates) == 0 && len(refusals) == 0:
		return "no node fits: there are no nodes"
	case len(p.Candidates) == 0:
		return "no node fits: " + strings.Join(refusals, ", ")
	}
	parts := []string{p.Candidates[0].String()}
	if len(p.Candidates) > 1 {
		parts = append(parts, "next "+p.Candidates[1].String())
	}
	parts = append(parts, fmt.Sprintf("%d fit", p.Fit))
	if len(refusals) > 0 {
		parts = append(parts, strings.Join(refusals, ", "))
	}
	return strings.Join(parts, "; ")
}

// Scope says what ran out: "region" when no node of the allowed regions can
// take sandboxes at all, "node" when they are full, or said that they are.
func (p Plan) Scope() string {
	for why := Refused; why < reasons; why++ {
		if p.refused[why] > 0 {
			return "node"
		}
	}
	return "region"
}
