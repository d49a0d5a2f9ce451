package launch

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// join moves this process into the cgroups whose cgroup.procs files are named.
//
// The kernel moves a process under a lock that it takes only after every processor
// has passed a quiescent state, which takes 8 to 20 ms of doing nothing. A thread
// that moves itself needs no such lock, which version 1 allows (the file tasks): so
// all threads move themselves, and the threads that come later are where their
// makers are. Version 2 has no such file, nor any thread that is not where its process
// is.
//
// A thread outside would be a way around the limits, so that the quick way is checked.
func join(procs []string) error {
	if quickJoin(procs) == nil {
		return nil
	}
	for _, f := range procs {
		if err := os.WriteFile(f, []byte("0"), 0); err != nil {
			return fmt.Errorf("join cgroup: %w", err)
		}
	}
	return nil
}

// quickJoin moves every thread by itself. After an error some may have moved and some
// not.
func quickJoin(procs []string) error {
	for _, f := range procs {
		if err := joinThreads(filepath.Join(filepath.Dir(f), "tasks")); err != nil {
			return err
		}
	}
	return together()
}

// joinThreads makes every thread write to a tasks file.
func joinThreads(tasks string) error {
	fd, err := syscall.Open(tasks, syscall.O_WRONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	// The Go runtime calls on all threads, and panics where results differ; what the
	// kernel may refuse, it refuses to the first.
	if _, err := syscall.Write(fd, []byte("0")); err != nil {
		return err
	}
	return writeAllThreads(fd)
}

// together returns an error unless all threads are in the same cgroups as this one.
func together() error {
	const dir = "/proc/self/task"
	want, err := os.ReadFile("/proc/thread-self/cgroup")
	if err != nil {
		return err
	}
	threads, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, t := range threads {
		got, err := os.ReadFile(filepath.Join(dir, t.Name(), "cgroup"))
		if err != nil {
			return err
		}
		if !bytes.Equal(got, want) {
			return errors.New("a thread is in another cgroup")
		}
	}
	return nil
}
