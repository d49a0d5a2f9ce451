package doctor_test

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/sirocco-run/sirocco/pkg/doctor"
)

// machine is a host of a test.
type machine struct {
	system, release string
	user            bool
	files           map[string]string
	readOnly        map[string]bool
	free, inodes    uint64
	openFiles       uint64
	version         string
	taken           map[string]string
	links, filter   error
	chains          []doctor.Chain
}

func (m *machine) System() string  { return m.system }
func (m *machine) Release() string { return m.release }
func (m *machine) Root() bool      { return !m.user }
func (m *machine) ReadFile(p string) (string, error) {
	if text, ok := m.files[p]; ok {
		return text, nil
	}
	return "", fs.ErrNotExist
}
func (m *machine) Exists(p string) bool {
	_, ok := m.files[p]
	return ok
}
func (m *machine) Writable(p string) bool                 { return m.Exists(p) && !m.readOnly[p] }
func (m *machine) Free(string) (bytes, n uint64, e error) { return m.free, m.inodes, nil }
func (m *machine) OpenFiles() uint64                      { return m.openFiles }
func (m *machine) Version(string) (string, error) {
	if m.version == "" {
		return "", errors.New("exec format error")
	}
	return "runsc version " + m.version + "\nspec: 1.2", nil
}
func (m *machine) Listen(a string) (string, error) {
	if owner, ok := m.taken[a]; ok {
		return owner, errors.New("address already in use")
	}
	return "", nil
}
func (m *machine) Links() error                    { return m.links }
func (m *machine) Chains() ([]doctor.Chain, error) { return m.chains, m.filter }

// good is a machine on which nothing is missing.
func good() *machine {
	m := &machine{
		system: "linux", release: "6.1.0-18-amd64", free: 100 << 30, inodes: 1 << 20, openFiles: 1 << 20, version: "v1",
		readOnly: map[string]bool{}, taken: map[string]string{},
		files: map[string]string{
			"/proc/self/status":                  "Name:\tx\nCapEff:\t000001ffffffffff\n",
			"/sys/fs/cgroup":                     "",
			"/sys/fs/cgroup/cgroup.controllers":  "cpuset cpu io memory pids\n",
			"/proc/meminfo":                      "MemTotal: 16000000 kB\nMemAvailable: 8000000 kB\n",
			"/proc/sys/kernel/pid_max":           "4194304\n",
			"/proc/sys/kernel/threads-max":       "192730\n",
			"/proc/sys/net/ipv4/ip_forward":      "1\n",
			"/proc/sys/kernel/yama/ptrace_scope": "1\n",
			"/proc/sys/user/max_user_namespaces": "15000\n",
			"/bin/runsc":                         "", "/bin/guest/init": "", "/bin/guest/base": "",
		},
	}
	for _, ns := range []string{"cgroup", "ipc", "mnt", "net", "pid", "user", "uts"} {
		m.files["/proc/self/ns/"+ns] = ""
	}
	return m
}

func want() doctor.Want {
	return doctor.Want{
		Runtime: "gvisor", DataDir: "/data", Runsc: "/bin/runsc", RunscVersion: "v1", Programs: []string{"/bin/guest/init", "/bin/guest/base"},
		Ports: []doctor.Port{{Use: "the api", Flag: "--listen", Address: "127.0.0.1:7070"}},
	}
}

func TestNothingMissing(t *testing.T) {
	for _, f := range doctor.Run(good(), want()) {
		if f.Status != doctor.OK || f.Fix != "" || f.Text == "" {
			t.Errorf("%+v", f)
		}
	}
}

