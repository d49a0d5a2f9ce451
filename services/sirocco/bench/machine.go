package bench

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// Machine is where a measurement ran: of the program that measures, which is the
// platform's too unless the api is elsewhere.
type Machine struct {
	CPUs        int     `json:"cpus"`
	CPU         string  `json:"cpu,omitempty"`
	MemoryBytes int64   `json:"memory_bytes,omitempty"`
	Kernel      string  `json:"kernel,omitempty"`
	Load1       float64 `json:"load_1m"`
}

// ThisMachine describes this machine; what can't be read is missing.
func ThisMachine() Machine {
	m := Machine{CPUs: runtime.NumCPU(), MemoryBytes: meminfo("MemTotal")}
	if raw, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		m.Kernel = strings.TrimSpace(string(raw))
	}
	if raw, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(raw)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				m.CPU = strings.TrimSpace(value)
				break
			}
		}
	}
	if raw, err := os.ReadFile("/proc/loadavg"); err == nil {
		_, _ = fmt.Sscan(string(raw), &m.Load1)
	}
	return m
}

// String is the machine in a few words.
func (m Machine) String() string {
	return fmt.Sprintf("%d CPUs, %.0f GiB, Linux %s, load %.1f", m.CPUs, float64(m.MemoryBytes)/(1<<30), m.Kernel, m.Load1)
}

// processorTimes returns for how long the processors of this machine have worked since it
// was started, and have been there, all of them together.
func processorTimes() (worked, all time.Duration, err error) {
	raw, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0, fmt.Errorf("look at the processors: %w", err)
	}
	line, _, _ := strings.Cut(string(raw), "\n")
	for i, field := range strings.Fields(line) {
		if i == 0 || i > 8 { // what guests take is in user and nice already
			continue
		}
		ticks, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, 0, fmt.Errorf("look at the processors: %w", err)
		}
		took := time.Duration(ticks) * time.Second / ticksPerSecond
		all += took
		if i != 4 && i != 5 { // idle, and idle with a disk that is waited for
			worked += took
		}
	}
	return worked, all, nil
}
