package gvisor_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sirocco-run/sirocco/pkg/runtime"
	"github.com/sirocco-run/sirocco/pkg/runtime/gvisor"
	"github.com/sirocco-run/sirocco/pkg/runtime/gvisor/gvisortest"
	"golang.org/x/sys/unix"
)

func pause(tb testing.TB, sb runtime.Sandbox) {
	tb.Helper()
	if err := sb.Pause(tb.Context()); err != nil {
		tb.Fatal(err)
	}
}

func resume(tb testing.TB, sb runtime.Sandbox) {
	tb.Helper()
	if err := sb.Resume(tb.Context()); err != nil {
		tb.Fatal(err)
	}
}

func checkpoint(tb testing.TB, sb runtime.Sandbox, dir string) string {
	tb.Helper()
	if err := sb.Checkpoint(tb.Context(), dir); err != nil {
		tb.Fatal(err)
	}
	return dir
}

// from describes a sandbox that is to be what the checkpoint in dir holds.
func from(s runtime.Spec, dir string) runtime.Spec {
	s.Restore = func(context.Context) (string, error) { return dir, nil }
	return s
}

// TestStateMoves: what a sandbox has, its copy has, on another Runtime with other
// folders; and the original still has it too.
func TestStateMoves(t *testing.T) {
	here, there := open(t), open(t)
	source := create(t, here, spec(t, "sb-source", "serve"))
	sum := ask(t, source, "keep 20000000")
	for range 5 {
		ask(t, source, "bump")
	}
	if got := ask(t, source, "write /big 30000000"); got != "30000000 <nil>" {
		t.Fatal(got)
	}
	if got := ask(t, source, "prepare"); got != "ok" {
		t.Fatal(got)
	}
	pause(t, source)
	dir := checkpoint(t, source, t.TempDir())
	copied := create(t, there, from(spec(t, "sb-copy", "serve"), dir))
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	for _, sb := range []runtime.Sandbox{copied, source} {
		resume(t, sb)
		for line, want := range map[string]string{"bump": "6", "kept": sum, "verify": "ok"} {
			if got := ask(t, sb, line); got != want {
				t.Errorf("%s: %s: %s, want %s", sb.ID(), line, got, want)
			}
		}
		if got := ask(t, sb, "env"); !strings.Contains(got, "host=renamed") || !strings.Contains(got, "pid=1") {
			t.Errorf("%s: %s", sb.ID(), got)
		}
		if len(ask(t, sb, "get /big")) < 30000000-2 {
			t.Errorf("%s: a file is cut short", sb.ID())
		}
		// Its root file system is writable as before, and limited as before.
		if got := ask(t, sb, "write /more 1000000000"); !strings.Contains(got, "no space left") {
			t.Errorf("%s: wrote %s", sb.ID(), got)
		}
		st, err := sb.Stats(t.Context())
		if err != nil || st.DiskBytes < 30000000 {
			t.Errorf("%s: %+v, %v", sb.ID(), st, err)
		}
	}
	// How it ends is noticed as ever.
	c := dial(t, copied)
	defer c.Close()
	fmt.Fprintln(c, "exit 7")
	if got := wait(t, copied); got != (runtime.Exit{Code: 7}) {
		t.Errorf("exit %+v", got)
	}
}

// TestNothingRunsWhilePaused: a process that looks at the clock all the time sees one
// gap that is as long as the whole pause, with two checkpoints in it.
func TestNothingRunsWhilePaused(t *testing.T) {
	rt := open(t)
	sb := create(t, rt, spec(t, "sb-gap", "serve"))
	ask(t, sb, "spin")
	ask(t, sb, "gap")
	pause(t, sb)
	began := time.Now()
	checkpoint(t, sb, t.TempDir())
	checkpoint(t, sb, t.TempDir())
	paused := time.Since(began)
	resume(t, sb)
	var gap int64
	fmt.Sscan(ask(t, sb, "gap"), &gap)
	if time.Duration(gap) < paused || time.Duration(gap) > paused+2*time.Second {
		t.Errorf("the longest gap was %v, the pause at least %v", time.Duration(gap), paused)
	}
	fmt.Sscan(ask(t, sb, "gap"), &gap)
	if gap == 0 {
		t.Error("it does not go on")
	}
}

