// Package gvisor runs sandboxes in gVisor, driven by gVisor's own calls: those that
// start one are made by a small process beside this program (package starter), all
// others from here.
//
// A sandbox is one gVisor sandbox process (the sentry) and, if its root file
// system is a folder, a gofer process. Everything else it has on the machine is in
// two places: a folder below Config.StateDir and a cgroup below
// Config.CgroupParent. Processes are in sessions of their own and are not tied to
// this program's life: if it is killed they go on, and the Runtime of its
// successor adopts them.
//
// The runsc that runs them is gVisor's, built with the few lines of package
// launch in front of it.
package gvisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/sirocco-run/sirocco/pkg/runtime"
	"github.com/sirocco-run/sirocco/pkg/runtime/gvisor/launch"
	"github.com/sirocco-run/sirocco/pkg/runtime/gvisor/pin"
	"github.com/sirocco-run/sirocco/pkg/runtime/gvisor/starter"
	"golang.org/x/sys/unix"
)

// Runtime implements runtime.Runtime. Its methods may be called concurrently.
type Runtime struct {
	cfg Config

	mu sync.Mutex
	// lock is held on StateDir from the first use on, by the starter too.
	lock    *os.File
	starter *starter.Starter
	h       hierarchies
	closed  bool
	// sandboxes has an entry, nil while it is being created, for each id whose
	// folder and cgroup are not to be swept.
	sandboxes map[string]*Sandbox
	// watchers are the goroutines that wait for a sandbox's end, one each,
	// blocked without a thread.
	watchers sync.WaitGroup
}

var _ runtime.Runtime = (*Runtime)(nil)

// ErrClosed: the Runtime has let go of its sandboxes.
var ErrClosed = errors.New("gvisor: runtime is closed")

// New returns a Runtime. The machine is first touched, and the version of runsc
// compared with that of the linked packages, by the first other call.
func New(cfg Config) (*Runtime, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	return &Runtime{cfg: cfg, sandboxes: map[string]*Sandbox{}}, nil
}

// Name implements runtime.Runtime.
func (r *Runtime) Name() string { return "gvisor" }

// Version implements runtime.Runtime.
func (r *Runtime) Version() string { return Version }

// Check finds out whether sandboxes can run here: root, runsc's version, cgroups,
// the state folder. The other methods do it by themselves.
func (r *Runtime) Check() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.readyLocked()
}

func (r *Runtime) readyLocked() error {
	if r.closed {
		return ErrClosed
	}
	if r.lock != nil {
		return nil
	}
	if err := requireRoot(); err != nil {
		return err
	}
	if err := pin.Check(r.cfg.RunscPath); err != nil {
		return fmt.Errorf("gvisor: %w", err)
	}
	h, err := findHierarchies(r.cfg.CgroupRoot)
	if err != nil {
		return err
	}
	for _, dir := range []string{r.cfg.StateDir, r.cfg.DiskDir} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return fmt.Errorf("gvisor: state folder: %w", err)
		}
	}
	lock, err := os.OpenFile(filepath.Join(r.cfg.StateDir, ".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("gvisor: state folder: %w", err)
	}
	if err := takeLock(lock); err != nil {
		lock.Close()
		return fmt.Errorf("gvisor: state folder %s is in use by another agent: %w", r.cfg.StateDir, err)
	}
	r.lock, r.h = lock, h
	r.starter = starter.New(r.cfg.RunscPath, lock, r.cfg.Logger)
	return nil
}

// lockWait is how long the starter of an agent that was killed may take to notice.
const lockWait = 10 * time.Second

// takeLock locks a file, for which the starter of the agent before may have to end.
func takeLock(file *os.File) error {
	for began := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Since(began) > lockWait {
			return err
		}
	}
}

// Create implements runtime.Runtime.
func (r *Runtime) Create(ctx context.Context, spec runtime.Spec) (runtime.Sandbox, error) {
	if err := checkSpec(spec); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := r.reserve(spec.ID); err != nil {
		return nil, err
	}
	s, err := r.create(ctx, spec)
	r.mu.Lock()
	if err != nil {
		delete(r.sandboxes, spec.ID)
		r.mu.Unlock()
		return nil, fmt.Errorf("create sandbox %s: %w", spec.ID, err)
	}
	r.sandboxes[spec.ID] = s
	r.mu.Unlock()
	return s, nil
}

