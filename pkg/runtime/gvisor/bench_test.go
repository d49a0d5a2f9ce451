package gvisor_test

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sirocco-run/sirocco/pkg/runtime/gvisor/floor"
	"github.com/sirocco-run/sirocco/pkg/runtime/gvisor/gvisortest"
	"golang.org/x/sys/unix"
)

// meter measures time by the clock and the processors' time of this program, of its
// starter and of the processes that they have waited for.
type meter struct {
	at  time.Time
	cpu time.Duration
}

func read(tb testing.TB) meter {
	tb.Helper()
	m := meter{at: time.Now()}
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var u unix.Rusage
		if err := unix.Getrusage(who, &u); err != nil {
			tb.Fatal(err)
		}
		m.cpu += time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	for _, pid := range starters(tb) {
		m.cpu += spentBy(tb, pid)
	}
	return m
}

// spentBy returns the processors' time of a process and of those that it has waited
// for, in steps of 10 ms.
func spentBy(tb testing.TB, pid int) time.Duration {
	tb.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		tb.Fatal(err)
	}
	f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	var ticks time.Duration
	for _, field := range f[11:15] { // utime, stime, cutime, cstime: proc_pid_stat(5)
		n, err := strconv.Atoi(field)
		if err != nil {
			tb.Fatal(err)
		}
		ticks += time.Duration(n)
	}
	return ticks * 10 * time.Millisecond
}

// BenchmarkCreateDestroy compares this package with its floor: gVisor's own calls
// without limits, overlay file, record or watcher, turn by turn in the same run.
func BenchmarkCreateDestroy(b *testing.B) {
	rt := open(b)
	if err := rt.Check(); err != nil {
		b.Fatal(err)
	}
	ours, bare := map[string]time.Duration{}, map[string]time.Duration{}
	s := spec(b, "sb-bench", "serve")
	n, runsc := 0, gvisortest.Runsc(b)
	for b.Loop() {
		n++
		t0 := read(b)
		sb, err := rt.Create(b.Context(), s)
		if err != nil {
			b.Fatal(err)
		}
		t1 := time.Now()
		dial(b, sb).Close()
		t2 := time.Now()
		if err := sb.Destroy(b.Context()); err != nil {
			b.Fatal(err)
		}
		t3 := read(b)
		ours["create"] += t1.Sub(t0.at)
		ours["dial"] += t2.Sub(t1)
		ours["destroy"] += t3.at.Sub(t2)
		ours["cpu"] += t3.cpu - t0.cpu

		c, err := floor.Measure(floor.Config{Runsc: runsc, EROFS: s.Rootfs.EROFS, Args: s.Args})
		if err != nil {
			b.Fatal(err)
		}
		bare["new"] += c.New
		bare["start"] += c.Start
		bare["destroy"] += c.Destroy
		bare["cpu"] += c.CPU
	}
	for name, d := range ours {
		b.ReportMetric(float64(d.Microseconds())/1000/float64(n), "ms/"+name)
	}
	for name, d := range bare {
		b.ReportMetric(float64(d.Microseconds())/1000/float64(n), "ms/bare-"+name)
	}
}
