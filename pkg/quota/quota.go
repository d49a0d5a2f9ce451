// Package quota decides whether a tenant may have one more sandbox: pure
// functions of what it may have, what it has, and a time.
package quota

import (
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/sirocco-run/sirocco/pkg/fault"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/spf13/pflag"
	"google.golang.org/protobuf/proto"
)

// The limits, as a Quota fault names them in its field.
const (
	Live       = "live"
	CreateRate = "create_rate"
	Memory     = "memory_bytes"
)

// endRetry is when a tenant whose sandboxes are too many may find that one has
// ended.
const endRetry = 5 * time.Second

// burstSeconds is how many seconds of the rate may come at once when nothing else
// is said.
const burstSeconds = 10

// Limits bound one tenant. A field that is zero means: no limit.
type Limits struct {
	// Live is how many sandboxes may be there that have not ended.
	Live int
	// Rate is how many creates there may be a second, in the long run.
	Rate float64
	// Burst is how many creates may come at once, after a time without any; zero
	// means ten seconds of Rate. It has no meaning without Rate.
	Burst int
	// MemoryBytes is how much sandboxes that have not ended may request together.
	MemoryBytes int64
}

// Flags adds the flags with which an operator sets the limits of a tenant that has
// none of its own.
func (l *Limits) Flags(fs *pflag.FlagSet) {
	fs.IntVar(&l.Live, "max-live", 0, "how many sandboxes a tenant may have at once; 0 for any `number`")
	fs.Float64Var(&l.Rate, "create-rate", 50, "how many creates of a tenant are taken a second, in the long run; 0 for any `number`")
	fs.IntVar(&l.Burst, "create-burst", 0, "how many creates of a tenant are taken at once; 0 for ten seconds of --create-rate")
	fs.Int64Var(&l.MemoryBytes, "max-live-memory", 0, "how much memory a tenant's sandboxes may request together, in `bytes`; 0 for any")
}

// Check returns an InvalidArgument fault that names the first field that can't
// be.
func (l Limits) Check() error {
	switch {
	case l.Live < 0 || l.Live > math.MaxInt32:
		return fault.Invalid("live", "%d is out of range: 0 (no limit) to %d", l.Live, math.MaxInt32)
	case math.IsNaN(l.Rate) || l.Rate < 0 || l.Rate > 1e6 || l.Rate > 0 && l.Rate < 1e-6:
		return fault.Invalid("create_rate", "%v is out of range: 0 (no limit), or 0.000001 to 1,000,000 a second", l.Rate)
	case l.Burst < 0 || l.Burst > 1e6:
		return fault.Invalid("create_burst", "%d is out of range: 0 (ten seconds of create_rate) to 1,000,000", l.Burst)
	case l.MemoryBytes < 0:
		return fault.Invalid("memory_bytes", "%d is below 0 (no limit)", l.MemoryBytes)
	}
	return nil
}

// With returns the limits of a tenant with limits of its own, which may be nil:
// what it leaves unset stays.
func (l Limits) With(own *siroccov1.QuotaLimits) Limits {
	if own == nil {
		return l
	}
	if own.Live != nil {
		l.Live = int(own.GetLive())
	}
	if own.CreateRate != nil {
		l.Rate, l.Burst = own.GetCreateRate(), 0 // a burst that was meant for another rate
	}
	if own.CreateBurst != nil {
		l.Burst = int(own.GetCreateBurst())
	}
	if own.MemoryBytes != nil {
		l.MemoryBytes = own.GetMemoryBytes()
	}
	return l
}

// Message returns the limits as the contract has them, with the burst that
// follows from the rate.
func (l Limits) Message() *siroccov1.QuotaLimits {
	m := &siroccov1.QuotaLimits{
		Live: proto.Int32(int32(l.Live)), CreateRate: proto.Float64(l.Rate), //nolint:gosec // Check bounds it
		CreateBurst: proto.Int32(0), MemoryBytes: proto.Int64(l.MemoryBytes),
	}
	if l.Rate > 0 {
		m.CreateBurst = proto.Int32(int32(l.burst()))
	}
	return m
}

// burst is how many creates may come at once: one at least.
func (l Limits) burst() float64 {
	if l.Burst > 0 {
		return float64(l.Burst)
	}
	return math.Max(1, math.Floor(l.Rate*burstSeconds))
}

// Usage is what a tenant has: sandboxes that have not ended, and the memory that
// they request.
type Usage struct {
	Live        int
	MemoryBytes int64
}

// Add returns both together.
func (u Usage) Add(v Usage) Usage {
	return Usage{Live: u.Live + v.Live, MemoryBytes: u.MemoryBytes + v.MemoryBytes}
}

// Sub returns what is left of u without v.
func (u Usage) Sub(v Usage) Usage {
	return Usage{Live: u.Live - v.Live, MemoryBytes: u.MemoryBytes - v.MemoryBytes}
}

// Admit says whether a tenant that has some may have more, and takes what the
// create costs from the bucket if so. Otherwise nothing is taken, and the Quota
// fault names the limit in its field and when a retry may work.
func (l Limits) Admit(have, more Usage, b *Bucket, now time.Time) *fault.Fault {
	b.settle(l, now)
	with := have.Add(more)
	switch {
	case l.Live > 0 && with.Live > l.Live:
		return refuse(Live, endRetry, "you have %d sandboxes that have not ended; %d are allowed", have.Live, l.Live)
	case l.MemoryBytes > 0 && with.MemoryBytes > l.MemoryBytes:
		f := refuse(Memory, endRetry, "your sandboxes request %s of memory, and this one %s more; %s is allowed",
			mebi(have.MemoryBytes), mebi(more.MemoryBytes), mebi(l.MemoryBytes))
		if more.MemoryBytes > l.MemoryBytes {
			f.RetryAfter = 0 // never
		}
		return f
	}
	if wait := b.Take(l, now); wait > 0 {
		return refuse(CreateRate, wait, "you create sandboxes too fast: %v a second and %v at once are allowed", l.Rate, l.burst())
	}
	return nil
}

func refuse(limit string, retry time.Duration, format string, args ...any) *fault.Fault {
	f := fault.New(fault.Quota, format, args...)
	f.Field, f.Scope, f.RetryAfter = limit, "tenant", retry
	return f
}

func mebi(n int64) string {
	return strings.TrimSuffix(fmt.Sprintf("%.1f", float64(n)/(1<<20)), ".0") + " MiB"
}
