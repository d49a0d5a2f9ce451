package gvisor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
)

// Sweep implements runtime.Runtime.
func (r *Runtime) Sweep(ctx context.Context) ([]string, error) {
	r.mu.Lock()
	if err := r.readyLocked(); err != nil {
		r.mu.Unlock()
		return nil, err
	}
	// Look at the machine before looking at what is known: whatever starts to
	// exist in between is not on the list.
	r.mu.Unlock()
	found := map[string][]string{}
	for id, pids := range bundleProcesses(r.cfg.StateDir) {
		found[id] = append(found[id], fmt.Sprintf("processes %v", pids))
	}
	for _, id := range (cgroup{r.h, r.cfg.CgroupParent}).children() {
		found[id] = append(found[id], "cgroup")
	}
	entries, err := os.ReadDir(r.cfg.StateDir)
	if err != nil {
		return nil, fmt.Errorf("sweep: %w", err)
	}
	for _, e := range entries {
		if e.IsDir() {
			found[e.Name()] = append(found[e.Name()], "folder")
		}
	}
	var (
		removed []string
		errs    []error
	)
	for id, what := range found {
		if !r.claim(id) {
			continue
		}
		if err := r.erase(ctx, id); err != nil {
			errs = append(errs, err)
		} else {
			for _, w := range what {
				removed = append(removed, fmt.Sprintf("sandbox %s: %s", id, w))
			}
		}
		r.mu.Lock()
		delete(r.sandboxes, id)
		r.mu.Unlock()
	}
	slices.Sort(removed)
	return removed, errors.Join(errs...)
}

// claim enters an id that nobody has, so that it can be erased undisturbed.
func (r *Runtime) claim(id string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, known := r.sandboxes[id]; known {
		return false
	}
	r.sandboxes[id] = nil
	return true
}

// release frees what a sandbox held whose process has ended.
func (r *Runtime) release(ctx context.Context, s *Sandbox) error {
	if s.gofer != nil {
		if err := s.gofer.kill(); err != nil {
			return err
		}
		if err := s.gofer.wait(ctx); err != nil {
			return err
		}
		r.reap(s.gofer)
	}
	if err := r.removeTraces(s.id); err != nil {
		return err
	}
	r.mu.Lock()
	if r.sandboxes[s.id] == s {
		delete(r.sandboxes, s.id)
	}
	r.mu.Unlock()
	return nil
}

// erase removes whatever there is of a sandbox that nobody holds.
func (r *Runtime) erase(ctx context.Context, id string) error {
	if err := r.killProcesses(ctx, id); err != nil {
		return fmt.Errorf("erase sandbox %s: %w", id, err)
	}
	if err := r.removeTraces(id); err != nil {
		return fmt.Errorf("erase sandbox %s: %w", id, err)
	}
	return nil
}

// killProcesses ends the processes of a sandbox, found by what they were started
// for and by their cgroup.
func (r *Runtime) killProcesses(ctx context.Context, id string) error {
	cg := r.cgroup(id)
	return errors.Join(
		r.killAll(ctx, bundleProcesses(r.cfg.StateDir)[id], func(pid int) bool { return bundleOf(pid, r.cfg.StateDir) == id }),
		r.killAll(ctx, cg.pids(), func(pid int) bool { return slices.Contains(cg.pids(), pid) }),
	)
}

// removeTraces removes cgroup and folder, the folder last: as long as it is there,
// a Runtime that comes later knows that something may be left.
func (r *Runtime) removeTraces(id string) error {
	if err := r.cgroup(id).remove(); err != nil {
		return err
	}
	// A process that was killed at its very start may have left it.
	if err := os.Remove(r.filestore(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.RemoveAll(r.dir(id))
}
