package scheduler

import "sync"

// maxWaiting is how many creates of one tenant may wait for capacity at once. A
// command that waits keeps its place in the queue's window of 16,384; the window
// is for all tenants.
const maxWaiting = 1024

// crowd counts the sandboxes of each tenant that wait for capacity.
type crowd struct {
	most int

	mu      sync.Mutex
	waiting map[string]int
}

func newCrowd(most int) *crowd { return &crowd{most: most, waiting: map[string]int{}} }

// enter lets one more of a tenant's sandboxes wait, and leave ends that. ok is
// false when as many wait as may.
func (c *crowd) enter(tenant string) (leave func(), ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waiting[tenant] >= c.most {
		return nil, false
	}
	c.waiting[tenant]++
	return sync.OnceFunc(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.waiting[tenant]--; c.waiting[tenant] == 0 {
			delete(c.waiting, tenant)
		}
	}), true
}
