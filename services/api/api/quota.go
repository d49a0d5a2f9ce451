package api

import (
	"sync"
	"time"

	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

// live counts the sandboxes of each tenant that have not ended.
type live struct {
	mu    sync.Mutex
	count map[string]int
}

// change follows the view of the records, in order.
func (l *live) change(old, now *siroccov1.Sandbox) {
	was, is := old != nil && !lifecycle.Ended(old.GetState()), now != nil && !lifecycle.Ended(now.GetState())
	if was == is {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if is {
		l.count[now.GetTenant()]++
		return
	}
	if l.count[old.GetTenant()]--; l.count[old.GetTenant()] == 0 {
		delete(l.count, old.GetTenant())
	}
}

func (l *live) of(tenant string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.count[tenant]
}

// admitTenant says whether a tenant may have one more sandbox. A key that has
// made one already always may: the answer is that one.
func (a *API) admitTenant(tenant, key string) error {
	most := a.cfg.MaxLive
	if most == 0 || a.live.of(tenant) < most {
		return nil
	}
	known := false
	a.view.Each(func(sb *siroccov1.Sandbox) bool {
		known = sb.GetTenant() == tenant && sb.GetIdempotencyKey() == key
		return !known
	})
	if known {
		return nil
	}
	f := fault.New(fault.Quota, "you have %d sandboxes that have not ended; %d are allowed", a.live.of(tenant), most)
	f.Scope, f.RetryAfter = "tenant", 5*time.Second
	return f
}
