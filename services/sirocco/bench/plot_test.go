package bench

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"regexp"
	"slices"
	"strconv"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var pathData = regexp.MustCompile(` d="(M[^"h]*L[^"]*)"`)

// wellFormed checks that a drawing is XML, and that its lines stay in the field.
func wellFormed(t interface {
	Helper()
	Fatalf(string, ...any)
}, svg []byte) {
	t.Helper()
	for d := xml.NewDecoder(bytes.NewReader(svg)); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("%v in\n%s", err, svg)
		}
	}
	for _, m := range pathData.FindAllSubmatch(svg, -1) {
		numbers := regexp.MustCompile(`-?[0-9.]+`).FindAllString(string(m[1]), -1)
		for i, n := range numbers {
			v, err := strconv.ParseFloat(n, 64)
			low, high := float64(fieldLeft), float64(fieldLeft+fieldWidth)
			if i%2 == 1 {
				low, high = fieldTop, fieldTop+fieldHeight
			}
			if err != nil || v < low-.2 || v > high+.2 {
				t.Fatalf("%s is out of the field: %s", n, m[1])
			}
		}
	}
	if bytes.Contains(svg, []byte("NaN")) || bytes.Contains(svg, []byte("Inf")) {
		t.Fatalf("not a number in\n%s", svg)
	}
}

func TestPlotsOfAnything(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var samples Samples
		for range rapid.IntRange(0, 300).Draw(t, "n") {
			samples.Add(time.Duration(rapid.Int64Range(0, 1e11).Draw(t, "at")), time.Duration(rapid.Int64Range(0, 1e11).Draw(t, "took")))
		}
		var live Series
		for i := range rapid.IntRange(0, 3).Draw(t, "points") {
			live.Add(time.Duration(i)*time.Second, rapid.Float64Range(0, 1e6).Draw(t, "value"))
		}
		for _, p := range []Plot{LatencyPlot("<a & b>", samples.All()), DistributionPlot("d", []string{"one"}, samples.All()), LivePlot("l", &live)} {
			svg := p.SVG()
			wellFormed(t, svg)
			if !bytes.Equal(svg, p.SVG()) {
				t.Fatalf("%s is drawn differently the second time", p.Name)
			}
		}
	})
}

func TestLatencyPlotKeepsTheSlowOne(t *testing.T) {
	var samples Samples
	for i := range 10_000 {
		took := 5 * time.Millisecond
		if i == 7777 {
			took = time.Second
		}
		samples.Add(time.Duration(i)*time.Millisecond, took)
	}
	p := LatencyPlot("", samples.All())
	top := slices.MaxFunc(p.Lines[2].Points, func(a, b Point) int { return int(a.Y - b.Y) })
	if top.Y != 1000 || math.Abs(top.X-7.777) > .2 || len(p.Lines[0].Points) > latencyWindows+1 {
		t.Errorf("the slowest is drawn as %v, among %d points", top, len(p.Lines[0].Points))
	}
}

func TestTicksAreRound(t *testing.T) {
	for _, c := range []struct {
		from, to float64
		log      bool
		want     []float64
	}{
		{0, 10, false, []float64{0, 2, 4, 6, 8, 10}},
		{0, 100, false, []float64{0, 20, 40, 60, 80, 100}},
		{3, 300, true, []float64{5, 10, 20, 50, 100, 200}},
	} {
		if got := ticks(c.from, c.to, 5, c.log); !slices.Equal(got, c.want) {
			t.Errorf("%v to %v: %v, want %v", c.from, c.to, got, c.want)
		}
	}
}
