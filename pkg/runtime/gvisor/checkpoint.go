package gvisor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/sirocco-run/sirocco/pkg/runtime"
	"github.com/sirocco-run/sirocco/pkg/runtime/gvisor/starter"
	"gvisor.dev/gvisor/pkg/sentry/control"
	"gvisor.dev/gvisor/pkg/state/statefile"
	"gvisor.dev/gvisor/runsc/boot"
)

// pausedFile is in the folder of a sandbox that is paused, for the agent that comes
// after this one. It holds the memory limit to return to, in bytes; 0: it holds.
const pausedFile = "paused"

// undoTimeout limits how long a pause that failed may take to be taken back.
const undoTimeout = 10 * time.Second

// Pause implements runtime.Sandbox.
func (s *Sandbox) Pause(ctx context.Context) error {
	s.pausing.Lock()
	defer s.pausing.Unlock()
	if s.ended() {
		return fmt.Errorf("pause sandbox %s: %w", s.id, runtime.ErrNotFound)
	}
	if s.Paused() {
		return nil
	}
	// Before the call, so that no next agent takes a paused sandbox for one that runs.
	if err := s.notePause(); err != nil {
		return fmt.Errorf("pause sandbox %s: %w", s.id, err)
	}
	if err := unanswered(ctx, call(ctx, s.control, boot.ContMgrPause, nil, nil, nil)); err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		return fmt.Errorf("pause sandbox %s: %w", s.id, errors.Join(err, s.goOn(undo)))
	}
	return nil
}

// Resume implements runtime.Sandbox. If a checkpoint is still in a folder in memory,
// the memory limit can't be what it was: that is an error, though the sandbox runs.
// Remove the checkpoint and call again.
func (s *Sandbox) Resume(ctx context.Context) error {
	s.pausing.Lock()
	defer s.pausing.Unlock()
	if s.ended() {
		return fmt.Errorf("resume sandbox %s: %w", s.id, runtime.ErrNotFound)
	}
	if s.Paused() {
		if err := s.goOn(ctx); err != nil {
			return fmt.Errorf("resume sandbox %s: %w", s.id, err)
		}
	}
	if err := s.relimit(ctx); err != nil {
		return fmt.Errorf("resume sandbox %s: %w", s.id, err)
	}
	return nil
}

// goOn ends the pause. gVisor's call, as it is built here, does nothing in a sandbox
// that runs. The caller holds pausing.
func (s *Sandbox) goOn(ctx context.Context) error {
	if err := unanswered(ctx, call(ctx, s.control, boot.ContMgrResume, nil, nil, nil)); err != nil {
		return err
	}
	if s.limit == 0 {
		if err := os.Remove(filepath.Join(s.dir, pausedFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	s.setPaused(false)
	return nil
}

// freeTimeout is how long memory of a checkpoint that was removed may still be in use:
// the copy closes its files a moment after it was restored.
const freeTimeout = time.Second

// relimit sets the memory limit again that a checkpoint has lifted.
func (s *Sandbox) relimit(ctx context.Context) error {
	if s.limit == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, freeTimeout)
	defer cancel()
	for wait := time.Millisecond; ; wait *= 2 {
		err := s.cg.limitMemory(s.limit)
		if err == nil {
			break
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return err
		}
	}
	s.limit = 0
	return os.Remove(filepath.Join(s.dir, pausedFile))
}

// Paused implements runtime.Sandbox.
func (s *Sandbox) Paused() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.resumed != nil
}

func (s *Sandbox) setPaused(paused bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case paused && s.resumed == nil:
		s.resumed = make(chan struct{})
	case !paused && s.resumed != nil:
		close(s.resumed)
		s.resumed = nil
	}
}

