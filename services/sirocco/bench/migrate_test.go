package bench

import (
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// An output that is followed has each number once, however it is cut in pieces.
func TestNumbers(t *testing.T) {
	const right = "1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n11\n"
	for size := 1; size <= len(right); size++ {
		n := &numbers{}
		if _, err := io.CopyBuffer(struct{ io.Writer }{n}, struct{ io.Reader }{strings.NewReader(right)}, make([]byte, size)); err != nil || n.last != 11 {
			t.Errorf("in pieces of %d: %d, %v", size, n.last, err)
		}
	}
	for _, wrong := range []string{"1\n2\n2\n", "1\n3\n", "0\n", "1\n\n2\n", "1\n2\n1\n", "1\nx\n"} {
		if _, err := (&numbers{}).Write([]byte(wrong)); err == nil {
			t.Errorf("%q is taken", wrong)
		}
	}
}

func TestPhases(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	const line = `{"time":"2026-11-22T18:39:56.5Z","level":"INFO","msg":"sandbox copied","sandbox":"sb-1","bytes":300,"sent":200,"ahead":71000000,"save":83000000,"transfer":123000000,"restore":68000000}`
	text := "east: " + line + "\nwest: no JSON at all\n" + `west: {"time":"2026-11-22T18:39:57Z","msg":"said \"sandbox copied\""}` + "\n" + "west: " + strings.Replace(strings.Replace(line, "56.5Z", "50Z", 1), "sb-1", "sb-0", 1) + "\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	all, err := readPhases(path, time.Date(2026, 11, 22, 18, 39, 55, 0, time.UTC))
	want := []phases{{Sandbox: "sb-1", Bytes: 300, Sent: 200, Ahead: 71 * time.Millisecond, Save: 83 * time.Millisecond, Transfer: 123 * time.Millisecond, Restore: 68 * time.Millisecond}}
	if err != nil || !slices.Equal(all, want) {
		t.Errorf("%+v, %v", all, err)
	}
	if _, err := readPhases(path+"-not", time.Time{}); err == nil {
		t.Error("no log is no error")
	}
}

// Marks are drawn where they are, once for each pixel, and those beyond the axis are not.
func TestMarks(t *testing.T) {
	p := Plot{Lines: []Line{{Points: []Point{{0, 1}, {10, 1}}}}, Marks: []float64{5, 5.0001, 0, 11, -1}, Mark: "moves"}
	svg := string(p.SVG())
	if got := strings.Count(svg, ".5 268v-8"); got != 2 {
		t.Errorf("%d marks: %s", got, svg)
	}
	if !strings.Contains(svg, ">moves<") {
		t.Error("the marks have no name")
	}
}

// The processors have been there for longer than they have worked, and some of both has
// passed when this test has done something.
func TestProcessorTimes(t *testing.T) {
	worked, all, err := processorTimes()
	if err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		workedBy, allBy, err := processorTimes()
		if err != nil {
			t.Fatal(err)
		}
		if workedBy > allBy || workedBy < worked || allBy < all {
			t.Fatalf("worked %v of %v, then %v of %v", worked, all, workedBy, allBy)
		}
		if workedBy > worked && allBy > all {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("no time passes")
		}
	}
}
