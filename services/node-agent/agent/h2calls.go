package agent

import (
	"encoding/binary"
	"sync"
	"time"
)

// h2calls follows the requests on one HTTP/2 connection, from the heads of its frames
// (RFC 9113, section 4.1). What is in the frames does not matter.
type h2calls struct {
	mu       sync.Mutex
	in, out  h2frames
	newest   uint32
	answered map[uint32]bool // of those that are open
}

// The frames that begin and end requests and answers.
const (
	h2Data, h2Headers, h2Reset = 0, 1, 3
	h2EndStream                = 1 // a flag
	h2Preface                  = 24
)

func newH2Calls() *h2calls {
	return &h2calls{in: h2frames{left: h2Preface}, answered: map[uint32]bool{}}
}

// inward takes in what a client sends. begins: a request begins.
func (c *h2calls) inward(b []byte) (begins, data bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.in.pass(b, func(kind, _ byte, stream uint32) {
		switch kind {
		case h2Headers:
			if stream > c.newest { // not a trailer
				c.newest, c.answered[stream], begins = stream, false, true
			}
		case h2Reset:
			delete(c.answered, stream)
		case h2Data:
			data = true
		}
	})
	return begins, data
}

// outward takes in what a server sends.
func (c *h2calls) outward(b []byte) (data bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.out.pass(b, func(kind, flags byte, stream uint32) {
		if _, open := c.answered[stream]; !open {
			return
		}
		switch kind {
		case h2Reset:
			delete(c.answered, stream)
		case h2Headers, h2Data:
			data = true
			c.answered[stream] = true
			if flags&h2EndStream != 0 {
				delete(c.answered, stream)
			}
		}
	})
	return data
}

// waiting says whether a request has no answer yet.
func (c *h2calls) waiting() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, answered := range c.answered {
		if !answered {
			return true
		}
	}
	return false
}

// h2frames finds the heads of frames in one direction.
type h2frames struct {
	head [9]byte
	n    int
	left uint32 // bytes that are to come before the next head
}

func (f *h2frames) pass(b []byte, frame func(kind, flags byte, stream uint32)) {
	for len(b) > 0 {
		if f.left > 0 {
			k := min(f.left, uint32(min(len(b), 1<<30))) //nolint:gosec // bounded
			f.left -= k
			b = b[k:]
			continue
		}
		k := copy(f.head[f.n:], b)
		f.n += k
		b = b[k:]
		if f.n < len(f.head) {
			return
		}
		f.n = 0
		f.left = binary.BigEndian.Uint32(f.head[:]) >> 8
		frame(f.head[3], f.head[4], binary.BigEndian.Uint32(f.head[5:])&(1<<31-1))
	}
}

// inwardH2 is inward for HTTP/2.
func (f *flow) inwardH2(b []byte) bool {
	t := &f.m.traffic
	t.mu.Lock()
	defer t.mu.Unlock()
	begins, data := f.h2.inward(b)
	if begins && f.m.closed() {
		return false
	}
	if begins || data {
		f.moved.Store(time.Now().UnixNano())
	}
	f.waiting.Store(f.h2.waiting())
	t.ease()
	return true
}

// outwardH2 is outward for HTTP/2.
func (f *flow) outwardH2(b []byte) {
	t := &f.m.traffic
	t.mu.Lock()
	defer t.mu.Unlock()
	if f.h2.outward(b) {
		f.moved.Store(time.Now().UnixNano())
	}
	f.waiting.Store(f.h2.waiting())
	t.ease()
}
