// Package runtime is what a node-agent needs of whatever isolates a sandbox.
//
// There are two implementations: gvisor runs real machines, sim costs nothing
// and fails on request. A runtime knows nothing of records, tenants or the bus:
// it is told ids and limits and reports what happened.
//
// Concurrency: every method may be called from any goroutine, for the same
// sandbox too.
package runtime

import (
	"context"
	"errors"
	"net"
	"time"
)

// GuestPort is the TCP port inside each sandbox on which its supervisor (see
// package guest) listens. It may not be published.
const GuestPort = 49983

// Errors that callers act on.
var (
	// ErrNotFound: no sandbox of that id, or it is gone.
	ErrNotFound = errors.New("runtime: no such sandbox")
	// ErrExists: a sandbox of that id exists already.
	ErrExists = errors.New("runtime: sandbox exists")
	// ErrRefused: nothing inside the sandbox listens on the port.
	ErrRefused = errors.New("runtime: connection refused")
	// ErrRootfs: the root file system can't be used; the image is to blame.
	ErrRootfs = errors.New("runtime: bad root file system")
	// ErrNotPaused: only a paused sandbox can be checkpointed.
	ErrNotPaused = errors.New("runtime: sandbox is not paused")
	// ErrIncompatible: a checkpoint is of another build of the runtime, of a machine with
	// another processor, or of a sandbox that was created with another Spec or image.
	ErrIncompatible = errors.New("runtime: checkpoint does not fit")
	// ErrImage: files of a checkpoint are missing, cut short or broken.
	ErrImage = errors.New("runtime: broken checkpoint")
	// ErrDiskFull: there is no room for a checkpoint where it was to be written.
	ErrDiskFull = errors.New("runtime: no room for the checkpoint")
)

// Spec describes a sandbox to create. Only the agent fills it in: nothing in it
// is copied from a tenant's request without being checked first.
type Spec struct {
	// ID is the sandbox id, of fixed length (see package sandboxid).
	ID     string
	Rootfs Rootfs
	// Args is the command line of process 1, the supervisor. Env is its
	// environment; it holds the secret that opens the supervisor.
	Args, Env []string
	Hostname  string
	// NetNS is the path of the network namespace, which has its loopback up.
	// Empty: an own one with loopback only.
	NetNS     string
	Resources Resources
	// Background: it gets only the processor time that others leave, until
	// Sandbox.Foreground.
	Background bool
	// Restore makes the sandbox what another was when Checkpoint wrote it to a folder,
	// instead of starting process 1. Create calls it once when everything else is ready,
	// so that a sandbox can be prepared while its checkpoint is still on its way; it
	// returns the folder, whose files are not needed any more when Create returns. An
	// error of it is Create's. The rest of the Spec must be what it was, except ID,
	// NetNS, Background and where on the machine Rootfs is.
	//
	// The new sandbox is paused, as the old one was: nothing runs in it until Resume,
	// so that of the two only one goes on.
	Restore func(ctx context.Context) (dir string, err error) `json:"-"`
}

// Rootfs says where the root file system comes from: EROFS, or Dir with Binds.
// Whatever it is, it is never written to: writes go to an overlay that is
// limited by Resources.DiskBytes and gone with the sandbox.
type Rootfs struct {
	// EROFS is the path of an image file, shared by all its sandboxes.
	EROFS string
	// Dir is a folder of this machine, shown read-only, with Binds on top.
	Dir   string
	Binds []Bind
}

// Bind shows a file or folder of this machine inside a sandbox, read-only.
type Bind struct{ Source, Target string }

// Resources are limits; zero means none, except DiskBytes, where zero means the
// runtime's default.
type Resources struct {
	CPUMillis   int64
	MemoryBytes int64
	DiskBytes   int64
	Pids        int64
}

// Runtime creates and finds sandboxes.
type Runtime interface {
	// Name is "gvisor" or "sim". Version identifies the build; a checkpoint can
	// only be restored by the same one.
	Name() string
	Version() string
	// Create makes a sandbox and starts its process 1. On an error nothing of
	// it stays behind. Errors: ErrExists, ErrRootfs; with Spec.Restore also
	// ErrIncompatible, ErrImage.
	Create(ctx context.Context, spec Spec) (Sandbox, error)
	// Adopt returns the sandboxes that live on from before this process, paused ones
	// too, and removes what is left of those that do not. Call it once, before Create.
	Adopt(ctx context.Context) ([]Sandbox, error)
	// Sweep removes whatever the runtime finds on the machine (processes,
	// cgroups, mounts, folders) that belongs to none of its sandboxes, and
	// returns what it removed, one line each.
	Sweep(ctx context.Context) ([]string, error)
	// Close lets go of the sandboxes without ending them.
	Close() error
}

// Sandbox is one running machine.
type Sandbox interface {
	ID() string
	// Dial connects to 127.0.0.1:port inside, if the sandbox is paused after it goes on.
	// Errors: ErrRefused, ErrNotFound. The connection supports CloseWrite
	// (interface{ CloseWrite() error }).
	Dial(ctx context.Context, port uint16) (net.Conn, error)
	// Done is closed when the sandbox has ended, whatever the reason; Exit then
	// tells how. It is closed at the latest 1 s after the end.
	Done() <-chan struct{}
	Exit() Exit
	Stats(ctx context.Context) (Stats, error)
	// Foreground gives a sandbox that was made in the background the same share of
	// the processors as others. It may be called again.
	Foreground()
	// Destroy ends the sandbox and frees everything it held. It may be called
	// again, and on a sandbox that has ended. It does not return before the last
	// resource is free.
	Destroy(ctx context.Context) error
	Checkpointer
}

// Checkpointer takes a sandbox from one place to another: Pause and Checkpoint here,
// Create with Spec.Restore there, then Resume there and Destroy here; or, if anything
// failed, Destroy there and Resume here. Its methods wait for each other.
type Checkpointer interface {
	// Pause stops every process inside; time inside goes on. It may be called again.
	// After an error the sandbox runs. Error: ErrNotFound.
	Pause(ctx context.Context) error
	// Resume lets the processes of a paused sandbox go on. It may be called again, and
	// on one that runs. Remove checkpoints from folders in memory first, as the sandbox
	// pays for those. Error: ErrNotFound.
	Resume(ctx context.Context) error
	// Paused says whether the sandbox is paused.
	Paused() bool
	// Checkpoint writes what a paused sandbox is (memory, files, processes) to files in
	// dir, which exists and has none yet. The sandbox stays paused, with nothing run in
	// between, and can be resumed or checkpointed again. On an error none of the files
	// stays. Connections from Dial are not part of it: inside the copy, their other end
	// is reset. The files hold all that the tenant has in memory. If one of them is
	// PagesFile, it is only appended to, so that it can be sent while it is written.
	// Errors: ErrNotPaused, ErrDiskFull, ErrNotFound.
	Checkpoint(ctx context.Context, dir string) error
}

// PagesFile is the name of the file of a checkpoint that holds nearly all of it.
const PagesFile = "pages.img"

// Exit says how a sandbox ended.
type Exit struct {
	// Code and Signal are those of process 1.
	Code   int
	Signal string
	// OOM: the kernel killed it at its memory limit.
	OOM bool
	// Err is set when the sandbox broke for a reason that is not the tenant's.
	Err error
}

// Stats is what a sandbox uses now.
type Stats struct {
	MemoryBytes int64
	CPU         time.Duration
	Pids        int64
	// OOMKills counts processes that the kernel killed at the memory limit.
	OOMKills int64
	// DiskBytes is what its writes to the root file system take on the disk.
	DiskBytes int64
}
