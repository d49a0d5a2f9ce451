// Package doctor says whether a machine can run sandboxes, what is missing
// and what to do about it: `sirocco doctor`, and what `sirocco up` looks at
// before it starts anything.
//
// Each check looks through a Host, so that a test can show it any machine.
package doctor

import "slices"

// Status of a finding, from good to bad.
type Status int

// The statuses.
const (
	// OK needs nothing.
	OK Status = iota
	// Warn works, with a limit that the finding names.
	Warn
	// Fail keeps sandboxes from running.
	Fail
)

// String returns "OK", "WARN" or "FAIL".
func (s Status) String() string { return [...]string{"OK", "WARN", "FAIL"}[s] }

// MarshalText implements encoding.TextMarshaler.
func (s Status) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Finding is the result of one check.
type Finding struct {
	// Check is a short name, such as "cgroup".
	Check  string `json:"check"`
	Status Status `json:"status"`
	// Text says what was found.
	Text string `json:"text"`
	// Fix says what to do; empty for OK.
	Fix string `json:"fix,omitempty"`
}

// Sentence returns what was found and what to do, as one sentence.
func (f Finding) Sentence() string {
	if f.Fix == "" {
		return f.Text
	}
	return f.Text + ": " + f.Fix
}

// Want says what the machine is meant for.
type Want struct {
	// Runtime is "gvisor" or "sim". The simulated one needs no root.
	Runtime string
	// DataDir is where state will be; it need not exist.
	DataDir string
	// Ports are to be listened on, with what for.
	Ports []Port
	// Runsc is the file of the sandbox runtime, RunscVersion the version that
	// it must have (empty: any), Programs the files of the guest programs.
	Runsc, RunscVersion string
	Programs            []string
	// Alone means that a port of another sirocco is in the way too.
	Alone bool
}

// Port is one address that a service wants to listen on.
type Port struct {
	// Use is what for, such as "the api"; Flag is how to choose another.
	Use, Flag string
	// Address is host:port.
	Address string
}

// Worst returns the worst status; OK for none.
func Worst(findings []Finding) Status {
	worst := OK
	for _, f := range findings {
		worst = max(worst, f.Status)
	}
	return worst
}

// Failures returns those that keep sandboxes from running.
func Failures(findings []Finding) []Finding {
	return slices.DeleteFunc(slices.Clone(findings), func(f Finding) bool { return f.Status != Fail })
}

// Run makes every check that applies, in an order in which the first failure
// is the one to mend first.
func Run(h Host, w Want) []Finding {
	if finding := system(h); finding.Status == Fail {
		return []Finding{finding}
	}
	findings := []Finding{system(h)}
	if w.Runtime == "gvisor" {
		findings = append(findings, root(h))
		if !h.Root() {
			// The rest would only say so again.
			return append(findings, ports(h, w)...)
		}
		findings = append(findings, capabilities(h), kernel(h), namespaces(h), ptrace(h), cgroups(h), runsc(h, w), programs(h, w), netlinkWorks(h))
		findings = append(findings, firewall(h)...)
		findings = append(findings, forwarding(h))
	}
	findings = append(findings, disk(h, w.DataDir), memory(h), files(h), processes(h))
	return append(findings, ports(h, w)...)
}