// TestOldConnectionsAreReset: a server inside learns in the copy that a client is
// gone; in the original the client stays.
func TestOldConnectionsAreReset(t *testing.T) {
	rt := open(t)
	source := create(t, rt, spec(t, "sb-source", "serve"))
	c := dial(t, source)
	defer c.Close()
	fmt.Fprintln(c, "hold\nmore")
	echo := dial(t, source)
	defer echo.Close()
	fmt.Fprintln(echo, "echo\n1")
	line := make([]byte, 2)
	if _, err := io.ReadFull(echo, line); err != nil {
		t.Fatal(err)
	}
	pause(t, source)
	copied := create(t, rt, from(spec(t, "sb-copy", "serve"), checkpoint(t, source, t.TempDir())))
	resume(t, copied)
	for deadline := time.Now().Add(20 * time.Second); ; {
		if got := ask(t, copied, "ends"); strings.Contains(got, "5 ") && strings.Contains(got, "reset") {
			break
		} else if time.Now().After(deadline) {
			t.Errorf("ends in the copy: %q", got)
			break
		}
	}
	resume(t, source)
	if got := ask(t, source, "ends"); got != "" {
		t.Errorf("ends in the original: %q", got)
	}
	fmt.Fprintln(echo, "2")
	if _, err := io.ReadFull(echo, line); err != nil || string(line) != "2\n" {
		t.Errorf("the original answers %q, %v", line, err)
	}
}

