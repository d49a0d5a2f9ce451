package agent

import (
	"os"
	"strconv"

	"github.com/sirocco-run/sirocco/pkg/doctor"
)

// roomOfProcesses returns for how many sandboxes the kernel allows processes and threads: a
// sandbox that can't start one ends. Before, it is told to allow as many as it can, as
// systemd does; in a container that may not say so, it stays at what it is. Errors: the
// kernel does not say.
func roomOfProcesses() (int, error) {
	if pids, err := doctor.Kernel(doctor.Here(), doctor.PIDMax); err == nil && pids < doctor.MostPIDs {
		_ = os.WriteFile(doctor.PIDMax, strconv.AppendInt(nil, doctor.MostPIDs, 10), 0)
	}
	allowed, err := doctor.Processes(doctor.Here())
	return allowed / doctor.ProcessesEach, err
}
