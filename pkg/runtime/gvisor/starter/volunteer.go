package starter

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
)

// maxOOMScoreAdj makes a process the first that the kernel kills at a memory limit,
// however little it uses (proc_pid_oom_score_adj(5)).
const maxOOMScoreAdj = "1000"

// Volunteer makes gVisor's process the one that the kernel kills when memory runs out
// in its cgroup, or on the machine.
//
// By itself the kernel kills the largest, which is often one of those that hold the
// memory of a single process of the guest: the others would go on without it, and
// to whoever waits for it the end would look like a kill from inside. As gVisor's
// process is process 1 of the PID namespace of all of them, the whole sandbox ends
// with it, at once; this also needs nobody to watch for it, so that it holds while no
// agent runs. Processes that exist already keep their score.
func Volunteer(pid int) error {
	name := filepath.Join("/proc", strconv.Itoa(pid), "oom_score_adj")
	if err := os.WriteFile(name, []byte(maxOOMScoreAdj), 0); err != nil {
		return fmt.Errorf("make process %d the first to go at the memory limit: %w", pid, err)
	}
	return nil
}
