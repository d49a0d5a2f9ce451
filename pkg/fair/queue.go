package fair

import (
	"context"
	"sync"
)

// Queue is Lines for concurrent use, with bounded memory.
type Queue[T any] struct {
	most int // bytes

	mu    sync.Mutex
	lines Lines[sized[T]]
	bytes int
	// more is signalled when something was put in, room when something was taken
	// out; each holds one signal, which whoever takes it passes on.
	more, room chan struct{}
}

type sized[T any] struct {
	v     T
	bytes int
}

// NewQueue makes a queue that holds most bytes, and one thing more than that.
func NewQueue[T any](most int) *Queue[T] {
	return &Queue[T]{most: most, more: make(chan struct{}, 1), room: make(chan struct{}, 1)}
}

// Push puts something of a size in bytes at the end of a tenant's line. It waits
// while the queue is full; the error is that of ctx.
func (q *Queue[T]) Push(ctx context.Context, tenant string, v T, bytes int) error {
	for {
		q.mu.Lock()
		if q.bytes < q.most {
			q.lines.Push(tenant, sized[T]{v, bytes})
			q.bytes += bytes
			again := q.bytes < q.most
			q.mu.Unlock()
			signal(q.more)
			if again {
				signal(q.room)
			}
			return nil
		}
		q.mu.Unlock()
		select {
		case <-q.room:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Pop takes what comes next, and waits until there is something; the error is
// that of ctx.
func (q *Queue[T]) Pop(ctx context.Context) (tenant string, v T, err error) {
	for {
		if tenant, v, ok := q.TryPop(); ok {
			return tenant, v, nil
		}
		select {
		case <-q.more:
		case <-ctx.Done():
			return "", v, ctx.Err()
		}
	}
}

// TryPop is Pop that does not wait; ok is false when there is nothing.
func (q *Queue[T]) TryPop() (tenant string, v T, ok bool) {
	q.mu.Lock()
	tenant, next, ok := q.lines.Pop()
	q.bytes -= next.bytes
	again := q.lines.Len() > 0
	q.mu.Unlock()
	if !ok {
		return "", v, false
	}
	signal(q.room)
	if again {
		signal(q.more)
	}
	return tenant, next.v, true
}

// Len returns how many wait.
func (q *Queue[T]) Len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.lines.Len()
}

func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}