// reserve enters an id whose sandbox is about to be made.
func (r *Runtime) reserve(id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.readyLocked(); err != nil {
		return err
	}
	if _, ok := r.sandboxes[id]; ok {
		return fmt.Errorf("create sandbox %s: %w", id, runtime.ErrExists)
	}
	// A folder without an entry is of a sandbox that was never adopted.
	if err := os.Mkdir(r.dir(id), 0o711); errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("create sandbox %s: %w", id, runtime.ErrExists)
	} else if err != nil {
		return fmt.Errorf("create sandbox %s: %w", id, err)
	}
	r.sandboxes[id] = nil
	return nil
}

// create makes the sandbox in its folder, which exists. On an error, nothing of
// it stays.
func (r *Runtime) create(ctx context.Context, spec runtime.Spec) (_ *Sandbox, err error) {
	dir, cg := r.dir(spec.ID), r.cgroup(spec.ID)
	defer func() {
		if err != nil {
			if msg := launch.ReadError(dir); msg != "" {
				err = fmt.Errorf("%w (%s)", err, msg)
			}
			// The caller's deadline may be why we are here.
			err = errors.Join(err, r.erase(context.WithoutCancel(ctx), spec.ID))
		}
	}()
	disk := spec.Resources.DiskBytes
	if disk <= 0 {
		disk = r.cfg.DiskBytes
	}
	if err := cg.create(spec.Resources); err != nil {
		return nil, err
	}
	if spec.Background {
		if err := cg.weigh(weightIdle); err != nil {
			return nil, err
		}
	}
	plan := launch.Plan{CgroupProcs: cg.joins(), Loopback: spec.NetNS == "", BootFlags: bootFlags(spec.Resources)}
	if spec.Rootfs.EROFS != "" {
		plan.Filestore = r.filestore(spec.ID)
	}
	if r.cfg.Debug {
		plan.Stdio = filepath.Join(dir, "stdio.log")
	}
	oci := ociSpec(spec, dir, disk)
	if err := writeBundle(dir, plan, oci); err != nil {
		return nil, err
	}
	// The starter's calls can't be cancelled, but they fail at once when the processes
	// they talk to are gone.
	stop := context.AfterFunc(ctx, func() { _ = r.killProcesses(context.WithoutCancel(ctx), spec.ID) })
	defer stop()
	req := starter.Request{Dir: dir, Disk: disk, Debug: r.cfg.Debug, Prepare: spec.Restore != nil}
	started, err := r.starter.Start(req)
	if err != nil {
		return nil, errors.Join(ctx.Err(), rootfsError(err))
	}
	s := &Sandbox{r: r, id: spec.ID, dir: dir, cg: cg, control: started.Control, dials: make(chan struct{}, maxDials), done: make(chan struct{})}
	if s.proc, err = openProcess(started.PID); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.closeProcesses()
		}
	}()
	if started.Gofer != 0 {
		if s.gofer, err = openProcess(started.Gofer); err != nil {
			return nil, err
		}
	}
	if spec.Restore != nil {
		if err := r.restore(ctx, s, spec, req); err != nil {
			return nil, err
		}
	}
	if err := s.record().write(dir); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	r.watch(s)
	return s, nil
}

// writeBundle writes what the processes of the sandbox read when they start.
func writeBundle(dir string, plan launch.Plan, oci any) error {
	if err := os.Mkdir(filepath.Join(dir, emptyDir), 0o755); err != nil {
		return fmt.Errorf("make bundle: %w", err)
	}
	if err := plan.Write(dir); err != nil {
		return err
	}
	b, err := json.Marshal(oci)
	if err != nil {
		return fmt.Errorf("encode container spec: %w", err)
	}
	// It holds the environment of process 1, and with it a secret.
	if err := os.WriteFile(filepath.Join(dir, "config.json"), b, 0o600); err != nil {
		return fmt.Errorf("write container spec: %w", err)
	}
	return nil
}

