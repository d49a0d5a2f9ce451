package platform

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Disk is a file system of its own on a block device of its own (a loop device), so
// that it can be slow or full without anybody else's being so.
type Disk struct {
	// Dir is where it is mounted.
	Dir string

	image  string
	device string // major:minor
}

// newDisk makes an empty ext4 of so many bytes below a folder.
func newDisk(folder, name string, bytes int64) (*Disk, error) {
	d := &Disk{Dir: filepath.Join(folder, fmt.Sprintf("disk-%d-%s", os.Getpid(), name))}
	d.image = d.Dir + ".img"
	if err := os.Mkdir(d.Dir, 0o700); err != nil {
		return nil, err
	}
	if err := os.WriteFile(d.image, nil, 0o600); err != nil {
		return nil, err
	}
	if err := os.Truncate(d.image, bytes); err != nil {
		return nil, err
	}
	for _, args := range [][]string{
		// Nothing is kept for root, who all of this runs as: full is full.
		{"mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=0,nodiscard", d.image},
		// The device goes with the mount.
		{"mount", "-o", "loop", d.image, d.Dir},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("%s (a disk for tests): %w: %s", strings.Join(args, " "), err, out)
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(d.Dir, &st); err != nil {
		return nil, errors.Join(err, d.close())
	}
	d.device = fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))
	return d, nil
}

// Slow lets the device take no more than so many writes a second; 0 is as many as
// it can. p is the process that uses it: version 1 of cgroups slows the device for
// all of the machine, version 2 only processes in a cgroup that is not the root.
func (d *Disk) Slow(p *Process, writes int) error {
	const v1 = "/sys/fs/cgroup/blkio/blkio.throttle.write_iops_device"
	if _, err := os.Stat(v1); err == nil {
		if err := os.WriteFile(v1, fmt.Appendf(nil, "%s %d", d.device, writes), 0o600); err != nil {
			return fmt.Errorf("slow the disk: %w", err)
		}
		return nil
	}
	parent := filepath.Dir(p.group.dir)
	for _, dir := range []string{filepath.Dir(parent), parent} {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+io"), 0o600); err != nil {
			return fmt.Errorf("slow the disk: no throttling of block devices, neither %s nor io.max: %w", v1, err)
		}
	}
	limit := "max"
	if writes > 0 {
		limit = strconv.Itoa(writes)
	}
	if err := os.WriteFile(filepath.Join(p.group.dir, "io.max"), fmt.Appendf(nil, "%s wiops=%s", d.device, limit), 0o600); err != nil {
		return fmt.Errorf("slow the disk: %w", err)
	}
	return nil
}

// Sync writes a little and waits until it is on the device.
func (d *Disk) Sync() error {
	f, err := os.OpenFile(filepath.Join(d.Dir, "synced"), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write([]byte("x"))
	return errors.Join(err, f.Sync(), f.Close())
}

// Fill leaves no more than so many bytes free, until Empty. Again, it takes what has
// become free meanwhile.
func (d *Disk) Fill(leave int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(d.Dir, &st); err != nil {
		return err
	}
	f, err := os.OpenFile(d.filler(), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	for free := int64(st.Bavail)*st.Bsize - leave; free > 0; free /= 2 { //nolint:gosec // disk sizes fit
		have, err := f.Seek(0, 2)
		if err != nil {
			return err
		}
		// What the file system needs to note it may be more than is left: less, then.
		if err := unix.Fallocate(int(f.Fd()), 0, have, free); err == nil {
			return nil
		} else if !errors.Is(err, unix.ENOSPC) {
			return fmt.Errorf("fill %s: %w", d.Dir, err)
		}
	}
	return nil
}

// Empty takes back what Fill wrote.
func (d *Disk) Empty() error { return os.Remove(d.filler()) }

func (d *Disk) filler() string { return filepath.Join(d.Dir, "filler") }

// close unmounts it, which frees the device.
func (d *Disk) close() error {
	if err := unix.Unmount(d.Dir, 0); err != nil {
		return errors.Join(fmt.Errorf("unmount %s: %w", d.Dir, err), unix.Unmount(d.Dir, unix.MNT_DETACH))
	}
	return errors.Join(os.Remove(d.Dir), os.Remove(d.image))
}

// sweepDisks unmounts those of tests that are gone.
func sweepDisks() error {
	points, err := mountsBelow("/tmp/sirocco-")
	if err != nil {
		return err
	}
	for _, point := range points {
		if name := filepath.Base(point); strings.HasPrefix(name, "disk-") && orphaned(name) {
			if err := unix.Unmount(point, unix.MNT_DETACH); err != nil {
				return fmt.Errorf("unmount what a killed test left: %w", err)
			}
			_ = os.RemoveAll(filepath.Dir(point))
		}
	}
	return nil
}
