package agent

import (
	"context"
	"time"

	"github.com/sirocco-run/sirocco/pkg/guest"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

// What a machine waits for while its sandbox starts and runs.

// nextDeadline returns when the sandbox must end if nothing else happens, and
// how.
func (m *machine) nextDeadline(now time.Time) (time.Time, *siroccov1.End) {
	sb := m.current()
	at := sb.GetDesired().GetDeadline().AsTime()
	cause, message := siroccov1.Cause_CAUSE_MAX_LIFETIME, "its max_lifetime is over"
	if evict := sb.GetDesired().GetEvictAt(); evict != nil && evict.AsTime().Before(at) {
		at, cause, message = evict.AsTime(), siroccov1.Cause_CAUSE_EVICTED, "its node is being drained"
	}
	if m.wasReady() {
		if idle, ok := m.active.idleAt(now); ok && idle.Before(at) {
			at, cause, message = idle, siroccov1.Cause_CAUSE_IDLE, "nothing happened for its idle timeout"
		}
	}
	return at, &siroccov1.End{Cause: cause, Message: message, Limit: limitOf(sb, cause)}
}

// awaitStop returns true when the sandbox is to end: its record
// wants it to stop, or its time is over.
func (m *machine) awaitStop(ctx context.Context) (*siroccov1.End, bool) {
	for {
		wake, end := m.nextDeadline(time.Now())
		if !time.Now().Before(wake) {
			return end, true
		}
		timer := time.NewTimer(time.Until(wake))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, false
		case <-timer.C:
		case <-m.sync:
			timer.Stop()
			if end, stop := m.reread(ctx, wake); stop {
				return end, true
			}
		}
	}
}

// unlessStopped returns a context that ends when the sandbox is to end: its end waits for
// nothing that is done only so that it runs, here or elsewhere. done must be called when
// that is over, and says whether the sandbox is to end, and how.
func (m *machine) unlessStopped(ctx context.Context) (hctx context.Context, done func() (end *siroccov1.End, stopped bool)) {
	hctx, cancel := context.WithCancel(ctx)
	var end *siroccov1.End
	var stopped bool
	watching := make(chan struct{})
	go func() {
		defer close(watching)
		if end, stopped = m.awaitStop(hctx); stopped {
			cancel()
		}
	}()
	return hctx, func() (*siroccov1.End, bool) {
		cancel()
		<-watching
		return end, stopped
	}
}

// watch watches over a running sandbox until it ends, or has gone elsewhere: then there
// is no end to write.
func (m *machine) watch(ctx context.Context) (*siroccov1.End, error) {
	for ctx.Err() == nil {
		if m.moveOn(ctx) {
			return nil, nil
		}
		end, leaves, err := m.watchHere(ctx)
		if !leaves {
			return end, err
		}
	}
	return nil, ctx.Err()
}

// watchHere watches over a running sandbox until it ends, or is to leave.
func (m *machine) watchHere(ctx context.Context) (end *siroccov1.End, leaves bool, err error) {
	if done := m.mainOver(); done != nil {
		return m.mainEnd(ctx, done), false, nil // while it was on its way
	}
	mainEnd, taken := make(chan *guest.Exec, 1), make(chan struct{})
	unfollow := beside(ctx, func(ctx context.Context) { m.follow(ctx, mainEnd) })
	defer beside(ctx, func(ctx context.Context) { m.stayGuarded(ctx, taken) })()
	defer func() {
		if end == nil {
			unfollow()
			return
		}
		m.unfollow = unfollow
	}()
	// The record may have changed between the start and now, or while no agent
	// watched.
	m.poke()
	for {
		wake, end := m.nextDeadline(time.Now())
		if !time.Now().Before(wake) {
			return end, false, nil
		}
		timer := time.NewTimer(time.Until(wake))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, false, ctx.Err()
		case <-timer.C:
		case <-m.cell.sandbox.Done():
			timer.Stop()
			return m.exitEnd(m.cell.sandbox.Exit()), false, nil
		case <-taken:
			timer.Stop()
			return nil, false, nil
		case x := <-mainEnd:
			timer.Stop()
			return m.mainEnd(ctx, x), false, nil
		case end := <-m.told:
			timer.Stop()
			return end, false, nil
		case <-m.sync:
			timer.Stop()
			if end, stop := m.reread(ctx, wake); stop {
				return end, false, nil
			}
			if m.onTheMove() {
				return nil, true, nil
			}
		}
	}
}

// beside runs what goes on until ctx ends or stop is called, which waits for its end.
func beside(ctx context.Context, run func(context.Context)) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	over := make(chan struct{})
	go func() {
		defer close(over)
		run(ctx)
	}()
	return func() {
		cancel()
		<-over
	}
}

// mainOver returns how the sandbox's command ended; nil if it has not.
func (m *machine) mainOver() *guest.Exec {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.mainDone
}

// follow listens to the supervisor: to the end of the sandbox's command, and to
// what keeps it from being idle. A connection that breaks is made anew.
func (m *machine) follow(ctx context.Context, mainEnd chan<- *guest.Exec) {
	var lastFiles, lastIO int64
	for ctx.Err() == nil {
		client, err := m.cell.guest(ctx)
		if err == nil {
			err = client.Events(ctx, func(e guest.Event) error {
				now := time.Now()
				m.active.setExecs(int(e.Running), now)
				if e.FileOps != lastFiles || e.IOBytes != lastIO {
					m.active.touch(siroccov1.Activity_ACTIVITY_EXEC, now)
					lastFiles, lastIO = e.FileOps, e.IOBytes
				}
				if e.Main != nil && e.Main.End != nil {
					m.mu.Lock()
					first := m.mainDone == nil
					m.mainDone = e.Main
					m.mu.Unlock()
					if first {
						mainEnd <- e.Main
					}
				}
				return nil
			})
		}
		if ctx.Err() != nil {
			return
		}
		m.log.Debug("events of the sandbox broke off", "err", err)
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}