// Adopt implements runtime.Runtime.
func (r *Runtime) Adopt(ctx context.Context) ([]runtime.Sandbox, error) {
	r.mu.Lock()
	if err := r.readyLocked(); err != nil {
		r.mu.Unlock()
		return nil, err
	}
	ids, err := r.foldersLocked()
	r.mu.Unlock()
	if err != nil {
		return nil, err
	}
	var (
		alive []runtime.Sandbox
		errs  []error
	)
	for _, id := range ids {
		s, err := r.adopt(id)
		if err == nil {
			alive = append(alive, s)
			continue
		}
		r.cfg.Logger.Info("sandbox did not outlive its agent", "sandbox", id, "reason", err)
		if err := r.erase(ctx, id); err != nil {
			errs = append(errs, err)
		}
	}
	return alive, errors.Join(errs...)
}

// adopt takes over the sandbox in the folder of id if it runs.
func (r *Runtime) adopt(id string) (*Sandbox, error) {
	dir := r.dir(id)
	rec, err := readRecord(dir)
	if err != nil {
		return nil, err
	}
	s := &Sandbox{r: r, id: id, dir: dir, cg: r.cgroup(id), control: rec.Control, dials: make(chan struct{}, maxDials), done: make(chan struct{})}
	if s.proc, err = rec.Sandbox.reopen(); err != nil {
		return nil, err
	}
	if _, state, err := readStat(rec.Sandbox.PID); err != nil || state == 'Z' || state == 'X' {
		r.reap(s.proc)
		s.closeProcesses()
		return nil, fmt.Errorf("process %d has ended", rec.Sandbox.PID)
	}
	if err := starter.Volunteer(s.proc.PID); err != nil {
		s.closeProcesses()
		return nil, err
	}
	if rec.Gofer != nil {
		if s.gofer, err = rec.Gofer.reopen(); err != nil {
			s.closeProcesses()
			return nil, err
		}
	}
	s.adoptPause()
	r.mu.Lock()
	r.sandboxes[id] = s
	r.mu.Unlock()
	r.watch(s)
	return s, nil
}

// foldersLocked returns the ids that have a folder and no entry.
func (r *Runtime) foldersLocked() ([]string, error) {
	entries, err := os.ReadDir(r.cfg.StateDir)
	if err != nil {
		return nil, fmt.Errorf("gvisor: state folder: %w", err)
	}
	var ids []string
	for _, e := range entries {
		if _, known := r.sandboxes[e.Name()]; e.IsDir() && !known {
			ids = append(ids, e.Name())
		}
	}
	slices.Sort(ids)
	return ids, nil
}

// Close implements runtime.Runtime. The sandboxes' Done channels stay open.
func (r *Runtime) Close() error {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return nil
	}
	r.closed = true
	for _, s := range r.sandboxes {
		if s != nil {
			s.letGo()
		}
	}
	lock := r.lock
	if lock != nil && len(r.sandboxes) == 0 {
		// With nothing in them, the parent cgroup and the folder go too.
		(cgroup{r.h, r.cfg.CgroupParent}).tryRemove()
		if left, err := r.foldersLocked(); err == nil && len(left) == 0 {
			_ = os.Remove(lock.Name())
			_ = os.Remove(r.cfg.StateDir)
		}
	}
	r.mu.Unlock()
	r.watchers.Wait()
	if lock == nil {
		return nil
	}
	return errors.Join(r.starter.Close(), lock.Close())
}

func (r *Runtime) dir(id string) string { return filepath.Join(r.cfg.StateDir, id) }

// filestore is the file that keeps what a sandbox writes, for the moment in which it
// has a name.
func (r *Runtime) filestore(id string) string { return filepath.Join(r.cfg.DiskDir, id+".store") }

func (r *Runtime) cgroup(id string) cgroup {
	return cgroup{r.h, filepath.Join(r.cfg.CgroupParent, id)}
}
