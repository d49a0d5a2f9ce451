package network

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

const threadNS = "/proc/thread-self/ns/net"

// makeNetNS makes a network namespace, runs fill inside it with a descriptor of
// the namespace it came from, and mounts it at path, which must not exist. On an
// error nothing stays behind.
//
// The thread is given back only once it is in its own namespace again; if it
// can't return there, it ends with its goroutine. The runtime starts no thread
// from a locked one, so no other goroutine ever sees the namespace.
func makeNetNS(path string, fill func(home int) error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := unix.Open(threadNS, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			runtime.UnlockOSThread()
			result <- fmt.Errorf("open own namespace: %w", err)
			return
		}
		defer func() { _ = unix.Close(home) }()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			result <- fmt.Errorf("make network namespace: %w", err)
			return
		}
		err = fill(home)
		if err == nil {
			err = mountNetNS(path)
		}
		if back := unix.Setns(home, unix.CLONE_NEWNET); back != nil {
			result <- errors.Join(err, fmt.Errorf("leave network namespace: %w", back))
			return
		}
		runtime.UnlockOSThread()
		result <- err
	}()
	return <-result
}

// mountNetNS keeps the calling thread's namespace alive at path.
func mountNetNS(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o600)
	if err != nil {
		return err
	}
	_ = f.Close()
	if err := unix.Mount(threadNS, path, "", unix.MS_BIND, ""); err != nil {
		return errors.Join(fmt.Errorf("mount network namespace at %s: %w", path, err), os.Remove(path))
	}
	return nil
}

// removeNetNS is the inverse of mountNetNS. What is gone already is no error.
func removeNetNS(path string) error {
	// A file that is no mount point answers EINVAL.
	if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil &&
		!errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	if err := unix.Unlink(path); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	return nil
}

// isNetNS reports whether a namespace is mounted at path.
func isNetNS(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}
