package cli

import (
	"fmt"

	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/spf13/pflag"
)

// templateFlags are what a sandbox is made from.
type templateFlags struct {
	image, network                     string
	cpu, cpuRequest, memory, memoryReq string
	disk                               string
	pids                               int32
}

func (f *templateFlags) add(fs *pflag.FlagSet) {
	fs.StringVar(&f.image, "image", "", "`image`: base, host, a registry reference or an imported name (default base)")
	fs.StringVar(&f.cpu, "cpu", "", "ceiling of CPU, in `cores`: 0.5, 2, 500m")
	fs.StringVar(&f.cpuRequest, "cpu-request", "", "guaranteed CPU, in `cores`")
	fs.StringVar(&f.memory, "memory", "", "ceiling of memory, a `size`: 256Mi, 1G")
	fs.StringVar(&f.memoryReq, "memory-request", "", "guaranteed memory, a `size`")
	fs.StringVar(&f.disk, "disk", "", "ceiling of what may be written to the root file system, a `size`")
	fs.Int32Var(&f.pids, "pids", 0, "ceiling of processes and threads")
	fs.StringVar(&f.network, "network", "", "`policy`: open (default), blocked, or allow=<CIDR>,…")
}

// template turns the flags into a template. What only the platform can judge is
// left to it.
func (f *templateFlags) template() (*siroccov1.Template, error) {
	r := &siroccov1.Resources{PidsLimit: f.pids}
	for _, c := range []struct {
		flag, text string
		to         *int32
	}{{"cpu", f.cpu, &r.CpuLimitMillis}, {"cpu-request", f.cpuRequest, &r.CpuRequestMillis}} {
		if c.text == "" {
			continue
		}
		n, err := parseCPU(c.text)
		if err != nil {
			return nil, fmt.Errorf("--%s %w", c.flag, err)
		}
		*c.to = n
	}
	for _, s := range []struct {
		flag, text string
		to         *int64
	}{{"memory", f.memory, &r.MemoryLimitBytes}, {"memory-request", f.memoryReq, &r.MemoryRequestBytes}, {"disk", f.disk, &r.DiskLimitBytes}} {
		if s.text == "" {
			continue
		}
		n, err := parseSize(s.text)
		if err != nil {
			return nil, fmt.Errorf("--%s %w", s.flag, err)
		}
		*s.to = n
	}
	network, err := parseNetwork(f.network)
	if err != nil {
		return nil, fmt.Errorf("--network %w", err)
	}
	return &siroccov1.Template{Image: f.image, Resources: r, Network: network}, nil
}
