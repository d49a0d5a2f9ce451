// Package fair orders what many tenants want of one: each tenant waits in a line
// of its own, and the lines are served in turn. However long one line is, the
// first of another waits for one of each tenant at most.
package fair

// Lines are queues of tenants, served in turn. Who joins the same line first
// comes first. The zero value is empty. Not safe for concurrent use: see Queue.
type Lines[T any] struct {
	lines map[string]*ring[T]
	// turns are the tenants that wait, in the order in which they come.
	turns ring[string]
	n     int
}

// Push puts something at the end of a tenant's line.
func (l *Lines[T]) Push(tenant string, v T) {
	if l.lines == nil {
		l.lines = map[string]*ring[T]{}
	}
	own := l.lines[tenant]
	if own == nil {
		own = &ring[T]{}
		l.lines[tenant] = own
		l.turns.push(tenant)
	}
	own.push(v)
	l.n++
}

// Pop takes the first of the line whose turn it is; the turn then is the next
// line's. ok is false when nobody waits.
func (l *Lines[T]) Pop() (tenant string, v T, ok bool) {
	if l.n == 0 {
		return "", v, false
	}
	tenant = l.turns.pop()
	own := l.lines[tenant]
	v = own.pop()
	l.n--
	if own.len() > 0 {
		l.turns.push(tenant)
	} else {
		delete(l.lines, tenant)
	}
	return tenant, v, true
}

// Len returns how many wait.
func (l *Lines[T]) Len() int { return l.n }

// ring is a first-in-first-out queue; what is taken is let go of.
type ring[T any] struct {
	items []T
	head  int
}

func (r *ring[T]) len() int { return len(r.items) - r.head }

func (r *ring[T]) push(v T) {
	if r.head > 0 && len(r.items) == cap(r.items) && 2*r.head >= len(r.items) {
		n := copy(r.items, r.items[r.head:])
		clear(r.items[n:])
		r.items, r.head = r.items[:n], 0
	}
	r.items = append(r.items, v)
}

func (r *ring[T]) pop() T {
	var none T
	v := r.items[r.head]
	r.items[r.head] = none
	if r.head++; r.head == len(r.items) {
		r.items, r.head = r.items[:0], 0
	}
	return v
}
