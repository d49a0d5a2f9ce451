package gvisor

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestMemoryLimitIsLifted: in both versions, and never set below what is in use.
func TestMemoryLimitIsLifted(t *testing.T) {
	common := map[string]string{"pids/p/sb/pids.current": "1\n", "cpuacct/p/sb/cpuacct.usage": "1\n"}
	for name, c := range map[string]struct {
		cgroup cgroup
		files  map[string]string // after lifting
	}{
		"v2": {fixture(t, true, map[string]string{
			"p/sb/memory.max": "1000\n", "p/sb/memory.current": "900\n", "p/sb/memory.stat": "inactive_file 100\n",
			"p/sb/pids.current": "1\n", "p/sb/cpu.stat": "usage_usec 1\n", "p/sb/memory.events": "oom_kill 0\n",
		}), map[string]string{"p/sb/memory.max": "max"}},
		"v1": {fixture(t, false, with(common, map[string]string{
			"memory/p/sb/memory.limit_in_bytes": "1000\n", "memory/p/sb/memory.memsw.limit_in_bytes": "1000\n",
			"memory/p/sb/memory.usage_in_bytes": "900\n", "memory/p/sb/memory.stat": "total_inactive_file 100\n",
			"memory/p/sb/memory.oom_control": "oom_kill 0\n",
		})), map[string]string{"memory/p/sb/memory.limit_in_bytes": "-1", "memory/p/sb/memory.memsw.limit_in_bytes": "-1"}},
	} {
		if n, err := c.cgroup.memoryLimit(); n != 1000 || err != nil {
			t.Errorf("%s: limit %d, %v", name, n, err)
		}
		if err := c.cgroup.limitMemory(0); err != nil {
			t.Errorf("%s: lift: %v", name, err)
		}
		for file, want := range c.files {
			if got := content(t, c.cgroup, file); got != want {
				t.Errorf("%s: %s holds %q, want %q", name, file, got, want)
			}
		}
		if err := c.cgroup.limitMemory(799); err == nil {
			t.Errorf("%s: a limit below what is in use", name)
		}
		for file, want := range c.files {
			if got := content(t, c.cgroup, file); got != want {
				t.Errorf("%s: %s holds %q after that", name, file, got)
			}
		}
		if err := c.cgroup.limitMemory(800); err != nil {
			t.Errorf("%s: set again: %v", name, err)
		}
		for file := range c.files {
			if got := content(t, c.cgroup, file); got != "800" {
				t.Errorf("%s: %s holds %q", name, file, got)
			}
		}
	}
	for _, value := range []string{"max\n", "9223372036854771712\n"} {
		c := fixture(t, true, map[string]string{"p/sb/memory.max": value})
		if n, err := c.memoryLimit(); n != 0 || err != nil {
			t.Errorf("%q is a limit of %d, %v", value, n, err)
		}
	}
}

func with(a, b map[string]string) map[string]string {
	for name, v := range a {
		b[name] = v
	}
	return b
}

func content(t *testing.T, c cgroup, file string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(c.h.root, file))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}
