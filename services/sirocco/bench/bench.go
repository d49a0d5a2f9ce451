package bench

import (
	"context"
	"fmt"
	"time"

	"github.com/sirocco-run/sirocco/pkg/invariants"
	sirocco "github.com/sirocco-run/sirocco/sdk/go"
)

// settleTime is how long the platform has to come to rest after a measurement:
// what the invariants give it in steady state.
const settleTime = time.Minute

// Bench is what the measurements of one run share.
type Bench struct {
	// Client speaks to the platform as its users do.
	Client *sirocco.Client
	// Tunnels speaks to published ports; for those that need it.
	Tunnels *Tunnels
	// Local is the platform's machine, if it is this one; else LocalError says why
	// nothing can be told of it.
	Local      *Local
	LocalError error
	// Floor is what bare gVisor costs here; nil: it was not measured, which
	// FloorError explains.
	Floor      *Floor
	FloorError error
	// Spans takes in the platform's traces; nil for none.
	Spans *Spans
	// Progress shows how far the measurement is; nil for nobody.
	Progress *Progress
}

// run is one measurement under way.
type run struct {
	*Bench
	*Report
	start    time.Time
	baseline invariants.Baseline
	failures Failures
}

// begin starts a report, when the platform is at rest.
func (b *Bench) begin(ctx context.Context, name, about string) *run {
	r := &run{Bench: b, Report: &Report{Name: name, About: about, Machine: ThisMachine()}}
	if b.Local != nil {
		b.Progress.Say("%s: looking at the host", name)
		r.baseline = b.Local.baseline(ctx)
	}
	r.start = time.Now()
	r.Began = r.start.UTC()
	return r
}

// since is the time since the measurement began.
func (r *run) since() time.Duration { return time.Since(r.start) }

// conclude checks what must hold, once the platform has come to rest, and
// completes the report.
func (r *run) conclude(ctx context.Context, took time.Duration) *Report {
	r.Seconds = round(took.Seconds())
	r.Fail(&r.failures)
	r.floorNotes()
	if r.Local == nil {
		r.Note("invariants and host resources were not checked: %v", r.LocalError)
	} else {
		r.Progress.Say("%s: checking what must always hold", r.Name)
		r.Invariants = r.Local.verdict(ctx, r.baseline)
	}
	if r.Spans != nil {
		r.Progress.Say("%s: waiting for the last spans", r.Name)
		r.Stages = r.Spans.Stages(ctx)
		if len(r.Stages) == 0 {
			r.Note("no spans came: start the platform with --otlp-endpoint http://%s", r.Spans.Address())
		}
	}
	r.Progress.Done()
	return r.Report
}

func (r *run) floorNotes() {
	if r.Floor == nil {
		if r.FloorError != nil {
			r.Note("the floor was not measured: %v", r.FloorError)
		}
		return
	}
	r.Note("floor: median of %d sandboxes of bare gVisor, one after the other, in this run: create %.1f + start %.1f + first command %.1f ms, destroy %.1f ms, CPU %.0f ms a cycle",
		r.Floor.N, r.Floor.New, r.Floor.Start, r.Floor.Exec, r.Floor.Destroy, r.Floor.CPU)
}

// verdict looks until everything holds, for as long as that is promised.
func (l *Local) verdict(ctx context.Context, before invariants.Baseline) *Verdict {
	v := &Verdict{Checked: fmt.Sprintf("records, inventories and host resources of %d nodes", len(l.Nodes))}
	began := time.Now()
	v.Broken = l.Region.Settled(ctx, settleTime)
	for {
		more := l.Region.Baseline().Since(before)
		if len(more) == 0 {
			return v
		}
		if time.Since(began) > settleTime || !until(ctx, time.Now().Add(100*time.Millisecond)) {
			v.Broken = append(v.Broken, more...)
			return v
		}
	}
}
