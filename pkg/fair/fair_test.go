package fair

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

// However things come and go: nothing is lost or doubled, a tenant's own come in
// the order in which they were put, nobody who waits is passed twice by the same
// other, and what is empty keeps nothing.
func TestLines(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var l Lines[int]
		waiting := map[string][]int{}
		// passed counts how often others were served since a tenant began to wait
		// for its next turn.
		passed := map[string]map[string]int{}
		next := 0
		pop := func() {
			tenant, v, ok := l.Pop()
			if !ok {
				if l.Len() != 0 {
					t.Fatalf("%d wait and none comes", l.Len())
				}
				return
			}
			own := waiting[tenant]
			if len(own) == 0 || own[0] != v {
				t.Fatalf("%s got %d, in its line are %v", tenant, v, own)
			}
			if waiting[tenant] = own[1:]; len(own) == 1 {
				delete(waiting, tenant)
			}
			delete(passed, tenant)
			for other := range waiting {
				if other == tenant {
					continue
				}
				if passed[other] == nil {
					passed[other] = map[string]int{}
				}
				if passed[other][tenant]++; passed[other][tenant] > 1 {
					t.Fatalf("%s was passed twice by %s", other, tenant)
				}
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"push": func(t *rapid.T) {
				tenant := rapid.SampledFrom([]string{"a", "b", "c", "d"}).Draw(t, "tenant")
				for range rapid.IntRange(1, 20).Draw(t, "n") {
					next++
					l.Push(tenant, next)
					waiting[tenant] = append(waiting[tenant], next)
				}
			},
			"pop": func(t *rapid.T) {
				for range rapid.IntRange(1, 20).Draw(t, "n") {
					pop()
				}
			},
			"": func(t *rapid.T) {
				n := 0
				for _, own := range waiting {
					n += len(own)
				}
				if l.Len() != n {
					t.Fatalf("%d wait, it says %d", n, l.Len())
				}
			},
		})
		for l.Len() > 0 {
			pop()
		}
		if len(waiting) != 0 || len(l.lines) != 0 || l.turns.len() != 0 {
			t.Fatalf("left: %v, %v", waiting, l.lines)
		}
	})
}

// The queue holds no more than it may, whoever puts in and takes out at once, and
// everything comes out once.
func TestQueue(t *testing.T) {
	const most, tenants, each = 64, 8, 500
	q := NewQueue[int](most)
	var putting, taking sync.WaitGroup
	for tenant := range tenants {
		putting.Go(func() {
			for i := range each {
				if err := q.Push(t.Context(), fmt.Sprint(tenant), i, 1+i%7); err != nil {
					t.Error(err)
				}
			}
		})
	}
	ctx, done := context.WithCancel(t.Context())
	var mu sync.Mutex
	got := map[string]int{}
	for range 4 {
		taking.Go(func() {
			for {
				q.mu.Lock()
				held := q.bytes
				q.mu.Unlock()
				if held >= most+7 {
					t.Errorf("it holds %d bytes of %d", held, most)
				}
				tenant, _, err := q.Pop(ctx)
				if err != nil {
					return
				}
				mu.Lock()
				if got[tenant]++; got[tenant] == each && len(got) == tenants {
					all := true
					for _, n := range got {
						all = all && n == each
					}
					if all {
						done()
					}
				}
				mu.Unlock()
			}
		})
	}
	putting.Wait()
	taking.Wait()
	for tenant, n := range got {
		if n != each {
			t.Errorf("%d of %s", n, tenant)
		}
	}
	if q.Len() != 0 || q.bytes != 0 {
		t.Errorf("%d left, %d bytes", q.Len(), q.bytes)
	}
	done()
}

func TestFullQueue(t *testing.T) {
	q := NewQueue[int](1)
	if err := q.Push(t.Context(), "a", 1, 5); err != nil {
		t.Fatal(err)
	}
	ended, end := context.WithCancel(t.Context())
	end()
	if err := q.Push(ended, "b", 2, 5); !errors.Is(err, context.Canceled) {
		t.Errorf("it took more: %v", err)
	}
	if _, v, err := q.Pop(t.Context()); err != nil || v != 1 {
		t.Errorf("%d, %v", v, err)
	}
	if _, _, err := q.Pop(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("it had more: %v", err)
	}
}
