package gvisor_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirocco-run/sirocco/pkg/runtime/gvisor/starter"
	"golang.org/x/sys/unix"
)

// starters returns the processes that start sandboxes for this one.
func starters(tb testing.TB) (pids []int) {
	tb.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		tb.Fatal(err)
	}
	for _, dir := range dirs {
		cmd, _ := os.ReadFile(dir + "/cmdline")
		stat, err := os.ReadFile(dir + "/stat")
		if err != nil || !bytes.HasPrefix(cmd, []byte(starter.Command)) {
			continue
		}
		if f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])); f[1] == strconv.Itoa(os.Getpid()) {
			pid, err := strconv.Atoi(filepath.Base(dir))
			if err != nil {
				tb.Fatal(err)
			}
			pids = append(pids, pid)
		}
	}
	return pids
}

// TestStarterKilled: the sandboxes go on and can be ended, and the next one is started
// by another.
func TestStarterKilled(t *testing.T) {
	rt := open(t)
	before, err := rt.Create(t.Context(), spec(t, "sb-before", "serve"))
	if err != nil {
		t.Fatal(err)
	}
	own := map[int]bool{}
	for _, pid := range starters(t) {
		own[pid] = true
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	if len(own) == 0 {
		t.Fatal("there is no starter")
	}
	dial(t, before).Close()
	deadline := time.Now().Add(10 * time.Second)
	for {
		// Until the end of the one before has been noticed, a start may fail.
		after, err := rt.Create(t.Context(), spec(t, "sb-after", "serve"))
		if err == nil {
			dial(t, after).Close()
			if err := after.Destroy(t.Context()); err != nil {
				t.Fatal(err)
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	if err := before.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
	if code := before.Exit().Code; code != 137 {
		t.Errorf("ended with %d", code)
	}
}

// TestStarterStays: starting sandboxes in other networks, many at once, leaves no thread
// of the starter there; and it sees none of the networks that are mounted here.
func TestStarterStays(t *testing.T) {
	rt := open(t)
	home, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 8 {
		s := spec(t, fmt.Sprintf("sb-stay-%d", i), "serve")
		s.NetNS = mountedNetwork(t, i)
		wg.Go(func() {
			sb, err := rt.Create(t.Context(), s)
			if err != nil {
				t.Error(err)
				return
			}
			t.Cleanup(func() {
				if err := sb.Destroy(context.Background()); err != nil {
					t.Error(err)
				}
			})
		})
	}
	wg.Wait()
	for _, pid := range starters(t) {
		tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/ns/net", pid))
		if err != nil || len(tasks) == 0 {
			t.Fatal("the starter has no threads", err)
		}
		for _, task := range tasks {
			if ns, err := os.Readlink(task); err == nil && ns != home {
				t.Errorf("%s is in %s, not in %s", task, ns, home)
			}
		}
		mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(mounts, []byte(" nsfs ")) {
			t.Errorf("it sees network namespaces:\n%s", mounts)
		}
	}
}

// mountedNetwork makes a network namespace and returns where it is mounted.
func mountedNetwork(t *testing.T, i int) string {
	t.Helper()
	path := filepath.Join(stateDir(t), strconv.Itoa(i))
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		// The thread is not used again: it ends with this goroutine.
		goruntime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), path, "", unix.MS_BIND, "")
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return path
}