// awaitResume waits while the sandbox is paused. A connection that gVisor made
// meanwhile would be lost, should the sandbox be moved.
func (s *Sandbox) awaitResume(ctx context.Context) error {
	s.mu.Lock()
	resumed := s.resumed
	s.mu.Unlock()
	if resumed == nil {
		return nil
	}
	select {
	case <-resumed:
		return nil
	case <-s.done:
		return runtime.ErrNotFound
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *Sandbox) ended() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

// notePause marks the sandbox as paused, here and for the next agent.
func (s *Sandbox) notePause() error {
	if err := os.WriteFile(filepath.Join(s.dir, pausedFile), []byte(strconv.FormatInt(s.limit, 10)), 0o600); err != nil {
		return err
	}
	s.setPaused(true)
	return nil
}

// adoptPause reads what the agent before has noted. The pause itself may have ended, or
// not have begun yet: Resume is harmless then.
func (s *Sandbox) adoptPause() {
	b, err := os.ReadFile(filepath.Join(s.dir, pausedFile))
	if err != nil {
		return
	}
	s.setPaused(true)
	// What is no number was cut short, and no limit had been lifted yet.
	s.limit, _ = strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
}

// Checkpoint implements runtime.Sandbox.
//
// gVisor pauses once more for itself and ends only that pause, so the processes stay
// where they are. Its memory is written by the sandbox's own process, whose cgroup pays
// for what it writes; as that can be as much as it has, the limit is lifted until
// Resume. Nothing of the tenant runs meanwhile.
func (s *Sandbox) Checkpoint(ctx context.Context, dir string) (err error) {
	s.pausing.Lock()
	defer s.pausing.Unlock()
	defer func() {
		if err != nil {
			err = fmt.Errorf("checkpoint sandbox %s: %w", s.id, err)
		}
	}()
	if s.ended() {
		return runtime.ErrNotFound
	}
	if !s.Paused() {
		return runtime.ErrNotPaused
	}
	if err := s.unlimit(); err != nil {
		return err
	}
	files, err := createImage(dir)
	if err != nil {
		return diskError(err)
	}
	defer closeAll(files)
	opts := &control.SaveOpts{
		// Uncompressed, memory is written by several threads; compressing takes five times
		// as long, and is better done on the way to where it is worth it.
		Metadata: statefile.CompressionLevelNone.ToMetadata(), HavePagesFile: true,
		AppMFExcludeCommittedZeroPages: true,
		Resume:                         true,
	}
	err = unanswered(ctx, call(ctx, s.control, boot.ContMgrCheckpoint, opts, files, nil))
	if err == nil {
		err = describeImage(dir)
	}
	if err != nil {
		return errors.Join(diskError(err), removeImage(dir))
	}
	return nil
}

// unlimit lifts the memory limit, and notes it first.
func (s *Sandbox) unlimit() error {
	limit, err := s.cg.memoryLimit()
	if err != nil || limit == 0 {
		return err
	}
	s.limit = limit
	if err := s.notePause(); err != nil {
		return err
	}
	return s.cg.limitMemory(0)
}

// diskError marks what a full disk says, here or through gVisor.
func diskError(err error) error {
	for _, sign := range []string{"no space left on device", "disk quota exceeded"} {
		if strings.Contains(err.Error(), sign) {
			return fmt.Errorf("%w: %w", runtime.ErrDiskFull, err)
		}
	}
	return err
}

// restore gives a sandbox that the starter has prepared the content of a checkpoint.
func (r *Runtime) restore(ctx context.Context, s *Sandbox, spec runtime.Spec, req starter.Request) error {
	dir, err := spec.Restore(ctx)
	if err != nil {
		return err
	}
	if err := checkImage(dir); err != nil {
		return err
	}
	// gVisor pauses it before its processes exist.
	if err := s.notePause(); err != nil {
		return err
	}
	background, err := roomy(dir, spec.Resources.MemoryBytes)
	if err != nil {
		return err
	}
	if err := r.starter.Restore(starter.Restoring{Request: req, Image: dir, Background: background}); err != nil {
		if ctx.Err() != nil {
			// Its processes were killed for that.
			return errors.Join(ctx.Err(), err)
		}
		if kills, kerr := s.cg.oomKills(); kerr == nil && kills > 0 {
			return fmt.Errorf("memory ran out: %w", err)
		}
		return imageError(err)
	}
	return nil
}

// sentryRoom is what a sandbox needs of its memory besides its pages, with room to spare,
// in bytes.
const sentryRoom = 64 << 20

// roomy says whether a checkpoint fits into a memory limit for sure; 0 is none. One that
// does may be read while the sandbox goes on, which saves a third of the time that it
// stands still. Of any other it must be known before that it fits: if it does not, it goes
// on where it was.
func roomy(dir string, limit int64) (bool, error) {
	pages, err := os.Stat(filepath.Join(dir, runtime.PagesFile))
	if err != nil {
		return false, fmt.Errorf("%w: %v", runtime.ErrImage, err)
	}
	return limit == 0 || pages.Size()/4*5+sentryRoom <= limit, nil
}

// imageError sorts out what gVisor says about a checkpoint that it can't restore.
func imageError(err error) error {
	msg := err.Error()
	for _, sign := range []string{"version does not match", "does not match across checkpoint restore", "FeatureSet", "superblock mismatch"} {
		if strings.Contains(msg, sign) {
			return fmt.Errorf("%w: %v", runtime.ErrIncompatible, err)
		}
	}
	if strings.Contains(msg, "restoring container") {
		return fmt.Errorf("%w: %v", runtime.ErrImage, err)
	}
	return err
}
