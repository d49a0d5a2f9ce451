package gvisor

import "runtime"

// mainThread keeps this program's first thread for its main function, in every
// program that links this package; it has to be called while packages initialise, which
// is when runtime.LockOSThread has that effect.
//
// To start a sandbox, gVisor moves a thread to the sandbox's network namespace and
// then back to that of /proc/self. That is the namespace of the first thread, not of
// the one that moved: were the first thread itself away just then, for a sandbox that
// is being created at the same time, the other would "come back" to that sandbox's
// network and stay, and with it whatever this program connects or listens to from there.
// A first thread that never runs anything else is never away.
var _ = mainThread()

func mainThread() struct{} {
	runtime.LockOSThread()
	return struct{}{}
}
