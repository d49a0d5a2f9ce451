package bench

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

const (
	// redraw is the shortest time between two states of a terminal's line,
	// reprint that between two lines where there is no terminal.
	redraw  = 100 * time.Millisecond
	reprint = 10 * time.Second
)

// Progress is the one line that a measurement shows while it runs: on a terminal
// it is written over and over, elsewhere a line every 10 s. A nil Progress shows
// nothing. Its methods may be called concurrently.
type Progress struct {
	mu    sync.Mutex
	w     io.Writer
	tty   bool
	began time.Time
	shown time.Time
	// width of what stands on the terminal's line; last is what was said last.
	width int
	last  string
	open  bool
}

// NewProgress makes a line on w, which is a terminal or not.
func NewProgress(w io.Writer, tty bool) *Progress {
	return &Progress{w: w, tty: tty, began: time.Now()}
}

// Say shows a state of the measurement, unless another was shown a moment ago.
func (p *Progress) Say(format string, args ...any) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last = fmt.Sprintf(format, args...)
	p.open = true
	every := redraw
	if !p.tty {
		every = reprint
	}
	if now := time.Now(); now.Sub(p.shown) >= every {
		p.show(now)
	}
}

// Done shows the last state and ends the line. The Progress may be used again.
func (p *Progress) Done() {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.open {
		return
	}
	p.show(time.Now())
	if p.tty {
		fmt.Fprintln(p.w)
	}
	p.open, p.width, p.shown = false, 0, time.Time{}
}

func (p *Progress) show(now time.Time) {
	p.shown = now
	text := fmt.Sprintf("%4.0fs  %s", now.Sub(p.began).Seconds(), p.last)
	if !p.tty {
		fmt.Fprintln(p.w, text)
		return
	}
	fmt.Fprint(p.w, "\r"+text+strings.Repeat(" ", max(p.width-len(text), 0)))
	p.width = len(text)
}
