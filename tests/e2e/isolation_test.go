package e2e

import (
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	sirocco "github.com/sirocco-run/sirocco/sdk/go"
)

// Seen from inside, by root of the sandbox.
func TestIsolationFromInside(t *testing.T) {
	t.Parallel()
	neighbour := create(t, &siroccov1.CreateSandboxRequest{Command: []string{"sleep", "987654"}})
	for _, image := range []string{visitorImage, "base", "host"} {
		t.Run(strings.ReplaceAll(image, "/", "_"), func(t *testing.T) {
			t.Parallel()
			s := create(t, &siroccov1.CreateSandboxRequest{Image: image, Env: map[string]string{"PATH": "/bin:/usr/bin"}})
			if image == visitorImage {
				if got := run(t, s, "visitor", "try"); got.out != "" || got.GetExitCode() != 0 {
					t.Errorf("it could: %s%s", got.out, got.err)
				}
			}
			if got := sh(t, s, "uname -n"); got != s.ID {
				t.Errorf("its name is %q", got)
			}
			if got := sh(t, s, "uname -r"); got == kernel(t) {
				t.Errorf("it sees this machine's kernel %s", got)
			}
			for _, path := range []string{up.Dir, up.Data(), "/var/lib/sirocco", "/run/sirocco", "/var/run/docker.sock", "/sys/fs/cgroup/memory", "/proc/1/root" + up.Dir, "/dev/sda", "/dev/kvm", "/dev/mem"} {
				if r := run(t, s, "sh", "-c", "test -e "+path); r.GetExitCode() == 0 {
					t.Errorf("%s of this machine is there", path)
				}
			}
			if got := sh(t, s, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"); strings.Contains(got, "987654") || strings.Contains(got, "sirocco up") {
				t.Errorf("it sees processes of others: %s", got)
			}
			if pid := sh(t, s, "echo $$"); len(pid) > 4 {
				t.Errorf("its process ids are not its own: %s", pid)
			}
			capabilities(t, s)
			sh(t, s, "echo mine >/tmp/x && cat /tmp/x")
		})
	}
	if r := run(t, neighbour, "ls", "/tmp/x"); r.GetExitCode() == 0 {
		t.Error("a file of one sandbox is seen in another")
	}
}

func kernel(t *testing.T) string {
	t.Helper()
	raw, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(raw))
}

// containerCaps are the capabilities that containers have by default: no admin,
// no module, no raw I/O, no ptrace.
const containerCaps = 1<<0 | 1<<1 | 1<<3 | 1<<4 | 1<<5 | 1<<6 | 1<<7 | 1<<8 | 1<<10 | 1<<13 | 1<<18 | 1<<27 | 1<<29 | 1<<31

func capabilities(t *testing.T, s *sirocco.Sandbox) {
	t.Helper()
	for line := range strings.Lines(sh(t, s, "cat /proc/self/status")) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		switch name {
		case "CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb":
			n, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
			if err != nil || n&^containerCaps != 0 {
				t.Errorf("%s is %s: more than a container's (%x)", name, value, n&^containerCaps)
			}
		}
	}
}

// What eats processes, disk or CPU is contained: the platform answers as before,
// and so do its neighbours.
func TestHungrySandboxesAreContained(t *testing.T) {
	t.Parallel()
	neighbour := create(t, nil)
	for name, c := range map[string]struct {
		command   []string
		resources *siroccov1.Resources
	}{
		"fork bomb": {[]string{"visitor", "fork"}, &siroccov1.Resources{PidsLimit: 64, MemoryLimitBytes: 256 << 20, CpuLimitMillis: 200}},
		"busy":      {[]string{"sh", "-c", "while true; do true; done"}, &siroccov1.Resources{CpuLimitMillis: 200}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := create(t, &siroccov1.CreateSandboxRequest{Image: visitorImage, Command: c.command, Resources: c.resources, MaxLifetime: seconds(60)})
			for range 10 {
				began := time.Now()
				if got := sh(t, neighbour, "echo alive"); got != "alive" || time.Since(began) > 5*time.Second {
					t.Errorf("the neighbour: %q after %v", got, time.Since(began))
				}
			}
			sh(t, create(t, nil), "true")
			began := time.Now()
			if _, err := s.Terminate(t.Context(), ""); err != nil || time.Since(began) > 10*time.Second {
				t.Errorf("it ended after %v: %v", time.Since(began), err)
			}
		})
	}
}

func TestDiskLimit(t *testing.T) {
	t.Parallel()
	const limit = 64 << 20
	s := create(t, &siroccov1.CreateSandboxRequest{Image: visitorImage, Resources: &siroccov1.Resources{DiskLimitBytes: limit, MemoryLimitBytes: 512 << 20}})
	wrote, full, _ := strings.Cut(sh(t, s, "visitor fill /fill"), " ")
	if n, err := strconv.ParseInt(wrote, 10, 64); err != nil || n > limit || n < limit/2 || full != "true" {
		t.Errorf("it wrote %s bytes, disk full: %s", wrote, full)
	}
	// It goes on, and room that is given back can be used again.
	sh(t, s, "rm /fill && echo again >/again && cat /again")
	// Every place that can be written counts.
	for _, dir := range []string{"/tmp", "/dev/shm", "/run", "/var/tmp"} {
		r := run(t, s, "sh", "-c", "test -d "+dir+" && visitor fill "+dir+"/fill; rm -f "+dir+"/fill")
		if wrote, _, ok := strings.Cut(strings.TrimSpace(r.out), " "); ok {
			if n, err := strconv.ParseInt(wrote, 10, 64); err != nil || n > 2*limit {
				t.Errorf("%s took %s bytes", dir, wrote)
			}
		}
	}
}

func TestProcessLimit(t *testing.T) {
	t.Parallel()
	s := create(t, &siroccov1.CreateSandboxRequest{Image: visitorImage, Resources: &siroccov1.Resources{PidsLimit: 32}})
	r := run(t, s, "sh", "-c", "for i in $(seq 100); do sleep 30 & done; echo started")
	if n := sh(t, s, "ls -d /proc/[0-9]* | wc -l"); len(n) > 2 {
		t.Errorf("%s processes run, with %q %q", n, r.out, r.err)
	}
}
