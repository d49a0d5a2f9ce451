// Package docs_test keeps the pages of this folder from saying what the code
// does not.
package docs_test

import (
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/record"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

func read(t *testing.T, path string) string {
	t.Helper()
	raw, err := os.ReadFile(path) //nolint:gosec // a file of this repository
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// rows returns the cells of the lines of a page's tables whose first cell is
// one or more names in backquotes.
func rows(page string) map[string][]string {
	out := map[string][]string{}
	for line := range strings.Lines(page) {
		cells := strings.Split(strings.TrimSpace(line), "|")
		if len(cells) < 4 {
			continue
		}
		for _, name := range names(cells[1]) {
			if _, twice := out[name]; !twice {
				out[name] = cells[1 : len(cells)-1]
			}
		}
	}
	return out
}

var quoted = regexp.MustCompile("`([^`]+)`")

func names(text string) []string {
	var out []string
	for _, m := range quoted.FindAllStringSubmatch(text, -1) {
		out = append(out, m[1])
	}
	return out
}

func TestEveryErrorCodeIsExplained(t *testing.T) {
	source := read(t, "../pkg/fault/fault.go")
	table := rows(read(t, "errors.md"))
	found := regexp.MustCompile(`(?m)^\t\w+ +Code = "(\w+)"$`).FindAllStringSubmatch(source, -1)
	if len(found) == 0 {
		t.Fatal("no codes found in package fault")
	}
	for _, m := range found {
		code := fault.Code(m[1])
		row := table[m[1]]
		if len(row) != 6 {
			t.Errorf("errors.md has no row for %s", code)
			continue
		}
		if http := strings.TrimSpace(row[4]); !strings.HasPrefix(http, fmt.Sprint(code.HTTPStatus())) {
			t.Errorf("%s: errors.md says HTTP %q, the code %d", code, http, code.HTTPStatus())
		}
		if exit := fmt.Sprint(fault.ExitCode(&fault.Fault{Code: code})); strings.TrimSpace(row[5]) != exit {
			t.Errorf("%s: errors.md says exit code %s, the code %s", code, row[5], exit)
		}
	}
}

func TestEveryCauseIsExplained(t *testing.T) {
	table := rows(read(t, "errors.md"))
	for n := range siroccov1.Cause_name {
		cause := siroccov1.Cause(n)
		if cause != siroccov1.Cause_CAUSE_UNSPECIFIED && table[record.CauseName(cause)] == nil {
			t.Errorf("errors.md has no row for the cause %s", record.CauseName(cause))
		}
	}
}

func TestEveryReasonOfTheRelayIsExplained(t *testing.T) {
	table := rows(read(t, "errors.md"))
	source := read(t, "../services/tunnel-relay/relay/refusal.go")
	found := regexp.MustCompile(`Reason\w+ += "(\w+)"`).FindAllStringSubmatch(source, -1)
	if len(found) == 0 {
		t.Fatal("no reasons found in the relay")
	}
	for _, m := range found {
		if table[m[1]] == nil {
			t.Errorf("errors.md has no row for the relay's %s", m[1])
		}
	}
}

// TestTransitionTable compares the table of events.md with package lifecycle,
// both ways.
func TestTransitionTable(t *testing.T) {
	_, after, ok := strings.Cut(read(t, "events.md"), "| from | to |")
	if !ok {
		t.Fatal("events.md has no transition table")
	}
	says := map[string][]string{}
	for line := range strings.Lines(strings.TrimPrefix(after, "\n")) {
		cells := strings.Split(strings.TrimSpace(line), "|")
		if len(cells) != 4 {
			break
		}
		from := "unspecified"
		if n := names(cells[1]); len(n) > 0 {
			from = n[0]
		}
		says[from] = append(says[from], names(cells[2])...)
	}
	for f := range siroccov1.State_name {
		for o := range siroccov1.State_name {
			from, to := siroccov1.State(f), siroccov1.State(o)
			may := lifecycle.May(from, to)
			if said := slices.Contains(says[record.StateName(from)], record.StateName(to)); said != may {
				t.Errorf("%s to %s: the code says %v, events.md %v", record.StateName(from), record.StateName(to), may, said)
			}
		}
		if name := record.StateName(siroccov1.State(f)); f != 0 && says[name] == nil && !lifecycle.Ended(siroccov1.State(f)) {
			t.Errorf("events.md does not know the state %s", name)
		}
	}
	page := read(t, "events.md")
	for n := range siroccov1.State_name {
		if name := record.StateName(siroccov1.State(n)); n != 0 && !strings.Contains(page, "`"+name+"`") {
			t.Errorf("events.md does not explain %s", name)
		}
	}
}

// What the code calls its metrics and spans.
var (
	metricName = regexp.MustCompile(`"((?:sirocco|go)\.[a-z]+(?:[._][a-z]+)+)"`)
	instrument = regexp.MustCompile(`\b(?:Int64|Float64)(?:Observable)?(?:Counter|UpDownCounter|Gauge|Histogram)\(`)
	spanName   = regexp.MustCompile(`(?:tracer\.Start\(\w+(?:\.\w+)*|startSpan\([^"]*), "([a-z]+\.[a-z]+)"`)
)

// attributesOfSpans are no metrics.
var attributesOfSpans = []string{"sirocco.tenant", "sirocco.internal"}

func TestEveryMetricAndSpanIsListed(t *testing.T) {
	page := read(t, "telemetry.md")
	found := 0
	for _, root := range []string{"../services", "../pkg"} {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			source := read(t, path)
			if instrument.MatchString(source) {
				for _, m := range metricName.FindAllStringSubmatch(source, -1) {
					found++
					if !slices.Contains(attributesOfSpans, m[1]) && !strings.Contains(page, "`"+m[1]+"`") {
						t.Errorf("%s: the metric %s is not in telemetry.md", path, m[1])
					}
				}
			}
			for _, m := range spanName.FindAllStringSubmatch(source, -1) {
				found++
				if !strings.Contains(page, "`"+m[1]+"`") {
					t.Errorf("%s: the span %s is not in telemetry.md", path, m[1])
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if found < 20 {
		t.Errorf("only %d metrics and spans found: have they got another shape?", found)
	}
}

func TestListedMetricsExist(t *testing.T) {
	var code strings.Builder
	for _, root := range []string{"../services", "../pkg"} {
		if err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err == nil && strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go") {
				code.WriteString(read(t, path))
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	for name := range rows(read(t, "telemetry.md")) {
		if strings.HasPrefix(name, "sirocco.") && !strings.HasPrefix(name, "sirocco.v1.") || strings.HasPrefix(name, "go.") {
			if !strings.Contains(code.String(), `"`+name+`"`) {
				t.Errorf("telemetry.md lists %s, which no code reports", name)
			}
		}
	}
}

var (
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile(`(?m)^#{1,6} +(.*)$`)
	fenced  = regexp.MustCompile("(?s)```.*?```")
)

// anchors returns the anchors of a page's headings, as code hosts make them.
func anchors(page string) []string {
	var out []string
	for _, m := range heading.FindAllStringSubmatch(fenced.ReplaceAllString(page, ""), -1) {
		text := strings.ToLower(strings.TrimSpace(m[1]))
		text = strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case r == '-' || r == '_' || r >= 'a' && r <= 'z' || r >= '0' && r <= '9':
				return r
			}
			return -1
		}, text)
		out = append(out, text)
	}
	return out
}

func TestLinksLeadSomewhere(t *testing.T) {
	pages := []string{"../README.md", "../CONTRIBUTING.md", "../SECURITY.md", "../CHANGELOG.md"}
	if err := filepath.WalkDir(".", func(path string, _ fs.DirEntry, err error) error {
		if strings.HasSuffix(path, ".md") {
			pages = append(pages, path)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	for _, page := range pages {
		text := read(t, page)
		for _, m := range link.FindAllStringSubmatch(fenced.ReplaceAllString(text, ""), -1) {
			u, err := url.Parse(m[1])
			if err != nil {
				t.Errorf("%s: %v", page, err)
				continue
			}
			if u.Scheme != "" {
				continue
			}
			target := page
			if u.Path != "" {
				target = filepath.Join(filepath.Dir(page), u.Path)
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s: the link %s leads nowhere", page, m[1])
				continue
			}
			if u.Fragment != "" && !slices.Contains(anchors(read(t, target)), u.Fragment) {
				t.Errorf("%s: %s has no such heading", page, m[1])
			}
		}
	}
}

// TestTestsThatPagesNameExist: an invariant is as good as the test named
// beside it.
func TestTestsThatPagesNameExist(t *testing.T) {
	var code strings.Builder
	for _, root := range []string{"../services", "../pkg", "../tests", "../sdk", "../guest", "."} {
		if err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
			if err == nil && strings.HasSuffix(path, "_test.go") {
				code.WriteString(read(t, path))
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	pages, err := filepath.Glob("adr/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range append(pages, "architecture.md") {
		for _, name := range names(read(t, page)) {
			if strings.HasPrefix(name, "Test") && !strings.Contains(code.String(), "func "+name+"(") {
				t.Errorf("%s names %s, which does not exist", page, name)
			}
		}
	}
}
