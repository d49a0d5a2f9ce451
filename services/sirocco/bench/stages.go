package bench

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Stage is a part of something that is measured as a whole.
type Stage struct {
	// Of says of what: "warm create", "cold create", "exec start".
	Of string `json:"of"`
	// Name says what happens; Depth how far it is indented: it is a part of the
	// nearest stage above with a smaller one.
	Name  string `json:"name"`
	Depth int    `json:"depth"`
	// N is how often it was seen. P50 and P99 are how long it took, Self the median
	// of what nothing below it explains, in milliseconds.
	N    int     `json:"n"`
	P50  float64 `json:"p50_ms"`
	P99  float64 `json:"p99_ms"`
	Self float64 `json:"self_p50_ms"`
}

// stagesOf tells from traces where the time goes. A trace counts only if spans of
// the platform have come for it.
func stagesOf(traces map[string][]span) []Stage {
	groups := map[string]*stageTree{}
	for _, spans := range traces {
		of := kindOf(spans)
		if of == "" {
			continue
		}
		if groups[of] == nil {
			groups[of] = &stageTree{parts: map[string]*part{}}
		}
		groups[of].add(spans)
	}
	var all []Stage
	for _, of := range kinds {
		if groups[of] != nil {
			all = append(all, groups[of].stages(of)...)
		}
	}
	return all
}

// Kinds of traces, in the order in which they are shown.
const (
	warmCreate = "warm create"
	coldCreate = "cold create"
	execStart  = "exec start"
)

var kinds = []string{warmCreate, coldCreate, execStart}

// kindOf says of what a trace is; "" for what is not shown.
func kindOf(spans []span) string {
	root, started, warm := "", false, false
	for _, s := range spans {
		if s.parent == "" {
			root = s.name
		}
		if s.name == "agent.start" {
			started, warm = true, s.warm
		}
	}
	switch {
	case root == "client SandboxService/Create" && started && warm:
		return warmCreate
	case root == "client SandboxService/Create" && started:
		return coldCreate
	case root == "client ExecService/Start" && len(spans) > 1:
		return execStart
	}
	return ""
}

// stageTree gathers the spans of many traces by the path of names above them.
type stageTree struct{ parts map[string]*part }

// part is what was seen under one path.
type part struct {
	took, self []Sample
	// offset is the sum of the times from the root's begin.
	offset time.Duration
}

const pathMark = "\x00"

func (t *stageTree) add(spans []span) {
	byID := map[string]span{}
	children := map[string][]span{}
	var root span
	for _, s := range spans {
		byID[s.id] = s
		children[s.parent] = append(children[s.parent], s)
		if s.parent == "" {
			root = s
		}
	}
	for _, s := range spans {
		path := s.name
		above := s
		for above.parent != "" {
			next, known := byID[above.parent]
			if !known { // its parent has not come
				path = ""
				break
			}
			above = next
			path = above.name + pathMark + path
		}
		if path == "" {
			continue
		}
		p := t.parts[path]
		if p == nil {
			p = &part{}
			t.parts[path] = p
		}
		p.took = append(p.took, Sample{Took: s.took})
		p.self = append(p.self, Sample{Took: s.took - covered(s, below(s.id, children))})
		p.offset += s.began.Sub(root.began)
	}
}

// below are all spans below one: what goes on in another service is often a part
// of one that did not wait for it.
func below(id string, children map[string][]span) []span {
	var all []span
	for _, s := range children[id] {
		all = append(append(all, s), below(s.id, children)...)
	}
	return all
}

// covered is how much of a span's time is that of its parts, which may overlap
// each other and outlast it.
func covered(s span, parts []span) time.Duration {
	slices.SortFunc(parts, func(a, b span) int { return a.began.Compare(b.began) })
	at, end := s.began, s.began.Add(s.took)
	var sum time.Duration
	for _, p := range parts {
		from, to := p.began, p.began.Add(p.took)
		if from.Before(at) {
			from = at
		}
		if to.After(end) {
			to = end
		}
		if to.After(from) {
			sum += to.Sub(from)
			at = to
		}
	}
	return sum
}

// stages lists the tree: parts below what they are a part of, in the order in
// which they begin.
func (t *stageTree) stages(of string) []Stage {
	var all []Stage
	var list func(above string, depth int)
	list = func(above string, depth int) {
		var parts []string
		for path := range t.parts {
			if rest, ok := strings.CutPrefix(path, above); ok && !strings.Contains(rest, pathMark) {
				parts = append(parts, path)
			}
		}
		slices.SortFunc(parts, func(a, b string) int {
			return cmp.Or(cmp.Compare(t.parts[a].mean(), t.parts[b].mean()), strings.Compare(a, b))
		})
		for _, path := range parts {
			p := t.parts[path]
			d := Distribute(p.took)
			all = append(all, Stage{
				Of: of, Name: path[strings.LastIndex(path, pathMark)+1:], Depth: depth,
				N: d.N, P50: d.P50, P99: d.P99, Self: Distribute(p.self).P50,
			})
			list(path+pathMark, depth+1)
		}
	}
	list("", 0)
	return all
}

func (p *part) mean() time.Duration { return p.offset / time.Duration(len(p.took)) }

func printStages(out io.Writer, stages []Stage) error {
	if len(stages) == 0 {
		return nil
	}
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	of := ""
	for _, s := range stages {
		if s.Of != of {
			of = s.Of
			fmt.Fprintf(w, "WHERE A %s GOES\tP50 MS\tSELF\tP99 MS\tN\n", strings.ToUpper(of))
		}
		fmt.Fprintf(w, "%s%s\t%s\t%s\t%s\t%d\n", strings.Repeat("  ", s.Depth), s.Name, number(s.P50), number(s.Self), number(s.P99), s.N)
	}
	return w.Flush()
}
