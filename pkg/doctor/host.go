package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Host is a machine as the checks see it.
type Host interface {
	// System is GOOS, Release the version of the kernel.
	System() string
	Release() string
	// Root says whether this process is root.
	Root() bool
	// ReadFile, Exists and Writable look at files; paths are absolute.
	ReadFile(path string) (string, error)
	Exists(path string) bool
	Writable(path string) bool
	// Free returns the free bytes and files on the disk of path.
	Free(path string) (bytes, inodes uint64, err error)
	// OpenFiles is the hard limit of open files of this process.
	OpenFiles() uint64
	// Version runs a program with --version and returns what it says.
	Version(program string) (string, error)
	// Listen tries an address and lets it go; owner is who has it, if known.
	Listen(address string) (owner string, err error)
	// Links tries to read the network devices, Chains the packet filter.
	Links() error
	Chains() ([]Chain, error)
}

// Chain is a base chain of the packet filter.
type Chain struct {
	Table, Name string
	// Forward is true for a chain that sees forwarded packets.
	Forward bool
	// Drop is true when the policy is to drop what no rule takes.
	Drop bool
}

// Here is the machine that this process runs on.
func Here() Host { return here{} }

type here struct{}

func (here) System() string { return runtime.GOOS }

func (here) Release() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

func (here) Root() bool { return os.Geteuid() == 0 }

func (here) ReadFile(path string) (string, error) {
	raw, err := os.ReadFile(path)
	return string(raw), err
}

func (here) Exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func (here) Writable(path string) bool { return unix.Access(path, unix.W_OK) == nil }

func (here) Free(path string) (bytes, inodes uint64, err error) {
	// The folder may be made later; its disk is that of the nearest parent.
	for path != "/" && path != "." {
		if _, err := os.Stat(path); err == nil {
			break
		}
		path = filepath.Dir(path)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return 0, 0, fmt.Errorf("statfs %s: %w", path, err)
	}
	// Also for root: the file system may be mounted read-only.
	if err := unix.Access(path, unix.W_OK); err != nil {
		return 0, 0, fmt.Errorf("write to %s: %w", path, err)
	}
	if fs.Files == 0 {
		fs.Ffree = 1 << 40 // a file system without a fixed number of files
	}
	return fs.Bavail * uint64(fs.Bsize), fs.Ffree, nil //nolint:gosec // block sizes are positive
}

func (here) OpenFiles() uint64 {
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
		return 0
	}
	return r.Max
}

func (here) Version(program string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, program, "--version").CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func (here) Listen(address string) (string, error) {
	l, err := net.Listen("tcp", address)
	if err == nil {
		return "", l.Close()
	}
	if tcp, rerr := net.ResolveTCPAddr("tcp", address); rerr == nil {
		return PortOwner("/proc", tcp.Port), err
	}
	return "", err
}

func (here) Links() error {
	_, err := netlink.LinkList()
	if errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil // devices came or went meanwhile: they can be read
	}
	return err
}

func (here) Chains() ([]Chain, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, err
	}
	all, err := conn.ListChains()
	if err != nil {
		return nil, err
	}
	var chains []Chain
	for _, c := range all {
		if c.Hooknum == nil || c.Table == nil {
			continue
		}
		chains = append(chains, Chain{
			Table: c.Table.Name, Name: c.Name,
			Forward: c.Type == nftables.ChainTypeFilter && *c.Hooknum == *nftables.ChainHookForward && c.Table.Family != nftables.TableFamilyBridge,
			Drop:    c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop,
		})
	}
	return chains, nil
}

// Machine returns the memory of this machine and the free bytes on the disk of
// dir, which need not exist yet.
func Machine(dir string) (memory, disk int64, err error) {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0, 0, fmt.Errorf("read the machine's memory: %w", err)
	}
	free, _, err := here{}.Free(dir)
	return int64(info.Totalram) * int64(info.Unit), int64(free), err //nolint:gosec // sizes of real machines fit
}
