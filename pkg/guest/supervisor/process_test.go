package supervisor

import (
	"context"
	"fmt"
	"net"
	"os"
	osexec "os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sirocco-run/sirocco/pkg/guest"
)

const stageEnv = "GUEST_TEST_ROOT"

// TestMain is also process 1 of TestAsProcessOne before it becomes the
// supervisor: it sets up a root in its own mount namespace.
func TestMain(m *testing.M) {
	if root := os.Getenv(stageEnv); root != "" {
		fmt.Fprintln(os.Stderr, "stage:", becomeInit(root))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func becomeInit(root string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	for _, dir := range []string{"/usr", "/bin", "/lib", "/lib64", "/dev"} {
		target := root + dir
		if err := os.MkdirAll(target, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(dir, target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("%s: %w", dir, err)
		}
	}
	for _, dir := range []string{"/proc", "/tmp", "/etc", "/root"} {
		if err := os.MkdirAll(root+dir, 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount("proc", root+"/proc", "proc", 0, ""); err != nil {
		return err
	}
	if err := unix.Chroot(root); err != nil {
		return err
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	return syscall.Exec("/.sirocco/init", []string{"/.sirocco/init"}, []string{guest.SecretEnv + "=" + string(testSecret), "PATH=/usr/bin:/bin"})
}

// dialIn connects to the supervisor in another network namespace.
func dialIn(pid int) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		type result struct {
			conn net.Conn
			err  error
		}
		done := make(chan result, 1)
		go func() {
			// The thread goes back to its namespace: ending it would end the child
			// that it may have started.
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				done <- result{err: err}
				return
			}
			defer unix.Close(home)
			done <- func() (r result) {
				fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/net", pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
				if err != nil {
					return result{err: err}
				}
				defer unix.Close(fd)
				if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
					return result{err: err}
				}
				defer func() { _ = unix.Setns(home, unix.CLONE_NEWNET) }()
				sock, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
				if err != nil {
					return result{err: err}
				}
				f := os.NewFile(uintptr(sock), "guest")
				defer f.Close()
				up, err := unix.NewIfreq("lo")
				if err != nil {
					return result{err: err}
				}
				up.SetUint16(unix.IFF_UP)
				if err := unix.IoctlIfreq(sock, unix.SIOCSIFFLAGS, up); err != nil {
					return result{err: err}
				}
				if err := unix.Connect(sock, &unix.SockaddrInet4{Port: guest.Port, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
					return result{err: err}
				}
				r.conn, r.err = net.FileConn(f)
				return r
			}()
		}()
		select {
		case r := <-done:
			return r.conn, r.err
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// startProcessOne builds the supervisor and runs it as process 1 of new
// namespaces with the programs of this machine.
func startProcessOne(t testing.TB) (*world, int) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("this test needs root: it makes namespaces")
	}
	root := t.TempDir()
	if err := os.MkdirAll(root+"/.sirocco", 0o755); err != nil {
		t.Fatal(err)
	}
	build := osexec.Command("go", "build", "-ldflags", "-s -w", "-o", root+"/.sirocco/init", "github.com/sirocco-run/sirocco/guest/init")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	self, err := filepath.Abs(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	cmd := osexec.Command(self)
	cmd.Env = []string{stageEnv + "=" + root}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC,
		Pdeathsig:  syscall.SIGKILL,
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	w := &world{t: t, ctx: ctx}
	t.Cleanup(func() {
		cancel()
		if w.Client != nil {
			_ = w.Close()
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	defer func() {
		if w.Client == nil {
			t.Logf("last error: %v", err)
		}
	}()
	until(t, "the supervisor answers", func() bool {
		w.Client, err = guest.Dial(ctx, dialIn(cmd.Process.Pid), testSecret)
		return err == nil
	})
	return w, cmd.Process.Pid
}

func TestAsProcessOne(t *testing.T) {
	w, pid := startProcessOne(t)
	if i, err := w.Ping(w.ctx); err != nil || i.PID != 1 {
		t.Fatalf("%+v %v", i, err)
	}
	if err := w.Configure(w.ctx, guest.Setup{Hostname: "sb-one", Env: []string{"X=1"}}); err != nil {
		t.Fatal(err)
	}
	if got := w.run("name", "uname -n; cat /etc/hostname"); got != "sb-one\nsb-one\n" {
		t.Errorf("%q", got)
	}
	// The secret is not to be had.
	if got := w.run("env", "env"); strings.Contains(got, "SECRET") || !strings.Contains(got, "X=1\n") {
		t.Errorf("%q", got)
	}
	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil || strings.Contains(string(environ), string(testSecret)) || !strings.Contains(string(environ), "PATH=") {
		t.Errorf("environment of process 1: %q %v", environ, err)
	}
	w.start(guest.StartRequest{ID: "peek", Command: []string{"cat", "/.sirocco/run/archive"}, User: "1000"})
	if e := w.end("peek"); e.Code == 0 {
		t.Error("a user can read what is kept of others")
	}
	// Orphans are reaped, by the hundred and while others start.
	w.run("orphans", "for i in $(seq 300); do (sh -c 'exit 3' & ) ; done")
	for i := range 100 {
		w.sh(fmt.Sprint("x", i), fmt.Sprint("exit ", i))
	}
	for i := range 100 {
		if e := w.end(fmt.Sprint("x", i)); int(e.Code) != i {
			t.Errorf("x%d: %+v", i, e)
		}
	}
	n := 0
	until(t, "no zombie is left", func() bool {
		n++
		return strings.TrimSpace(w.run(fmt.Sprint("z", n), `cat /proc/[0-9]*/stat 2>/dev/null | grep -c ') Z ' || true`)) == "0"
	})
	// A child that made a session of its own is ended by a shutdown.
	w.run("escape", "setsid sleep 1000 & echo")
	w.sh(guest.MainExec, "sleep 1000")
	if err := w.Shutdown(w.ctx, 50*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if e := w.end(guest.MainExec); e.Signal != "SIGTERM" {
		t.Errorf("%+v", e)
	}
	tasks, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if len(tasks) > 0 {
		t.Errorf("processes %q are left", tasks)
	}
}
