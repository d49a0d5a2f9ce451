package gvisor_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/runsc/config"
	"gvisor.dev/gvisor/runsc/container"
	"gvisor.dev/gvisor/runsc/flag"
)

// meter measures time by the clock and the processors' time of this program and of
// the processes that it has waited for.
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
	return m
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
	n := 0
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

		floor(b, s.Rootfs.EROFS, s.Args, bare)
	}
	for name, d := range ours {
		b.ReportMetric(float64(d.Microseconds())/1000/float64(n), "ms/"+name)
	}
	for name, d := range bare {
		b.ReportMetric(float64(d.Microseconds())/1000/float64(n), "ms/bare-"+name)
	}
}

// floor makes and ends one sandbox with nothing but gVisor.
func floor(b *testing.B, image string, args []string, sum map[string]time.Duration) {
	b.Helper()
	dir, err := os.MkdirTemp("", "sirocco-gv-")
	if err != nil {
		b.Fatal(err)
	}
	defer os.RemoveAll(dir)
	fs := flag.NewFlagSet("runsc", flag.ContinueOnError)
	config.RegisterFlags(fs)
	for name, value := range map[string]string{"root": dir, "network": "sandbox", "ignore-cgroups": "true"} {
		if err := fs.Set(name, value); err != nil {
			b.Fatal(err)
		}
	}
	conf, err := config.NewFromFlags(fs)
	if err != nil {
		b.Fatal(err)
	}
	o := &specs.Spec{
		Version: specs.Version, Root: &specs.Root{Path: dir},
		Process: &specs.Process{Args: args, Cwd: "/", Capabilities: &specs.LinuxCapabilities{}},
		Mounts:  []specs.Mount{{Destination: "/proc", Type: "proc", Source: "proc"}},
		Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{
			{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace},
			{Type: specs.MountNamespace}, {Type: specs.NetworkNamespace},
		}},
		Annotations: map[string]string{
			"dev.gvisor.spec.rootfs.source": image, "dev.gvisor.spec.rootfs.type": "erofs", "dev.gvisor.spec.rootfs.overlay": "memory",
		},
	}
	raw, err := json.Marshal(o)
	if err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), raw, 0o600); err != nil {
		b.Fatal(err)
	}
	t0 := read(b)
	c, err := container.New(conf, container.Args{ID: "sb", Spec: o, BundleDir: dir})
	if err != nil {
		b.Fatal(err)
	}
	t1 := time.Now()
	if err := c.Start(conf); err != nil {
		b.Fatal(err)
	}
	t2 := time.Now()
	if err := c.Destroy(); err != nil {
		b.Fatal(err)
	}
	t3 := read(b)
	sum["new"] += t1.Sub(t0.at)
	sum["start"] += t2.Sub(t1)
	sum["destroy"] += t3.at.Sub(t2)
	sum["cpu"] += t3.cpu - t0.cpu
}
