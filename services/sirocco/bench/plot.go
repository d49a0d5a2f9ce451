package bench

import (
	"bytes"
	"fmt"
	"html"
	"math"
	"slices"
	"strings"
	"time"
)

// Plot is a drawing of lines, written as SVG. It is 150 lines of our own because
// the plotting libraries of Go bring font rasterizers along, and draw text as
// paths that no browser can search.
type Plot struct {
	// Name is part of the file's name: "latency", "distribution", "live".
	Name  string
	Title string
	X, Y  string
	// LogX has a logarithmic scale: for times of which the slow ones matter.
	LogX  bool
	Lines []Line
	// Marks are places on the X axis where something was, which Mark names.
	Marks []float64
	Mark  string
}

// Line is a line of a plot, from left to right.
type Line struct {
	Name   string
	Points []Point
}

// Sizes of a drawing and of the field in it, in pixels.
const (
	plotWidth, plotHeight              = 760, 320
	fieldLeft, fieldTop                = 64, 34
	fieldWidth, fieldHeight            = plotWidth - fieldLeft - 16, plotHeight - fieldTop - 52
	maxPoints                          = 400
	textStyle                          = `font-family="system-ui,sans-serif" font-size="11"`
	gridColor, textColor, bgColor      = "#d8dde3", "#3b4350", "#ffffff"
	markColor                          = "#c2255c"
	latencyWindows, ticksX, ticksY int = 60, 8, 5
)

var lineColors = []string{"#1667c9", "#d1611f", "#8a8f98", "#2c8c4a", "#8b46b3"}

// SVG draws the plot. The same plot gives the same bytes.
func (p Plot) SVG() []byte {
	x, y := p.axes()
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" role="img" aria-label="%s" %s fill="%s">`+"\n",
		plotWidth, plotHeight, html.EscapeString(p.Title), textStyle, textColor)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="%s"/>`+"\n", plotWidth, plotHeight, bgColor)
	fmt.Fprintf(&b, `<text x="%d" y="18" font-size="13" font-weight="600">%s</text>`+"\n", fieldLeft, html.EscapeString(p.Title))
	for _, v := range y.ticks {
		at := y.at(v)
		fmt.Fprintf(&b, `<path d="M%d %.1fh%d" stroke="%s"/><text x="%d" y="%.1f" text-anchor="end">%s</text>`+"\n",
			fieldLeft, at, fieldWidth, gridColor, fieldLeft-6, at+4, tick(v))
	}
	for _, v := range x.ticks {
		at := x.at(v)
		fmt.Fprintf(&b, `<path d="M%.1f %dv%d" stroke="%s"/><text x="%.1f" y="%d" text-anchor="middle">%s</text>`+"\n",
			at, fieldTop, fieldHeight, gridColor, at, fieldTop+fieldHeight+16, tick(v))
	}
	fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="middle">%s</text>`+"\n", fieldLeft+fieldWidth/2, plotHeight-20, html.EscapeString(p.X))
	fmt.Fprintf(&b, `<text transform="translate(14 %d) rotate(-90)" text-anchor="middle">%s</text>`+"\n", fieldTop+fieldHeight/2, html.EscapeString(p.Y))
	legend := fieldLeft
	for i, line := range p.Lines {
		color := lineColors[i%len(lineColors)]
		if d := path(line.Points, x, y); d != "" {
			fmt.Fprintf(&b, `<path d="%s" fill="none" stroke="%s" stroke-width="1.6" stroke-linejoin="round"/>`+"\n", d, color)
		}
		if line.Name != "" {
			fmt.Fprintf(&b, `<path d="M%d %dh14" stroke="%s" stroke-width="3"/><text x="%d" y="%d">%s</text>`+"\n",
				legend, plotHeight-8, color, legend+18, plotHeight-4, html.EscapeString(line.Name))
			legend += 34 + 7*len(line.Name)
		}
	}
	if d := p.marks(x); d != "" {
		fmt.Fprintf(&b, `<path d="%s" fill="none" stroke="%s"/>`+"\n", d, markColor)
		fmt.Fprintf(&b, `<path d="M%d %dv-8" stroke="%s"/><text x="%d" y="%d">%s</text>`+"\n", legend+8, plotHeight-4, markColor, legend+18, plotHeight-4, html.EscapeString(p.Mark))
	}
	b.WriteString("</svg>\n")
	return b.Bytes()
}

// marks are short lines on the X axis; one for each pixel is enough.
func (p Plot) marks(x axis) string {
	var b strings.Builder
	last := math.MinInt
	for _, v := range slices.Sorted(slices.Values(p.Marks)) {
		if at := int(x.at(v)); v >= x.from && v <= x.to && at != last {
			fmt.Fprintf(&b, "M%d.5 %dv-8", at, fieldTop+fieldHeight)
			last = at
		}
	}
	return b.String()
}

// axis turns values into pixels.
type axis struct {
	from, to  float64
	log       bool
	pixel     float64 // of from
	perValue  float64
	ticks     []float64
	transform func(float64) float64
}

func (a axis) at(v float64) float64 { return a.pixel + (a.transform(v)-a.transform(a.from))*a.perValue }

