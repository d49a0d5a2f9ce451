package admission

import (
	"time"

	"github.com/spf13/pflag"
)

// Limits are what an operator allows and gives by default.
type Limits struct {
	Default Resources
	Max     Resources
	// DefaultLifetime and MaxLifetime bound max_lifetime.
	DefaultLifetime, MaxLifetime time.Duration
}

// Resources are amounts; see siroccov1.Resources for the units.
type Resources struct {
	CPURequestMillis, CPULimitMillis     int32
	MemoryRequestBytes, MemoryLimitBytes int64
	DiskLimitBytes                       int64
	PidsLimit                            int32
}

// DefaultLimits returns the limits of an operator who has set none.
func DefaultLimits() Limits {
	return Limits{
		Default:         Resources{CPURequestMillis: 50, CPULimitMillis: 1000, MemoryRequestBytes: 64 << 20, MemoryLimitBytes: 512 << 20, DiskLimitBytes: 1 << 30, PidsLimit: 512},
		Max:             Resources{CPURequestMillis: 64_000, CPULimitMillis: 64_000, MemoryRequestBytes: 256 << 30, MemoryLimitBytes: 256 << 30, DiskLimitBytes: 1 << 40, PidsLimit: 32_768},
		DefaultLifetime: 5 * time.Minute, MaxLifetime: 24 * time.Hour,
	}
}

// Flags adds the flags with which an operator sets limits, with the defaults of
// DefaultLimits. The api and the schedulers of a region must have the same: the
// one checks what is asked, the others what is published on the bus.
func (l *Limits) Flags(fs *pflag.FlagSet) {
	*l = DefaultLimits()
	fs.DurationVar(&l.DefaultLifetime, "default-lifetime", l.DefaultLifetime, "max_lifetime of a sandbox that asks for none")
	fs.DurationVar(&l.MaxLifetime, "max-lifetime", l.MaxLifetime, "longest max_lifetime that may be asked for")
	fs.Int64Var(&l.Max.MemoryLimitBytes, "max-memory", l.Max.MemoryLimitBytes, "largest memory limit of a sandbox, in `bytes`")
	fs.Int32Var(&l.Max.CPULimitMillis, "max-cpu", l.Max.CPULimitMillis, "largest CPU limit of a sandbox, in `thousandths` of a core")
	fs.Int64Var(&l.Max.DiskLimitBytes, "max-disk", l.Max.DiskLimitBytes, "largest disk limit of a sandbox, in `bytes`")
}
