package runscbuild

import (
	"bytes"
	"fmt"

	"github.com/sirocco-run/sirocco/pkg/runtime"
)

// edit replaces text that is in a file of gVisor exactly once. Most are about what
// the start of a sandbox costs, those of moves about its checkpoint; hostname alone
// changes what a process may do. The times are of one start on the machine of
// docs/performance.md.
type edit struct{ file, old, new string }

// edits returns those for a processor.
func edits(arch string) []edit {
	list := append([]edit{tracePoints, droppedBefore, awaitSupervisor, hostname}, smallPrograms...)
	list = append(list, moves...)
	if arch == "amd64" {
		list = append(list, askedOnce...)
	}
	return list
}

// The points at which a trace session can look into a sandbox take 4 ms to set up.
// Sandboxes are never given such a session, and nothing else reads them.
var tracePoints = edit{"runsc/boot/loader.go", "\tseccheck.Initialize()\n", ""}

// Dropping a capability from the bounding set stops all threads, 0.15 ms for each of
// 40. Most are gone before (package first); threads inherit that.
var droppedBefore = edit{
	"runsc/cmd/sandboxsetup/caps_unsafe.go",
	"\t\t\tif r.bounding&(uint64(1)<<uint(c)) != 0 {\n\t\t\t\tcontinue\n\t\t\t}\n",
	"\t\t\tif r.bounding&(uint64(1)<<uint(c)) != 0 {\n\t\t\t\tcontinue\n\t\t\t}\n" +
		"\t\t\tif has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(c), 0, 0, 0); err == nil && has == 0 {\n\t\t\t\tcontinue\n\t\t\t}\n",
}

// A connection to the supervisor waits a moment for it to listen. Who starts a sandbox
// would otherwise ask again and again from outside, which costs 1.5 ms each time, and
// learns late that it is there. The loader's lock is held meanwhile, so not for long.
var awaitSupervisor = edit{
	"runsc/boot/loader.go",
	"\t\tnsConn, err := pf.NewNetstackConn(stack, opts.Port)\n",
	"\t\tnsConn, err := pf.NewNetstackConn(stack, opts.Port)\n" +
		fmt.Sprintf("\t\tfor began := gtime.Now(); err != nil && opts.Port == %d && gtime.Since(began) < 50*gtime.Millisecond; {\n", runtime.GuestPort) +
		"\t\t\tgtime.Sleep(gtime.Millisecond)\n\t\t\tnsConn, err = pf.NewNetstackConn(stack, opts.Port)\n\t\t}\n",
}

// The supervisor, which is process 1, names the sandbox once it is known whose it is.
// Linux asks for CAP_SYS_ADMIN; to have that and to give it up in time, in every
// thread, would cost the tenant's first command 5 ms, and leave it lying about until
// then. No other process gets anything by this.
var hostname = edit{
	"pkg/sentry/syscalls/linux/sys_utsname.go",
	sethostname + "\tif !t.HasCapabilityIn(",
	sethostname + "\tif t.ThreadGroup() != t.Kernel().GlobalInit() && !t.HasCapabilityIn(",
}

const sethostname = "func Sethostname(t *kernel.Task, sysno uintptr, args arch.SyscallArguments) (uintptr, *kernel.SyscallControl, error) {\n" +
	"\tnameAddr := args[0].Pointer()\n\tsize := args[1].Int()\n\n\tutsns := t.UTSNamespace()\n"

// The seccomp programs of systrap's stub processes are small, and compiled at each
// start; to optimize them takes longer, 4 ms, than they would save in a short life.
var smallPrograms = []edit{
	skipOptimizations("sysmsg_thread.go", "\t\t\tBadArchAction: seccomp.Allow,\n"),
	skipOptimizations("sysmsg_thread.go", "\t\t\tBadArchAction: seccomp.Trap,\n"),
	skipOptimizations("subprocess_linux.go", "\t\t\tBadArchAction: defaultAction,\n"),
}

func skipOptimizations(file, line string) edit {
	return edit{"pkg/sentry/platform/systrap/" + file, line, line + "\t\t\tSkipOptimizations: true,\n"}
}

// What the processor can do is asked once for each of 250 features, though there are
// some 30 different questions. In a virtual machine the hypervisor answers each: 3 ms.
var askedOnce = []edit{
	{"pkg/cpuid/native_amd64.go", "\t\tFunction: &Native{},\n\t}.Fixed()\n", "\t\tFunction: answers{},\n\t}.Fixed()\n"},
	{"pkg/cpuid/native_amd64.go", "var hostFeatureSet FeatureSet\n", `var hostFeatureSet FeatureSet

// answers are those that Native has given.
type answers map[In]Out

// Query implements Function.
func (a answers) Query(in In) Out {
	out, ok := a[in]
	if !ok {
		out = (&Native{}).Query(in)
		a[in] = out
	}
	return out
}
`},
}