// axes spans what is drawn. Y begins at 0, X at the first point.
func (p Plot) axes() (x, y axis) {
	low, high, top := math.Inf(1), math.Inf(-1), 0.0
	for _, line := range p.Lines {
		for _, pt := range line.Points {
			if p.LogX && pt.X <= 0 {
				continue
			}
			low, high, top = min(low, pt.X), max(high, pt.X), max(top, pt.Y)
		}
	}
	if high < low {
		low, high = 0, 1
		if p.LogX {
			low = 0.1
		}
	}
	linear := func(v float64) float64 { return v }
	x = axis{from: low, to: high, pixel: fieldLeft, transform: linear}
	if p.LogX {
		x.log, x.transform = true, math.Log10
	}
	if x.to <= x.from {
		x.to = x.from + 1
	}
	x.ticks = ticks(x.from, x.to, ticksX, x.log)
	x.perValue = fieldWidth / (x.transform(x.to) - x.transform(x.from))
	if top == 0 {
		top = 1
	}
	y = axis{to: top, transform: linear, pixel: fieldTop + fieldHeight}
	y.ticks = ticks(0, top, ticksY, false)
	if step := y.ticks[len(y.ticks)-1] / float64(max(len(y.ticks)-1, 1)); y.ticks[len(y.ticks)-1] < top {
		y.to = y.ticks[len(y.ticks)-1] + step
		y.ticks = append(y.ticks, y.to)
	}
	y.perValue = -fieldHeight / y.to
	return x, y
}

// ticks returns round values within a span, about n of them: on a logarithmic
// axis 1, 2 and 5 of each decade.
func ticks(from, to float64, n int, log bool) []float64 {
	var all []float64
	if log {
		for decade := math.Floor(math.Log10(from)); decade <= math.Log10(to); decade++ {
			for _, m := range []float64{1, 2, 5} {
				if v := m * math.Pow(10, decade); v >= from && v <= to {
					all = append(all, v)
				}
			}
		}
		return all
	}
	raw := (to - from) / float64(n)
	unit := math.Pow(10, math.Floor(math.Log10(raw)))
	step := 10 * unit
	for _, m := range []float64{1, 2, 5} {
		if m*unit >= raw {
			step = m * unit
			break
		}
	}
	for i := math.Ceil(from / step); i*step <= to*(1+1e-9); i++ {
		all = append(all, i*step)
	}
	return all
}

func tick(v float64) string {
	if math.Abs(v) >= 1e4 {
		return strings.TrimSuffix(fmt.Sprintf("%.1f", v/1000), ".0") + "k"
	}
	return fmt.Sprintf("%.4g", v)
}

// path is the line through at most maxPoints of the points.
func path(points []Point, x, y axis) string {
	var b strings.Builder
	step := max(1, (len(points)+maxPoints-1)/maxPoints)
	letter := "M"
	for i, pt := range points {
		if x.log && pt.X <= 0 || i%step != 0 && i != len(points)-1 {
			continue
		}
		fmt.Fprintf(&b, "%s%.1f %.1f", letter, x.at(pt.X), y.at(pt.Y))
		letter = "L"
	}
	return b.String()
}

// LatencyPlot draws samples over the time at which they began: for each of up to
// 60 windows the median, p95 and the longest.
func LatencyPlot(title string, samples []Sample) Plot {
	p := Plot{Name: "latency", Title: title, X: "seconds since the start", Y: "ms", Lines: []Line{{Name: "p50"}, {Name: "p95"}, {Name: "max"}}}
	if len(samples) == 0 {
		return p
	}
	last := samples[len(samples)-1].At
	width := max(last/time.Duration(latencyWindows)+1, time.Millisecond)
	for len(samples) > 0 {
		window := samples[0].At / width
		n := slices.IndexFunc(samples, func(s Sample) bool { return s.At/width != window })
		if n < 0 {
			n = len(samples)
		}
		d := Distribute(samples[:n])
		at := (window*width + width/2).Seconds()
		for i, v := range []float64{d.P50, d.P95, d.Max} {
			p.Lines[i].Points = append(p.Lines[i].Points, Point{at, v})
		}
		samples = samples[n:]
	}
	return p
}

// DistributionPlot draws what share of the samples took at most how long, on a
// logarithmic scale: a line for each name.
func DistributionPlot(title string, names []string, samples ...[]Sample) Plot {
	p := Plot{Name: "distribution", Title: title, X: "ms", Y: "% at most", LogX: true}
	for i, of := range samples {
		times := make([]float64, len(of))
		for k, s := range of {
			times[k] = float64(s.Took) / float64(time.Millisecond)
		}
		slices.Sort(times)
		line := Line{Name: names[i]}
		for k, v := range times {
			line.Points = append(line.Points, Point{v, 100 * float64(k+1) / float64(len(times))})
		}
		p.Lines = append(p.Lines, line)
	}
	return p
}

// LivePlot draws how many were live over time.
func LivePlot(title string, live *Series) Plot {
	return Plot{Name: "live", Title: title, X: "seconds since the start", Y: "sandboxes", Lines: []Line{{Points: live.Points()}}}
}
