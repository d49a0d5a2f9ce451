package reaper

import (
	"sync"
	"time"
)

// ear is what the reaper has heard of the nodes. It knows since when it listens,
// because silence says something about a node only while somebody listens: after
// the bus was away, every node has been silent for as long.
type ear struct {
	mu sync.Mutex
	// since is when it began to listen, the last time.
	since time.Time
	// connection is the connection to the bus that it listens on.
	connection uint64
	begun      bool
	heard      map[string]time.Time
	alive      map[string]bool
}

func newEar() *ear { return &ear{heard: map[string]time.Time{}, alive: map[string]bool{}} }

// begin starts to listen, on a connection that is counted up each time that it
// is made anew. Which nodes are alive will be heard at once.
func (e *ear) begin(connection uint64, now time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.since, e.connection, e.begun = now, connection, true
	clear(e.alive)
}

// listens says whether what it knows is of this connection. Between the return
// of the bus and begin it is not.
func (e *ear) listens(connection uint64) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.begun && e.connection == connection
}

// mark takes over what was heard of a node.
func (e *ear) mark(node string, alive bool, now time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.heard[node] = now
	if alive {
		e.alive[node] = true
	} else {
		delete(e.alive, node)
	}
}

// last returns since when a node has been silent: now for one that is alive, and
// never a time at which nobody listened.
func (e *ear) last(node string, now time.Time) time.Time {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.alive[node] {
		return now
	}
	if heard := e.heard[node]; heard.After(e.since) {
		return heard
	}
	return e.since
}

// living returns the nodes that are alive.
func (e *ear) living() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := make([]string, 0, len(e.alive))
	for name := range e.alive {
		out = append(out, name)
	}
	return out
}