// What moving a sandbox asks of its checkpoint.
var moves = []edit{
	// A pause is on or off. gVisor counts pauses, and dies when it is resumed once too
	// often; but an agent that was killed between pause and resume leaves one behind who
	// does not know the count.
	{controller, "\trestorer *restorer\n}\n", "\trestorer *restorer\n\n\tpausing sync.Mutex\n\tpaused bool\n}\n"},
	{controller, pauseHead + "\tcm.l.k.Pause()\n", pauseHead + pausing + "\tif cm.paused {\n\t\treturn nil\n\t}\n\tcm.l.k.Pause()\n\tcm.paused = true\n"},
	{controller, "\tcm.l.k.Unpause()\n", pausing + "\tif !cm.paused {\n\t\treturn nil\n\t}\n\tcm.paused = false\n\tcm.l.k.Unpause()\n"},
	// A restored sandbox is paused before its processes exist: whether it or the one
	// that it was copied from goes on is not decided yet.
	{restorer, "\tr.timer.Reached(\"Starting sandbox\")\n", "\tr.cm.pausing.Lock()\n\tl.k.Pause()\n\tr.cm.paused = true\n\tr.cm.pausing.Unlock()\n\n\tr.timer.Reached(\"Starting sandbox\")\n"},
	// Connections that are forwarded from outside are in the checkpoint with both ends.
	// The outer end has nobody to read it in the copy; without a reset a server inside
	// would wait for its next request for ever.
	{restorer, saveHead, saveHead + "\tdefer pf.Hold()()\n\tl.mu.Lock()\n\tsaveOpts.Metadata[\"sirocco_forwarded\"] = pf.Ends(l.portForwardProxies)\n\tl.mu.Unlock()\n"},
	{"runsc/boot/loader.go", forwardHead, forwardHead + "\tpf.Enter()\n\tdefer pf.Leave()\n\n"},
	{restorer, "\tr.timer.Reached(\"kernel loaded\")\n", "\tr.timer.Reached(\"kernel loaded\")\n\tif s, ok := l.k.RootNetworkNamespace().Stack().(*netstack.Stack); ok {\n\t\tpf.Abort(s.Stack, r.metadata[\"sirocco_forwarded\"])\n\t}\n"},
	{restorer, "\t\"gvisor.dev/gvisor/runsc/boot/pprof\"\n", "\t\"gvisor.dev/gvisor/pkg/sentry/socket/netstack\"\n\tpf \"gvisor.dev/gvisor/runsc/boot/portforward\"\n\t\"gvisor.dev/gvisor/runsc/boot/pprof\"\n"},
	// A connection to the outside that can't go on ends with an error: a clean end could
	// be taken for that of what was being received.
	{"pkg/tcpip/transport/tcp/endpoint_state.go", "\te.state.Store(uint32(StateError))\n\te.closeNoShutdownLocked()\n",
		"\te.state.Store(uint32(StateError))\n\te.hardError = &tcpip.ErrConnectionReset{}\n\te.closeNoShutdownLocked()\n"},
	// Where the root file system lies differs from node to node. That it is the same one
	// is checked by its superblock.
	{"runsc/specutils/restore.go", "\t// The source of a mount can change during restore.\n",
		"\tif key == \"dev.gvisor.spec.rootfs.source\" || key == \"dev.gvisor.spec.rootfs.overlay\" {\n\t\treturn false\n\t}\n\t// The source of a mount can change during restore.\n"},
}

const (
	controller = "runsc/boot/controller.go"
	restorer   = "runsc/boot/restore.go"
	pauseHead  = "func (cm *containerManager) Pause(_, _ *struct{}) error {\n"
	pausing    = "\tcm.pausing.Lock()\n\tdefer cm.pausing.Unlock()\n"
	// forwardHead comes before the loader's lock is taken, which a checkpoint needs.
	forwardHead = "\t\treturn fmt.Errorf(\"stream FD is required for port forward\")\n\t}\n\n"
	saveHead    = "\tsaveOpts.Metadata[ContainerCountKey] = strconv.Itoa(l.containerCount())\n"
)

// apply returns the content of a file after the edit.
func (e edit) apply(content []byte) ([]byte, error) {
	if n := bytes.Count(content, []byte(e.old)); n != 1 {
		return nil, fmt.Errorf("gVisor's %s has the text to replace %d times: %q", e.file, n, e.old)
	}
	return bytes.Replace(content, []byte(e.old), []byte(e.new), 1), nil
}