// TestFindings takes one thing away at a time: that finding, and no other, must
// say so, with what to do.
func TestFindings(t *testing.T) {
	const base = "/sys/fs/cgroup"
	v1 := func(m *machine, controllers ...string) {
		delete(m.files, base+"/cgroup.controllers")
		for _, c := range controllers {
			m.files[base+"/"+c] = ""
		}
	}
	for _, c := range []struct {
		name    string
		without func(*machine)
		check   string
		worst   doctor.Status
		says    string
	}{
		{"not Linux", func(m *machine) { m.system = "darwin" }, "system", doctor.Fail, "this is darwin"},
		{"not root", func(m *machine) { m.user = true }, "root", doctor.Fail, "sudo"},
		{"a container's root", func(m *machine) { m.files["/proc/self/status"] = "CapEff:\t00000000a80425fb\n" }, "capabilities", doctor.Fail, "NET_ADMIN, SYS_PTRACE, SYS_ADMIN"},
		{"old kernel", func(m *machine) { m.release = "4.9.1" }, "kernel", doctor.Fail, "too old"},
		{"oldish kernel", func(m *machine) { m.release = "5.4.0-generic" }, "kernel", doctor.Warn, "5.10"},
		{"odd kernel", func(m *machine) { m.release = "strange" }, "kernel", doctor.Warn, "can't be read"},
		{"no user namespaces", func(m *machine) { delete(m.files, "/proc/self/ns/user") }, "namespaces", doctor.Fail, "user"},
		{"user namespaces off", func(m *machine) { m.files["/proc/sys/user/max_user_namespaces"] = "0\n" }, "namespaces", doctor.Warn, "sysctl"},
		{"no ptrace", func(m *machine) { m.files["/proc/sys/kernel/yama/ptrace_scope"] = "3\n" }, "ptrace", doctor.Fail, "ptrace"},
		{"v2 without memory", func(m *machine) { m.files[base+"/cgroup.controllers"] = "cpu pids" }, "cgroup", doctor.Fail, "memory"},
		{"v2 read-only", func(m *machine) { m.readOnly[base] = true }, "cgroup", doctor.Fail, "read-only"},
		{"no cgroup", func(m *machine) { v1(m) }, "cgroup", doctor.Fail, "mount -t cgroup2"},
		{"v1 without pids", func(m *machine) { v1(m, "cpu", "memory") }, "cgroup", doctor.Fail, "pids"},
		{"v1", func(m *machine) { v1(m, "cpu", "memory", "pids") }, "", doctor.OK, ""},
		{"no runsc", func(m *machine) { delete(m.files, "/bin/runsc") }, "runsc", doctor.Fail, "make build"},
		{"runsc of another machine", func(m *machine) { m.version = "" }, "runsc", doctor.Fail, "does not run"},
		{"another runsc", func(m *machine) { m.version = "v0" }, "runsc", doctor.Fail, "v0"},
		{"no guest program", func(m *machine) { delete(m.files, "/bin/guest/base") }, "guest programs", doctor.Fail, "/bin/guest/base"},
		{"no netlink", func(m *machine) { m.links = errors.New("denied") }, "netlink", doctor.Fail, "NET_ADMIN"},
		{"no nftables", func(m *machine) { m.filter = errors.New("not supported") }, "nftables", doctor.Fail, "modprobe"},
		{"Docker's firewall", func(m *machine) {
			m.chains = []doctor.Chain{{Table: "filter", Name: "FORWARD", Forward: true, Drop: true}}
		}, "firewall", doctor.Warn, "DOCKER-USER"},
		{"our firewall", func(m *machine) {
			m.chains = []doctor.Chain{{Table: "sirocco-node-1", Name: "forward", Forward: true, Drop: true}}
		}, "", doctor.OK, ""},
		{"forwarding off", func(m *machine) { m.files["/proc/sys/net/ipv4/ip_forward"] = "0" }, "", doctor.OK, ""},
		{"forwarding locked", func(m *machine) {
			m.files["/proc/sys/net/ipv4/ip_forward"] = "0"
			m.readOnly["/proc/sys/net/ipv4/ip_forward"] = true
		}, "forwarding", doctor.Warn, "sysctl"},
		{"disk full", func(m *machine) { m.free = 100 << 20 }, "disk", doctor.Fail, "--data"},
		{"no inodes", func(m *machine) { m.inodes = 5 }, "disk", doctor.Fail, "5 more files"},
		{"little disk", func(m *machine) { m.free = 5 << 30 }, "disk", doctor.Warn, "5.0 GiB"},
		{"few processes", func(m *machine) { m.files[doctor.PIDMax], m.readOnly[doctor.PIDMax] = "16384\n", true }, "processes", doctor.Warn, "about 606 sandboxes"},
		{"few threads", func(m *machine) { m.files["/proc/sys/kernel/threads-max"] = "1000\n" }, "processes", doctor.Warn, "about 37 sandboxes"},
		{"few processes, which the node-agent mends", func(m *machine) { m.files[doctor.PIDMax] = "16384\n" }, "", doctor.OK, ""},
		{"processes not told", func(m *machine) { delete(m.files, "/proc/sys/kernel/pid_max") }, "", doctor.OK, ""},
		{"little memory", func(m *machine) { m.files["/proc/meminfo"] = "MemAvailable: 100000 kB\n" }, "memory", doctor.Warn, "97 MiB"},
		{"few files", func(m *machine) { m.openFiles = 1024 }, "open files", doctor.Warn, "ulimit"},
		{"port taken", func(m *machine) { m.taken["127.0.0.1:7070"] = "nginx (pid 7)" }, "port 7070", doctor.Fail, "nginx (pid 7): end that program, or choose another with --listen"},
		{"port of nobody known", func(m *machine) { m.taken["127.0.0.1:7070"] = "" }, "port 7070", doctor.Fail, "--listen"},
		{"port of an up", func(m *machine) { m.taken["127.0.0.1:7070"] = "sirocco (pid 7)" }, "", doctor.OK, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := good()
			c.without(m)
			findings := doctor.Run(m, want())
			if got := doctor.Worst(findings); got != c.worst {
				t.Errorf("worst: got %v, want %v", got, c.worst)
			}
			for _, f := range findings {
				switch {
				case f.Status == doctor.OK:
				case f.Check != c.check || f.Status != c.worst:
					t.Errorf("not asked for: %+v", f)
				case !strings.Contains(f.Sentence(), c.says) || f.Fix == "":
					t.Errorf("got %q, want %q and what to do", f.Sentence(), c.says)
				}
			}
		})
	}
}

