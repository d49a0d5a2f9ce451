package gvisor_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirocco-run/sirocco/pkg/hostcheck"
	"github.com/sirocco-run/sirocco/pkg/runtime"
	"github.com/sirocco-run/sirocco/pkg/runtime/gvisor"
	"github.com/sirocco-run/sirocco/pkg/runtime/gvisor/gvisortest"
)

var images struct {
	once  sync.Once
	erofs string
	bin   string
}

// guest returns the EROFS image and the program of the test guest.
func guest(tb testing.TB) (image, bin string) {
	tb.Helper()
	images.once.Do(func() {
		dir, err := os.MkdirTemp("", "sirocco-guest-")
		if err != nil {
			tb.Fatal(err)
		}
		cleanups = append(cleanups, func() { os.RemoveAll(dir) })
		b, err := os.ReadFile(gvisortest.GuestBinary(tb))
		if err != nil {
			tb.Fatal(err)
		}
		images.bin = dir + "/guest"
		if err := os.WriteFile(images.bin, b, 0o755); err != nil {
			tb.Fatal(err)
		}
		images.erofs = dir + "/guest.erofs"
		gvisortest.Image(tb, images.erofs, map[string]string{gvisortest.GuestPath: images.bin})
	})
	if images.erofs == "" {
		tb.Fatal("no test guest: see the first failed test")
	}
	return images.erofs, images.bin
}

var cleanups []func()

func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case orphanCommand:
			orphan(os.Args[2:])
		case busyCommand:
			busy(os.Args[2:])
		}
	}
	code := m.Run()
	for _, f := range cleanups {
		f()
	}
	removeParent("")
	os.Exit(code)
}

// open returns a Runtime with a folder of its own, and a check that at the end of
// the test nothing of it is left on the machine.
func open(tb testing.TB) *gvisor.Runtime {
	tb.Helper()
	cfg := gvisor.Config{RunscPath: gvisortest.Runsc(tb), StateDir: stateDir(tb)}
	return openConfig(tb, cfg)
}

func stateDir(tb testing.TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp("", "sirocco-gv-")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func openConfig(tb testing.TB, cfg gvisor.Config) *gvisor.Runtime {
	tb.Helper()
	cfg.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	cfg.CgroupParent = "sirocco-test/" + strings.TrimPrefix(cfg.StateDir, "/tmp/")
	rt, err := gvisor.New(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	if err := rt.Check(); err != nil {
		tb.Fatal(err)
	}
	scope := hostcheck.Scope{CgroupParent: cfg.CgroupParent, Processes: []string{cfg.StateDir}, Mounts: []string{cfg.StateDir}, Folders: []string{cfg.StateDir}}
	before := hostcheck.Take(scope)
	tb.Cleanup(func() {
		removed, err := rt.Sweep(context.Background())
		if errors.Is(err, gvisor.ErrClosed) {
			// The test went on with another Runtime.
			return
		}
		if err != nil || len(removed) > 0 {
			tb.Errorf("left behind: %v %v", removed, err)
		}
		after := hostcheck.Take(scope)
		delete(before, "fd")
		delete(after, "fd")
		for _, l := range hostcheck.Leaks(before, after) {
			tb.Errorf("leak: %s", l)
		}
		if err := rt.Close(); err != nil {
			tb.Error(err)
		}
		removeParent(cfg.CgroupParent)
	})
	return rt
}

// removeParent takes the tests' own parent cgroups away.
func removeParent(parent string) {
	for _, tree := range []string{"", "memory", "cpu", "cpuacct", "pids"} {
		os.Remove("/sys/fs/cgroup/" + tree + "/" + parent)
		os.Remove("/sys/fs/cgroup/" + tree + "/sirocco-test")
	}
}

func spec(tb testing.TB, id string, args ...string) runtime.Spec {
	tb.Helper()
	image, _ := guest(tb)
	return runtime.Spec{
		ID: id, Rootfs: runtime.Rootfs{EROFS: image}, Hostname: "guest",
		Args: append([]string{gvisortest.GuestPath}, args...), Env: []string{"SECRET=x"},
		Resources: runtime.Resources{MemoryBytes: 256 << 20, CPUMillis: 2000, Pids: 200, DiskBytes: 64 << 20},
	}
}

func create(tb testing.TB, rt *gvisor.Runtime, s runtime.Spec) runtime.Sandbox {
	tb.Helper()
	sb, err := rt.Create(tb.Context(), s)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := sb.Destroy(context.Background()); err != nil {
			tb.Errorf("destroy: %v", err)
		}
	})
	return sb
}

