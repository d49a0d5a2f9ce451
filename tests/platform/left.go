package platform

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/sirocco-run/sirocco/pkg/invariants"
	"github.com/sirocco-run/sirocco/pkg/network"
	"github.com/sirocco-run/sirocco/pkg/rundir"
)

// Left says what of a state folder's sandboxes is still on the machine: processes
// and mounts that name the folder. "" if nothing is.
func Left(dir string) string {
	var left []string
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil || e.Name() == strconv.Itoa(os.Getpid()) {
			continue
		}
		raw, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if line := strings.ReplaceAll(string(raw), "\x00", " "); err == nil && strings.Contains(line, dir+"/") {
			left = append(left, "process "+e.Name()+" "+line)
		}
	}
	if f, err := os.Open("/proc/self/mountinfo"); err == nil {
		defer func() { _ = f.Close() }()
		for sc := bufio.NewScanner(f); sc.Scan(); {
			if strings.Contains(sc.Text(), dir+"/") {
				left = append(left, "mount "+sc.Text())
			}
		}
	}
	return strings.Join(left, "; ")
}

// wreck removes from this machine what a node has left whose processes, sandboxes too,
// were killed: network slots with their packet filters, cgroups, folders.
func wreck(node string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	slots, err := network.New(network.Config{Node: node, PoolSize: -1})
	if err != nil {
		return fmt.Errorf("clear up node %s: %w", node, err)
	}
	_, err = slots.Sweep(ctx, nil)
	errs := []error{err, slots.Close()}
	own := invariants.Node{Name: node, RunDir: rundir.Of(node)}
	parent := invariants.Scope(own).CgroupParent
	for _, pattern := range []string{"*/" + parent + "/*", parent + "/*", "*/" + parent, parent} {
		dirs, err := filepath.Glob(filepath.Join("/sys/fs/cgroup", pattern))
		errs = append(errs, err)
		for _, dir := range dirs {
			if info, err := os.Stat(dir); err != nil || !info.IsDir() {
				continue
			}
			if err := os.Remove(dir); !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
			}
		}
	}
	errs = append(errs, os.RemoveAll(own.RunDir))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("clear up node %s: %w", node, err)
	}
	return nil
}
