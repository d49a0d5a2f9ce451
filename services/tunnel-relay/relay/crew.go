package relay

import "sync"

// crew counts the goroutines and handlers that serve clients. Unlike a
// WaitGroup it may be joined while somebody waits, until it is closed.
type crew struct {
	mu     sync.Mutex
	n      int
	closed bool
	idle   chan struct{} // not nil while somebody waits
}

// enter joins; it returns false once the crew is closed.
func (c *crew) enter() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.n++
	return true
}

func (c *crew) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n--; c.n == 0 && c.idle != nil {
		close(c.idle)
		c.idle = nil
	}
}

// run calls f in a goroutine; it returns false, without calling f, once the
// crew is closed.
func (c *crew) run(f func()) bool {
	if !c.enter() {
		return false
	}
	go func() {
		defer c.leave()
		f()
	}()
	return true
}

// wait returns a channel that is closed when nobody is left, at least for a
// moment. Only one may wait at a time.
func (c *crew) wait() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	ch := make(chan struct{})
	if c.n == 0 {
		close(ch)
		return ch
	}
	c.idle = ch
	return ch
}

// close lets nobody join any more and waits for those who are left.
func (c *crew) close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	<-c.wait()
}