// dial connects to the guest's server, which may still be starting.
func dial(tb testing.TB, sb runtime.Sandbox) net.Conn {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), 20*time.Second)
	defer cancel()
	for {
		c, err := sb.Dial(ctx, 8000)
		if err == nil {
			return c
		}
		if !errors.Is(err, runtime.ErrRefused) {
			tb.Fatalf("dial: %v", err)
		}
	}
}

// ask sends a line and returns the whole answer.
func ask(tb testing.TB, sb runtime.Sandbox, line string) string {
	tb.Helper()
	c := dial(tb, sb)
	defer c.Close()
	if _, err := fmt.Fprintln(c, line); err != nil {
		tb.Fatal(err)
	}
	b, err := io.ReadAll(c)
	if err != nil {
		tb.Fatalf("answer to %q: %v", line, err)
	}
	return strings.TrimSpace(string(b))
}

func wait(tb testing.TB, sb runtime.Sandbox) runtime.Exit {
	tb.Helper()
	select {
	case <-sb.Done():
		return sb.Exit()
	case <-time.After(60 * time.Second):
		tb.Fatal("sandbox did not end within a minute")
		return runtime.Exit{}
	}
}

func TestBootAndDial(t *testing.T) {
	rt := open(t)
	sb := create(t, rt, spec(t, "sb-boot", "serve"))
	got := ask(t, sb, "env")
	for _, want := range []string{"SECRET=x", "host=guest", "pid=1", "uid=0"} {
		if !strings.Contains(got, want) {
			t.Errorf("guest says %s, want %s in it", got, want)
		}
	}
	if _, err := sb.Dial(t.Context(), 9); !errors.Is(err, runtime.ErrRefused) {
		t.Errorf("dial a port that nothing listens on: %v", err)
	}
	if _, err := rt.Create(t.Context(), spec(t, "sb-boot", "serve")); !errors.Is(err, runtime.ErrExists) {
		t.Errorf("second create: %v", err)
	}
	st, err := sb.Stats(t.Context())
	if err != nil || st.MemoryBytes == 0 || st.CPU == 0 || st.Pids == 0 {
		t.Errorf("stats %+v, %v", st, err)
	}
	t.Logf("stats %+v", st)
	if got := ask(t, sb, "get /proc/meminfo"); !strings.Contains(got, "262144 kB") {
		t.Errorf("the guest does not see its memory limit:\n%s", got)
	}
	t.Log(ask(t, sb, "get /proc/mounts"))
	t.Log(ask(t, sb, "get /proc/self/status"))
	if err := sb.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := sb.Dial(t.Context(), 8000); !errors.Is(err, runtime.ErrNotFound) {
		t.Errorf("dial after destroy: %v", err)
	}
	if err := sb.Destroy(t.Context()); err != nil {
		t.Errorf("second destroy: %v", err)
	}
}

