package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Report is what a measurement found.
type Report struct {
	// Name is the measurement's, and of its files: "churn", "tti-burst".
	Name string `json:"name"`
	// About says in one line what was done.
	About   string    `json:"about"`
	Machine Machine   `json:"machine"`
	Began   time.Time `json:"began"`
	Seconds float64   `json:"seconds"`

	Times   []Times  `json:"times,omitempty"`
	Figures []Figure `json:"figures,omitempty"`
	Stages  []Stage  `json:"stages,omitempty"`

	// Failures counts what failed by error code; Example is the first.
	Failures map[string]int `json:"failures,omitempty"`
	Example  string         `json:"example,omitempty"`
	// Lost are requests that were accepted and came to no end that anybody was
	// told of.
	Lost []string `json:"lost,omitempty"`
	// Invariants is what must hold at the end; nil if it could not be checked,
	// which a note explains.
	Invariants *Verdict `json:"invariants,omitempty"`
	// Notes say what a reader of the figures must know.
	Notes []string `json:"notes,omitempty"`

	// Plots are written as files beside the report.
	Plots []Plot `json:"-"`
}

// Times is a distribution under a name, in milliseconds.
type Times struct {
	Name string `json:"name"`
	Distribution
	// Floor is the median of the same on bare gVisor; 0 if that was not measured.
	Floor float64 `json:"floor_p50,omitempty"`
}

// Figure is one number.
type Figure struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	// Floor is the same on bare gVisor; 0 if that was not measured.
	Floor float64 `json:"floor,omitempty"`
}

// Verdict is what a check of the invariants found (package invariants).
type Verdict struct {
	// Checked says what was looked at.
	Checked string `json:"checked"`
	// Broken is what did not hold, a line each.
	Broken []string `json:"broken,omitempty"`
}

// Fail counts what f has; a report takes it once, at the end.
func (r *Report) Fail(f *Failures) { r.Failures, r.Example = f.ByCode() }

// Figure adds a number, rounded to two digits behind the point.
func (r *Report) Figure(name string, value float64, unit string, floor float64) {
	r.Figures = append(r.Figures, Figure{name, round(value), unit, round(floor)})
}

// Time adds a distribution.
func (r *Report) Time(name string, samples []Sample, floor float64) {
	r.Times = append(r.Times, Times{name, Distribute(samples), round(floor)})
}

// Note adds a sentence.
func (r *Report) Note(format string, args ...any) {
	r.Notes = append(r.Notes, fmt.Sprintf(format, args...))
}

// OK is false when something failed, a request was lost or an invariant broken.
func (r *Report) OK() bool {
	return len(r.Failures) == 0 && len(r.Lost) == 0 && (r.Invariants == nil || len(r.Invariants.Broken) == 0)
}

// Print writes the report as tables for a person.
func (r *Report) Print(out io.Writer) error {
	fmt.Fprintf(out, "%s: %s (%.1f s, %s)\n", r.Name, r.About, r.Seconds, r.Machine)
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', tabwriter.AlignRight)
	row := func(cells ...string) { fmt.Fprintln(w, strings.Join(cells, "\t")+"\t") }
	if len(r.Times) > 0 {
		row("MILLISECONDS", "N", "MIN", "P50", "P95", "P99", "MAX", "MEAN", "FLOOR P50", "RATIO")
		for _, t := range r.Times {
			row(t.Name, fmt.Sprint(t.N), number(t.Min), number(t.P50), number(t.P95), number(t.P99), number(t.Max), number(t.Mean), floorOf(t.Floor), ratio(t.P50, t.Floor))
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if len(r.Figures) > 0 {
		row("FIGURE", "VALUE", "UNIT", "FLOOR", "RATIO")
		for _, f := range r.Figures {
			row(f.Name, number(f.Value), f.Unit, floorOf(f.Floor), ratio(f.Value, f.Floor))
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if err := printStages(out, r.Stages); err != nil {
		return err
	}
	return r.printVerdict(out)
}

func (r *Report) printVerdict(out io.Writer) error {
	var b strings.Builder
	var codes []string
	for code := range r.Failures {
		codes = append(codes, code)
	}
	slices.Sort(codes)
	for _, code := range codes {
		fmt.Fprintf(&b, "failed: %d with %s\n", r.Failures[code], code)
	}
	if r.Example != "" {
		fmt.Fprintln(&b, "first failure:", r.Example)
	}
	for _, lost := range r.Lost {
		fmt.Fprintln(&b, "lost:", lost)
	}
	if r.Invariants != nil {
		for _, broken := range r.Invariants.Broken {
			fmt.Fprintln(&b, "broken:", broken)
		}
		if len(r.Invariants.Broken) == 0 {
			fmt.Fprintln(&b, "invariants hold:", r.Invariants.Checked)
		}
	}
	for _, note := range r.Notes {
		fmt.Fprintln(&b, "note:", note)
	}
	_, err := io.WriteString(out, b.String())
	return err
}

// Write writes the report as <name>.json and each plot as <name>-<plot>.svg into
// a folder, which it makes.
func (r *Report) Write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // for everybody to read
		return fmt.Errorf("write the report: %w", err)
	}
	raw, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	files := map[string][]byte{r.Name + ".json": append(raw, '\n')}
	for _, p := range r.Plots {
		files[r.Name+"-"+p.Name+".svg"] = p.SVG()
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil { //nolint:gosec // as above
			return fmt.Errorf("write the report: %w", err)
		}
	}
	return nil
}

// number writes a figure with as many digits as a person reads.
func number(f float64) string {
	switch {
	case f == 0:
		return "0"
	case f >= 1000 || f == float64(int64(f)):
		return fmt.Sprintf("%.0f", f)
	case f >= 10:
		return fmt.Sprintf("%.1f", f)
	}
	return fmt.Sprintf("%.2f", f)
}

func floorOf(f float64) string {
	if f == 0 {
		return "-"
	}
	return number(f)
}

func ratio(value, floor float64) string {
	if floor == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f", value/floor)
}
