package sim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/sirocco-run/sirocco/pkg/runtime"
)

// Inside is what a simulated sandbox does and keeps: it stops for a pause, and moves.
type Inside interface {
	// Pause and Resume may be called again.
	Pause()
	Resume()
	// Save returns its state. It is only called while paused, and changes nothing.
	Save() ([]byte, error)
}

// imageFile is the only file of a checkpoint.
const imageFile = "sandbox.json"

// image is what a checkpoint holds.
type image struct {
	Version string        `json:"version"`
	Stats   runtime.Stats `json:"stats"`
	Inside  []byte        `json:"inside,omitempty"`
}

// Pause implements runtime.Sandbox.
func (s *Sandbox) Pause(ctx context.Context) error {
	if err := s.setPaused(ctx, OpPause); err != nil {
		return fmt.Errorf("pause sandbox %s: %w", s.ID(), err)
	}
	if in := s.inside(); in != nil {
		in.Pause()
	}
	return nil
}

// Resume implements runtime.Sandbox.
func (s *Sandbox) Resume(ctx context.Context) error {
	if err := s.setPaused(ctx, OpResume); err != nil {
		return fmt.Errorf("resume sandbox %s: %w", s.ID(), err)
	}
	if in := s.inside(); in != nil {
		in.Resume()
	}
	return nil
}

// Paused implements runtime.Sandbox.
func (s *Sandbox) Paused() bool {
	s.r.host.mu.Lock()
	defer s.r.host.mu.Unlock()
	return s.m.resumed != nil
}

// setPaused holds new connections back, or lets them go on.
func (s *Sandbox) setPaused(ctx context.Context, op Op) error {
	if err := s.usable(ctx); err != nil {
		return err
	}
	h := s.r.host
	h.mu.Lock()
	defer h.mu.Unlock()
	if s.m.ended {
		return runtime.ErrNotFound
	}
	if err := h.failLocked(op); err != nil {
		return err
	}
	switch {
	case op == OpPause && s.m.resumed == nil:
		s.m.resumed = make(chan struct{})
	case op == OpResume && s.m.resumed != nil:
		close(s.m.resumed)
		s.m.resumed = nil
	}
	return nil
}

// usable says whether anything can be asked of the sandbox.
func (s *Sandbox) usable(ctx context.Context) error {
	if s.r.isClosed() {
		return ErrClosed
	}
	return ctx.Err()
}

// awaitResume waits while the sandbox is paused.
func (s *Sandbox) awaitResume(ctx context.Context) error {
	s.r.host.mu.Lock()
	resumed := s.m.resumed
	s.r.host.mu.Unlock()
	if resumed == nil {
		return nil
	}
	select {
	case <-resumed:
		return nil
	case <-s.m.done:
		return runtime.ErrNotFound
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *Sandbox) inside() Inside {
	if s.r.cfg.Inside == nil {
		return nil
	}
	return s.r.cfg.Inside(s.ID())
}

// Checkpoint implements runtime.Sandbox. Further errors: what Host.Fail was given.
func (s *Sandbox) Checkpoint(ctx context.Context, dir string) error {
	if err := s.checkpoint(ctx, dir); err != nil {
		return fmt.Errorf("checkpoint sandbox %s: %w", s.ID(), err)
	}
	return nil
}

func (s *Sandbox) checkpoint(ctx context.Context, dir string) error {
	if err := s.usable(ctx); err != nil {
		return err
	}
	h := s.r.host
	h.mu.Lock()
	img := image{Version: Version, Stats: s.m.stats}
	err := h.failLocked(OpCheckpoint)
	switch {
	case s.m.ended:
		err = runtime.ErrNotFound
	case s.m.resumed == nil:
		err = runtime.ErrNotPaused
	}
	h.mu.Unlock()
	if err != nil {
		return err
	}
	if err := sleep(ctx, s.r.cfg.Checkpoint.sample(s.r.draw("checkpoint", s.ID()))); err != nil {
		return err
	}
	if in := s.inside(); in != nil {
		if img.Inside, err = in.Save(); err != nil {
			return err
		}
	}
	return img.write(filepath.Join(dir, imageFile))
}

// write makes the file, or leaves none.
func (i image) write(name string) error {
	b, err := json.Marshal(i)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return full(err)
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(full(err), os.Remove(name))
	}
	return nil
}

// full marks a full disk.
func full(err error) error {
	if errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("%w: %w", runtime.ErrDiskFull, err)
	}
	return err
}

// restore fills a reserved sandbox from a checkpoint, and leaves it paused.
func (r *Runtime) restore(ctx context.Context, m *machine) error {
	dir, err := m.spec.Restore(ctx)
	if err != nil {
		return err
	}
	b, err := os.ReadFile(filepath.Join(dir, imageFile))
	if err != nil {
		return fmt.Errorf("%w: %v", runtime.ErrImage, err)
	}
	var img image
	if err := json.Unmarshal(b, &img); err != nil {
		return fmt.Errorf("%w: %v", runtime.ErrImage, err)
	}
	if img.Version != Version {
		return fmt.Errorf("%w: it was written by %q, and this is %q", runtime.ErrIncompatible, img.Version, Version)
	}
	if r.cfg.Load != nil && img.Inside != nil {
		if err := r.cfg.Load(m.spec, img.Inside); err != nil {
			return fmt.Errorf("%w: %v", runtime.ErrImage, err)
		}
	}
	r.host.mu.Lock()
	defer r.host.mu.Unlock()
	m.stats, m.resumed = img.Stats, make(chan struct{})
	return nil
}
