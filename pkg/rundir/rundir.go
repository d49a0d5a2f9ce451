// Package rundir is where a node keeps what lives as long as its sandboxes and no
// longer: it outlives the agent, and not the machine.
package rundir

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Root holds a folder for each node of this machine. In a container it must be the
// machine's.
const Root = "/run/sirocco"

// Of returns the folder of a node.
func Of(node string) string { return filepath.Join(Root, node) }

// Ensure makes Root. Where /run is not in memory, Root is: a sandbox has a dozen small
// files that live for seconds, and on a disk each waits for what the bus syncs there,
// and the bus for it. A Root with something in it stays as it is; so does one that
// can't be mounted on, which is only slower.
func Ensure() error { return ensure(Root) }

func ensure(root string) error {
	if err := os.MkdirAll(root, 0o755); err != nil {
		return fmt.Errorf("make %s: %w", root, err)
	}
	dir, err := os.Open(root)
	if err != nil {
		return fmt.Errorf("open %s: %w", root, err)
	}
	defer dir.Close()
	// Agents that start at the same time mount one after the other; who waited finds
	// it done.
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", root, err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(root, &fs); err != nil {
		return fmt.Errorf("look at %s: %w", root, err)
	}
	entries, err := os.ReadDir(root)
	if err != nil {
		return fmt.Errorf("look at %s: %w", root, err)
	}
	if fs.Type == unix.TMPFS_MAGIC || len(entries) > 0 {
		return nil
	}
	err = unix.Mount("sirocco", root, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0755,size=25%")
	if err != nil && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EACCES) {
		return fmt.Errorf("mount memory on %s: %w", root, err)
	}
	return nil
}
