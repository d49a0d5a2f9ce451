package runscbuild

import (
	"bytes"
	"fmt"

	"github.com/sirocco-run/sirocco/pkg/runtime"
)

// edit replaces text that is in a file of gVisor exactly once. All are about what
// the start of a sandbox costs; hostname alone changes what a process may do. The times
// are of one start on the machine of docs/performance.md.
type edit struct{ file, old, new string }

// edits returns those for a processor.
func edits(arch string) []edit {
	list := append([]edit{tracePoints, droppedBefore, awaitSupervisor, hostname}, smallPrograms...)
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

// apply returns the content of a file after the edit.
func (e edit) apply(content []byte) ([]byte, error) {
	if n := bytes.Count(content, []byte(e.old)); n != 1 {
		return nil, fmt.Errorf("gVisor's %s has the text to replace %d times: %q", e.file, n, e.old)
	}
	return bytes.Replace(content, []byte(e.old), []byte(e.new), 1), nil
}