// TestCheckpointFailures: nothing stays behind, and the sandbox goes on.
func TestCheckpointFailures(t *testing.T) {
	rt := open(t)
	sb := create(t, rt, spec(t, "sb-full", "serve"))
	sum := ask(t, sb, "keep 50000000")
	small := t.TempDir()
	if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=8m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(small, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	pause(t, sb)
	for range 2 {
		if err := sb.Checkpoint(t.Context(), small); !errors.Is(err, runtime.ErrDiskFull) {
			t.Errorf("checkpoint to a full disk: %v", err)
		}
		empty(t, small)
	}
	if err := sb.Checkpoint(t.Context(), small+"/nowhere"); err == nil {
		t.Error("checkpoint to no folder")
	}
	taken := t.TempDir()
	if err := os.WriteFile(taken+"/pages.img", []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := sb.Checkpoint(t.Context(), taken); err == nil {
		t.Error("checkpoint over a file")
	}
	if left, err := os.ReadDir(taken); err != nil || len(left) != 1 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	cancelled := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := sb.Checkpoint(ctx, cancelled); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("checkpoint past its deadline: %v", err)
	}
	empty(t, cancelled)
	// The next one waits for what gVisor still does for the last.
	dir := checkpoint(t, sb, t.TempDir())
	resume(t, sb)
	if got := ask(t, sb, "kept"); got != sum {
		t.Error("memory has changed")
	}
	copied := create(t, rt, from(spec(t, "sb-copy", "serve"), dir))
	resume(t, copied)
	if got := ask(t, copied, "kept"); got != sum {
		t.Error("memory of the copy has changed")
	}
}

func empty(t *testing.T, dir string) {
	t.Helper()
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestCheckpointInMemory: a checkpoint in a folder in memory takes as much of it as the
// sandbox has, which its own limit has no room for.
func TestCheckpointInMemory(t *testing.T) {
	rt := open(t)
	s := spec(t, "sb-memory", "serve")
	limit := s.Resources.MemoryBytes
	sb := create(t, rt, s)
	sum := ask(t, sb, fmt.Sprint("keep ", limit/10*7))
	dir, err := os.MkdirTemp("/dev/shm", "sirocco-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	pause(t, sb)
	checkpoint(t, sb, dir)
	if err := sb.Resume(t.Context()); err == nil {
		t.Error("the limit holds again, with a checkpoint of that size in memory")
	}
	if got := ask(t, sb, "kept"); got != sum {
		t.Error("memory has changed")
	}
	copied := create(t, rt, from(spec(t, "sb-copy", "serve"), dir))
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	resume(t, sb)
	resume(t, copied)
	for _, sb := range []runtime.Sandbox{sb, copied} {
		if got := ask(t, sb, "kept"); got != sum {
			t.Errorf("%s: memory has changed", sb.ID())
		}
		c := dial(t, sb)
		fmt.Fprintln(c, "eat")
		if got := wait(t, sb); !got.OOM {
			t.Errorf("%s: exit %+v, want one at the memory limit", sb.ID(), got)
		}
		c.Close()
	}
}

// TestMisfits: a checkpoint is only restored where it fits, and a broken one is told
// from that.
func TestMisfits(t *testing.T) {
	rt := open(t)
	source := create(t, rt, spec(t, "sb-source", "serve"))
	ask(t, source, "bump")
	pause(t, source)
	dir := checkpoint(t, source, t.TempDir())
	_, bin := guest(t)
	other := filepath.Join(t.TempDir(), "other.erofs")
	gvisortest.Image(t, other, map[string]string{gvisortest.GuestPath: bin, "/one-more": bin})
	change := func(file string, f func(b []byte) []byte) string {
		bad := t.TempDir()
		if err := os.CopyFS(bad, os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(bad, file))
		if err == nil {
			err = os.WriteFile(filepath.Join(bad, file), f(b), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		return bad
	}
	for name, c := range map[string]struct {
		spec func(s *runtime.Spec)
		dir  string
		want error
	}{
		"another version": {nil, change("manifest.json", func(b []byte) []byte {
			return []byte(strings.Replace(string(b), gvisor.Version, "v0", 1))
		}), runtime.ErrIncompatible},
		"another image":   {func(s *runtime.Spec) { s.Rootfs.EROFS = other }, dir, runtime.ErrIncompatible},
		"another command": {func(s *runtime.Spec) { s.Args = append(s.Args, "more") }, dir, runtime.ErrIncompatible},
		"a flipped bit": {nil, change("checkpoint.img", func(b []byte) []byte {
			b[len(b)/2] ^= 1
			return b
		}), runtime.ErrImage},
	} {
		s := from(spec(t, "sb-copy", "serve"), c.dir)
		if c.spec != nil {
			c.spec(&s)
		}
		if _, err := rt.Create(t.Context(), s); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		if removed, err := rt.Sweep(t.Context()); err != nil || len(removed) > 0 {
			t.Errorf("%s: left behind %v, %v", name, removed, err)
		}
	}
}

// TestGVisorRefusesBrokenImages: an image whose sums are right but whose content is
// not. gVisor says so, or dies; it never hangs, and nothing of it stays.
func TestGVisorRefusesBrokenImages(t *testing.T) {
	rt := open(t)
	source := create(t, rt, spec(t, "sb-source", "serve"))
	ask(t, source, "bump")
	pause(t, source)
	dir := checkpoint(t, source, t.TempDir())
	for _, file := range []string{"checkpoint.img", "pages_meta.img"} {
		whole, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			name string
			b    []byte
		}{
			{"cut", whole[:len(whole)/2]}, {"cut at the end", whole[:len(whole)-20]}, {"zeros", make([]byte, len(whole))},
		} {
			bad := t.TempDir()
			if err := os.CopyFS(bad, os.DirFS(dir)); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(bad, file), c.b, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := gvisor.Describe(bad); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			_, err := rt.Create(ctx, from(spec(t, "sb-copy", "serve"), bad))
			cancel()
			if !errors.Is(err, runtime.ErrImage) {
				t.Errorf("%s %s: %v", file, c.name, err)
			}
			if removed, err := rt.Sweep(t.Context()); err != nil || len(removed) > 0 {
				t.Errorf("%s %s: left behind %v, %v", file, c.name, removed, err)
			}
		}
	}
}

// TestStreamsOutliveCheckpoints: connections from outside carry every byte, in both
// directions, over any number of checkpoints taken in the middle.
func TestStreamsOutliveCheckpoints(t *testing.T) {
	const size = 48 << 20
	rt := open(t)
	sb := create(t, rt, spec(t, "sb-flow", "serve"))
	want := sha256.New()
	chunk := make([]byte, 64<<10)
	for i := 0; i < size; i += len(chunk) {
		fill(chunk, i)
		want.Write(chunk)
	}
	down, up := dial(t, sb), dial(t, sb)
	defer down.Close()
	defer up.Close()
	var flows sync.WaitGroup
	var done atomic.Bool
	flows.Go(func() {
		fmt.Fprintf(down, "fill %d\n", size)
		got := sha256.New()
		if n, err := io.Copy(got, down); n != size || err != nil || !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
			t.Errorf("%d bytes came, %v; or others than were sent", n, err)
		}
	})
	flows.Go(func() {
		fmt.Fprintln(up, "drain")
		b := make([]byte, 64<<10)
		for i := 0; i < size; i += len(b) {
			fill(b, i)
			if _, err := up.Write(b); err != nil {
				t.Errorf("write: %v", err)
				return
			}
		}
		if err := up.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
			t.Error(err)
		}
		if got, err := io.ReadAll(up); err != nil || string(got) != fmt.Sprintf("%d %x\n", size, want.Sum(nil)) {
			t.Errorf("the guest counted %q, %v", got, err)
		}
	})
	go func() { flows.Wait(); done.Store(true) }()
	n := 0
	for ; n < 3 || !done.Load() && n < 50; n++ {
		pause(t, sb)
		dir := checkpoint(t, sb, t.TempDir())
		resume(t, sb)
		if n == 1 {
			// What was cut off in the middle is a copy that works.
			copied := create(t, rt, from(spec(t, "sb-copy", "serve"), dir))
			resume(t, copied)
			if got := ask(t, copied, "bump"); got != "1" {
				t.Errorf("the copy counts %s", got)
			}
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
	flows.Wait()
	t.Logf("%d checkpoints", n)
}