func TestAloneMinds(t *testing.T) {
	m, w := good(), want()
	m.taken["127.0.0.1:7070"], w.Alone = "sirocco (pid 7)", true
	if bad := doctor.Failures(doctor.Run(m, w)); len(bad) != 1 {
		t.Errorf("got %+v", bad)
	}
}

func TestSimNeedsLittle(t *testing.T) {
	m, w := good(), want()
	m.user, w.Runtime = true, "sim"
	maps.DeleteFunc(m.files, func(p, _ string) bool { return p != "/proc/meminfo" })
	if bad := doctor.Failures(doctor.Run(m, w)); len(bad) > 0 {
		t.Errorf("got %+v", bad)
	}
}

func TestThisMachine(t *testing.T) {
	h := doctor.Here()
	if _, _, err := h.Free("/does/not/exist/yet"); err != nil {
		t.Error(err)
	}
	if h.Release() == "" || h.OpenFiles() == 0 {
		t.Error("the kernel tells nothing")
	}
	if memory, disk, err := doctor.Machine(t.TempDir()); err != nil || memory == 0 || disk == 0 {
		t.Errorf("got %d, %d, %v", memory, disk, err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	owner, err := h.Listen(l.Addr().String())
	if err == nil || !strings.HasSuffix(owner, fmt.Sprintf("(pid %d)", os.Getpid())) {
		t.Errorf("got %q, %v", owner, err)
	}
}