func TestExits(t *testing.T) {
	rt := open(t)
	for _, c := range []struct {
		args []string
		want runtime.Exit
	}{
		{[]string{"exit", "0"}, runtime.Exit{}},
		{[]string{"exit", "7"}, runtime.Exit{Code: 7}},
		{[]string{"exit", "137"}, runtime.Exit{Code: 137}},
		{[]string{"eat"}, runtime.Exit{Code: 137, Signal: "SIGKILL", OOM: true}},
	} {
		sb := create(t, rt, spec(t, "sb-exit", c.args...))
		start := time.Now()
		if got := wait(t, sb); got != c.want {
			t.Errorf("%v: exit %+v, want %+v", c.args, got, c.want)
		}
		st, err := sb.Stats(t.Context())
		t.Logf("%v: %v %+v %+v %v", c.args, time.Since(start), sb.Exit(), st, err)
		if err := sb.Destroy(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// TestSignals: the end by a signal is told from an exit with the code that shells make
// of it. gVisor only tells them apart to those who ask before the end, so process 1
// has to live for some milliseconds.
func TestSignals(t *testing.T) {
	rt := open(t)
	for line, want := range map[string]runtime.Exit{
		"signal 9": {Code: 137, Signal: "SIGKILL"}, "signal 15": {Code: 143, Signal: "SIGTERM"},
		"exit 137": {Code: 137}, "exit 143": {Code: 143},
	} {
		sb := create(t, rt, spec(t, "sb-signal", "serve"))
		c := dial(t, sb)
		fmt.Fprintln(c, line)
		if got := wait(t, sb); got != want {
			t.Errorf("%s: exit %+v, want %+v", line, got, want)
		}
		c.Close()
		if err := sb.Destroy(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestDiskLimit(t *testing.T) {
	rt := open(t)
	for _, path := range []string{"/big", "/tmp/big"} {
		t.Run(path, func(t *testing.T) {
			s := spec(t, "sb-disk", "serve")
			s.Resources.DiskBytes = 200 << 20
			s.Resources.MemoryBytes = 128 << 20
			sb := create(t, rt, s)
			got := ask(t, sb, "write "+path+" 1000000000")
			var n int64
			fmt.Sscan(got, &n)
			if n < 190<<20 || n > 200<<20 || !strings.Contains(got, "no space left") {
				t.Errorf("wrote %s, want ENOSPC just below 200 MiB", got)
			}
			st, err := sb.Stats(t.Context())
			t.Logf("%s: %s; %+v %v", path, got, st, err)
		})
	}
	s := spec(t, "sb-shm", "serve")
	sb := create(t, rt, s)
	if got := ask(t, sb, "write /dev/shm/big 1000000000"); !strings.Contains(got, "no space left") {
		t.Errorf("wrote %s to /dev/shm", got)
	}
}

func TestForkBomb(t *testing.T) {
	rt := open(t)
	s := spec(t, "sb-fork", "serve")
	s.Resources.Pids = 50
	sb := create(t, rt, s)
	got := ask(t, sb, "fork 500")
	var n int
	fmt.Sscan(got, &n)
	if n == 0 || n > 50 || !strings.Contains(got, "resource temporarily unavailable") {
		t.Errorf("started %s, want fewer than 50 and EAGAIN", got)
	}
	st, err := sb.Stats(t.Context())
	t.Logf("%s; %+v %v", got, st, err)
	select {
	case <-sb.Done():
		t.Errorf("the fork bomb ended the sandbox: %+v", sb.Exit())
	default:
	}
}

func TestFolderRootfs(t *testing.T) {
	rt := open(t)
	_, bin := guest(t)
	root := t.TempDir()
	for _, d := range []string{"bin", "tmp", "etc"} {
		if err := os.Mkdir(root+"/"+d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(root+"/etc/x", []byte("kept"), 0o644); err != nil {
		t.Fatal(err)
	}
	s := spec(t, "sb-dir")
	s.Rootfs = runtime.Rootfs{Dir: root, Binds: []runtime.Bind{{Source: bin[:strings.LastIndex(bin, "/")], Target: "/bin"}}}
	s.Args = []string{"/bin/guest", "serve"}
	sb := create(t, rt, s)
	if got := ask(t, sb, "write /etc/x 1000"); !strings.HasPrefix(got, "1000 ") {
		t.Errorf("write to the overlay: %s", got)
	}
	if got := ask(t, sb, "write /bin/x 1000"); !strings.Contains(got, "read-only") {
		t.Errorf("write to a bind: %s", got)
	}
	if got := ask(t, sb, "write /big 1000000000"); !strings.Contains(got, "no space left") {
		t.Errorf("disk limit: %s", got)
	}
	if b, _ := os.ReadFile(root + "/etc/x"); string(b) != "kept" {
		t.Errorf("the folder was written to: %q", b)
	}
}

func TestBadRootfs(t *testing.T) {
	rt := open(t)
	junk := t.TempDir() + "/junk"
	if err := os.WriteFile(junk, bytes.Repeat([]byte("junk"), 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	broken := t.TempDir() + "/broken"
	image, _ := guest(t)
	b, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(broken, b[:2048], 0o600); err != nil {
		t.Fatal(err)
	}
	for name, r := range map[string]runtime.Rootfs{
		"missing": {EROFS: "/nonexistent"}, "junk": {EROFS: junk}, "broken": {EROFS: broken}, "none": {},
		"no folder": {Dir: "/nonexistent"}, "relative": {EROFS: "x"},
	} {
		s := spec(t, "sb-bad", "serve")
		s.Rootfs = r
		if _, err := rt.Create(t.Context(), s); !errors.Is(err, runtime.ErrRootfs) {
			t.Errorf("%s: %v", name, err)
		}
	}
	s := spec(t, "sb-bad", "serve")
	s.Args = []string{"/nonexistent"}
	if _, err := rt.Create(t.Context(), s); !errors.Is(err, runtime.ErrRootfs) {
		t.Errorf("no such program: %v", err)
	}
}

func TestCancelledCreate(t *testing.T) {
	rt := open(t)
	for _, after := range []time.Duration{time.Millisecond, 5 * time.Millisecond, 20 * time.Millisecond, 40 * time.Millisecond} {
		ctx, cancel := context.WithTimeout(t.Context(), after)
		sb, err := rt.Create(ctx, spec(t, "sb-cancel", "serve"))
		cancel()
		if err == nil {
			if err := sb.Destroy(t.Context()); err != nil {
				t.Fatal(err)
			}
		} else if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("after %v: %v", after, err)
		}
		if removed, err := rt.Sweep(t.Context()); err != nil || len(removed) > 0 {
			t.Errorf("after %v: left behind %v, %v", after, removed, err)
		}
	}
}

func TestStreams(t *testing.T) {
	rt := open(t)
	sb := create(t, rt, spec(t, "sb-stream", "serve"))
	const size = 64 << 20
	// A reader that is much slower than the guest.
	c := dial(t, sb)
	fmt.Fprintf(c, "fill %d\n", size)
	h, n := sha256.New(), 0
	start := time.Now()
	r := bufio.NewReaderSize(c, 1000)
	buf := make([]byte, 777)
	for {
		k, err := r.Read(buf)
		h.Write(buf[:k])
		n += k
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	c.Close()
	t.Logf("%d bytes in %v", n, time.Since(start))
	chunk := make([]byte, 64<<10)
	want := sha256.New()
	for i := 0; i < size; i += len(chunk) {
		fill(chunk, i)
		want.Write(chunk)
	}
	if n != size || !bytes.Equal(h.Sum(nil), want.Sum(nil)) {
		t.Errorf("%d bytes came, want %d; or others than were sent", n, size)
	}
	// A guest that is slower than we are, and a half close from us: it answers
	// after our end.
	c = dial(t, sb)
	fmt.Fprintln(c, "drain")
	start = time.Now()
	for i := 0; i < size; i += len(chunk) {
		fill(chunk, i)
		if _, err := c.Write(chunk); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	t.Logf("sent in %v", time.Since(start))
	if err != nil || string(got) != fmt.Sprintf("%d %x\n", size, want.Sum(nil)) {
		t.Errorf("the guest counted %q, %v", got, err)
	}
	c.Close()
	// A half close from the guest: what we send afterwards arrives.
	c = dial(t, sb)
	fmt.Fprintln(c, "close")
	if b, err := io.ReadAll(c); len(b) != 0 || err != nil {
		t.Errorf("read %q, %v", b, err)
	}
	for range 16 {
		if _, err := c.Write(chunk); err != nil {
			t.Fatal(err)
		}
	}
	c.Close()
	for deadline := time.Now().Add(10 * time.Second); ; {
		if got := ask(t, sb, "get /count"); got == fmt.Sprint(16*len(chunk)) {
			break
		} else if time.Now().After(deadline) {
			t.Errorf("the guest counted %s after its end, want %d", got, 16*len(chunk))
			break
		}
	}
}

// fill writes the guest's pattern from a position on.
func fill(b []byte, pos int) {
	for i := range b {
		b[i] = byte((pos + i) * 31 >> 3)
	}
}

// TestManyConnections: every one of many short connections gets its answer and its
// end.
func TestManyConnections(t *testing.T) {
	rt := open(t)
	sb := create(t, rt, spec(t, "sb-conns", "serve"))
	ask(t, sb, "env")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 250 {
				if got := ask(t, sb, "env"); !strings.Contains(got, "host=guest") {
					t.Errorf("answer %q", got)
					return
				}
			}
		})
	}
	wg.Wait()
}

// TestDebug: the output of process 1 is kept in the sandbox's folder, and goes.
func TestDebug(t *testing.T) {
	cfg := gvisor.Config{RunscPath: gvisortest.Runsc(t), StateDir: stateDir(t), Debug: true}
	rt := openConfig(t, cfg)
	sb := create(t, rt, spec(t, "sb-debug", "say", "hello"))
	wait(t, sb)
	if b, err := os.ReadFile(cfg.StateDir + "/sb-debug/stdio.log"); err != nil || string(b) != "hello\n" {
		t.Errorf("output %q, %v", b, err)
	}
	if logs, err := os.ReadDir(cfg.StateDir + "/sb-debug/log"); err != nil || len(logs) == 0 {
		t.Errorf("gVisor's logs %v, %v", logs, err)
	}
}
