package runtimetest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/sirocco-run/sirocco/pkg/runtime"
)

func pause(t *testing.T, sb runtime.Sandbox) {
	t.Helper()
	if err := sb.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func resume(t *testing.T, sb runtime.Sandbox) {
	t.Helper()
	if err := sb.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// image returns a folder with a checkpoint of a sandbox that is paused.
func image(t *testing.T, sb runtime.Sandbox) string {
	t.Helper()
	dir := t.TempDir()
	if err := sb.Checkpoint(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

// restored describes a sandbox that is to come from the folder.
func restored(t *testing.T, h Harness, id, dir string) runtime.Spec {
	t.Helper()
	spec := h.Spec(t, id)
	spec.Restore = func(context.Context) (string, error) { return dir, nil }
	return spec
}

func pauses(t *testing.T, h Harness) {
	rt := h.Open(t)
	sb := create(t, h, rt, "sb-pause")
	echo(t, sb, "before")
	if sb.Paused() {
		t.Error("paused from the start")
	}
	dir := t.TempDir()
	if err := sb.Checkpoint(t.Context(), dir); !errors.Is(err, runtime.ErrNotPaused) {
		t.Errorf("checkpoint of one that runs: %v", err)
	}
	empty(t, dir)
	for range 2 {
		pause(t, sb)
		if !sb.Paused() {
			t.Error("not paused")
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := sb.Dial(ctx, EchoPort); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("dial one that is paused: %v", err)
	}
	answered := make(chan error, 1)
	go func() {
		c, err := sb.Dial(t.Context(), EchoPort)
		if err == nil {
			err = c.Close()
		}
		answered <- err
	}()
	for range 2 {
		resume(t, sb)
		if sb.Paused() {
			t.Error("still paused")
		}
	}
	if err := <-answered; err != nil {
		t.Errorf("dial that waited: %v", err)
	}
	echo(t, sb, "after")
	pause(t, sb)
	go func() {
		_, err := sb.Dial(t.Context(), EchoPort)
		answered <- err
	}()
	destroy(t, sb)
	if err := <-answered; !errors.Is(err, runtime.ErrNotFound) {
		t.Errorf("dial across the end: %v", err)
	}
	if err := sb.Pause(t.Context()); !errors.Is(err, runtime.ErrNotFound) {
		t.Errorf("pause after the end: %v", err)
	}
	if err := sb.Resume(t.Context()); !errors.Is(err, runtime.ErrNotFound) {
		t.Errorf("resume after the end: %v", err)
	}
	if err := sb.Checkpoint(t.Context(), dir); !errors.Is(err, runtime.ErrNotFound) {
		t.Errorf("checkpoint after the end: %v", err)
	}
	empty(t, dir)
	clean(t, rt)
}

// empty fails if there is anything in dir.
func empty(t *testing.T, dir string) {
	t.Helper()
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func restores(t *testing.T, h Harness) {
	rt := h.Open(t)
	source := create(t, h, rt, "sb-source")
	echo(t, source, "before")
	pause(t, source)
	dir := image(t, source)
	if err := source.Checkpoint(t.Context(), dir); err == nil {
		t.Error("a checkpoint replaced another")
	}
	// As often as one likes, from each of them.
	second := image(t, source)
	a, err := rt.Create(t.Context(), restored(t, h, "sb-copy", dir))
	if err != nil {
		t.Fatal(err)
	}
	b, err := rt.Create(t.Context(), restored(t, h, "sb-copy-b", second))
	if err != nil {
		t.Fatal(err)
	}
	if !a.Paused() || a.ID() != "sb-copy" {
		t.Errorf("%s is paused: %v", a.ID(), a.Paused())
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := a.Dial(ctx, EchoPort); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("dial the copy before it goes on: %v", err)
	}
	for _, sb := range []runtime.Sandbox{a, b} {
		resume(t, sb)
		echo(t, sb, "moved")
	}
	// A copy of a copy.
	pause(t, a)
	third, err := rt.Create(t.Context(), restored(t, h, "sb-third", image(t, a)))
	if err != nil {
		t.Fatal(err)
	}
	resume(t, third)
	echo(t, third, "and again")
	// The source was not harmed.
	resume(t, source)
	echo(t, source, "still here")
	for _, sb := range []runtime.Sandbox{source, a, b, third} {
		destroy(t, sb)
	}
	clean(t, rt)
}

func failedRestores(t *testing.T, h Harness) {
	rt := h.Open(t)
	source := create(t, h, rt, "sb-source")
	echo(t, source, "before")
	pause(t, source)
	dir := image(t, source)
	destroy(t, source)
	missing := errors.New("no image today")
	spec := h.Spec(t, "sb-copy")
	spec.Restore = func(context.Context) (string, error) { return "", missing }
	if _, err := rt.Create(t.Context(), spec); !errors.Is(err, missing) {
		t.Errorf("create: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	spec.Restore = func(ctx context.Context) (string, error) { cancel(); return "", ctx.Err() }
	if _, err := rt.Create(ctx, spec); !errors.Is(err, context.Canceled) {
		t.Errorf("create with a cancelled transfer: %v", err)
	}
	if _, err := rt.Create(t.Context(), restored(t, h, "sb-copy", t.TempDir())); !errors.Is(err, runtime.ErrImage) {
		t.Errorf("create of an empty folder: %v", err)
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, f := range files {
		for what, spoil := range map[string]func(name string) error{
			"cut short": func(name string) error { return os.Truncate(name, size(t, name)/2) },
			"empty":     func(name string) error { return os.Truncate(name, 0) },
			"missing":   os.Remove,
		} {
			bad := t.TempDir()
			if err := os.CopyFS(bad, os.DirFS(dir)); err != nil {
				t.Fatal(err)
			}
			if err := spoil(filepath.Join(bad, f.Name())); err != nil {
				t.Fatal(err)
			}
			if _, err := rt.Create(t.Context(), restored(t, h, "sb-copy", bad)); !errors.Is(err, runtime.ErrImage) {
				t.Errorf("%s %s: %v", f.Name(), what, err)
			}
			clean(t, rt)
		}
	}
	// What was wrong was the folders.
	sb, err := rt.Create(t.Context(), restored(t, h, "sb-copy", dir))
	if err != nil {
		t.Fatal(err)
	}
	resume(t, sb)
	echo(t, sb, "at last")
	destroy(t, sb)
	clean(t, rt)
}

func size(t *testing.T, name string) int64 {
	t.Helper()
	st, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	return st.Size()
}

// adoptPaused: the agent that comes after one that was killed in the middle of a move
// sees that the sandbox is paused, and can let it go on or go on itself.
func adoptPaused(t *testing.T, h Harness) {
	rt := h.Open(t)
	echo(t, create(t, h, rt, "sb-runs"), "before")
	sb := create(t, h, rt, "sb-stays")
	echo(t, sb, "before")
	pause(t, sb)
	dir := image(t, sb)
	if _, err := rt.Create(t.Context(), restored(t, h, "sb-came", dir)); err != nil {
		t.Fatal(err)
	}
	if err := rt.Close(); err != nil {
		t.Fatal(err)
	}
	rt = h.Open(t)
	alive, err := rt.Adopt(t.Context())
	if err != nil || len(alive) != 3 {
		t.Fatalf("adopted %v, %v", alive, err)
	}
	for _, sb := range alive {
		if sb.Paused() != (sb.ID() != "sb-runs") {
			t.Errorf("%s is paused: %v", sb.ID(), sb.Paused())
		}
		if sb.ID() == "sb-stays" {
			image(t, sb)
		}
		resume(t, sb)
		echo(t, sb, "after")
		destroy(t, sb)
	}
	clean(t, rt)
}
