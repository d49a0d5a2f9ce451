package guest

import (
	"strings"
	"time"
)

// Stream names one of the two outputs of a process.
type Stream uint8

// The outputs. A process with a terminal has only Stdout.
const (
	Stdout Stream = 0
	Stderr Stream = 1
)

// Size is the size of a terminal in characters.
type Size struct{ Rows, Cols uint16 }

// StartRequest describes a process to start.
type StartRequest struct {
	// ID is 1 to 64 of [A-Za-z0-9_-].
	ID      string
	Command []string
	// Env holds "NAME=value"; it is added to the environment of Setup.
	Env []string
	// Workdir is absolute, and must be there for the user to enter; empty: see
	// Setup.
	Workdir string
	// User is "name", "uid", "uid:gid" or "name:group"; empty: that of Setup.
	User string
	// Timeout kills the process. Zero: none.
	Timeout time.Duration
	// TTY gives it a terminal of that size; nil: none.
	TTY *Size
	// Stdin keeps standard input open for Client.Stdin; otherwise it is empty.
	// With a terminal it is open in any case.
	Stdin bool
}

// Exec is a process that was started.
type Exec struct {
	ID        string
	Command   []string
	PID       int32
	StartedAt time.Time
	// End is nil while it runs.
	End *End
	// Stdout and Stderr count the bytes of output that are kept.
	Stdout, Stderr int64
	TTY            bool
}

// End says how a process ended.
type End struct {
	// Code is the exit code; 128 plus the number for a signal; 124 for a
	// timeout.
	Code int32
	// Signal is its name, such as "SIGKILL"; empty if it exited by itself.
	Signal   string
	TimedOut bool
	At       time.Time
	// LostBytes counts output that could not be kept.
	LostBytes int64
}

// Setup is what a sandbox is told once, before its command starts.
type Setup struct {
	// Hostname is written into /etc. Empty: the sandbox keeps the name it was made
	// with, until a setup that has one.
	Hostname string
	// DNS holds the addresses of name servers. Without any, resolv.conf stays as it is.
	DNS []string
	// Env and User are the defaults of every process. Files written through the
	// client belong to User as well.
	Env  []string
	User string
	// Workdir is where processes work that ask for no folder: the image's. One
	// whose user may not enter it works in the user's home instead or, where
	// that can't be either, in "/". Empty: "/".
	Workdir string
	// OutputBytes limits the output that is kept, of all processes together;
	// what is more is lost and counted. Zero: the disk is the limit.
	OutputBytes int64
	// Address is the sandbox's own IP address for /etc/hosts; empty: 127.0.0.1.
	Address string
}

// Event tells of the sandbox as a whole.
type Event struct {
	// Main is the sandbox's command once it has ended; nil before.
	Main *Exec
	// Running counts processes other than main that run now; Started those that
	// were ever started.
	Running, Started int64
	// FileOps counts requests for files, IOBytes the bytes of files and
	// standard input that went through them.
	FileOps, IOBytes int64
}

// FileType is the type of a file.
type FileType uint8

// The types of files.
const (
	FileRegular FileType = 1 + iota
	FileDir
	FileSymlink
	FileOther
)

// FileInfo describes a file.
type FileInfo struct {
	Path string
	Type FileType
	Size int64
	// Mode holds the permission bits, with set-id and sticky as in stat(2).
	Mode       uint32
	ModifiedAt time.Time
	UID, GID   uint32
	// Target is where a symlink points.
	Target string
}

// Change says what happened to a file.
type Change uint8

// The changes.
const (
	FileCreated Change = 1 + iota
	FileModified
	FileRemoved
	// WatchStarted comes first and once: everything after it is reported.
	WatchStarted
)

// FileEvent is one change below a watched path.
type FileEvent struct {
	Path   string
	Change Change
}

// Info says who answers a ping.
type Info struct {
	// Version is the protocol's.
	Version uint64
	// PID of the supervisor: 1 in a sandbox.
	PID int64
	// StartedAt is when the supervisor started.
	StartedAt time.Time
	// Configured and MainStarted say how far the sandbox has been set up.
	Configured, MainStarted bool
}

// Limits on what a guest says in words. A supervisor keeps far below them.
const (
	maxWord      = 32
	maxErrorText = 4 << 10
)

// word reads a name such as a code or a signal.
func word(d *decoder) string { return text(clip(d.bytes(), maxWord)) }

func clip(p []byte, most int) string { return string(p[:min(len(p), most)]) }

// text makes a string from a guest fit for protobuf and for a terminal's log.
func text(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

func (r *StartRequest) encode(e *encoder) {
	e.string(r.ID)
	e.strings(r.Command)
	e.strings(r.Env)
	e.string(r.Workdir)
	e.string(r.User)
	e.duration(r.Timeout)
	e.bool(r.TTY != nil)
	if r.TTY == nil {
		r = &StartRequest{TTY: &Size{}, Stdin: r.Stdin}
	}
	e.uint(uint64(r.TTY.Rows))
	e.uint(uint64(r.TTY.Cols))
	e.bool(r.Stdin)
}

func (r *StartRequest) decode(d *decoder) {
	r.ID = d.string()
	r.Command = d.strings()
	r.Env = d.strings()
	r.Workdir = d.string()
	r.User = d.string()
	r.Timeout = d.duration()
	tty := d.bool()
	size := &Size{Rows: uint16(d.uint()), Cols: uint16(d.uint())}
	if tty {
		r.TTY = size
	}
	r.Stdin = d.bool()
}

func (x *Exec) encode(e *encoder) {
	e.string(x.ID)
	e.strings(x.Command)
	e.int(int64(x.PID))
	e.time(x.StartedAt)
	e.int(x.Stdout)
	e.int(x.Stderr)
	e.bool(x.TTY)
	encodeEnd(e, x.End)
}

func (x *Exec) decode(d *decoder) {
	x.ID = text(d.string())
	x.Command = d.strings()
	for i, s := range x.Command {
		x.Command[i] = text(s)
	}
	x.PID = int32(d.int())
	x.StartedAt = d.time()
	x.Stdout = d.int()
	x.Stderr = d.int()
	x.TTY = d.bool()
	x.End = decodeEnd(d)
}

func encodeEnd(e *encoder, end *End) {
	e.bool(end != nil)
	if end == nil {
		return
	}
	e.int(int64(end.Code))
	e.string(end.Signal)
	e.bool(end.TimedOut)
	e.time(end.At)
	e.int(end.LostBytes)
}

func decodeEnd(d *decoder) *End {
	if !d.bool() {
		return nil
	}
	return &End{
		Code: int32(d.int()), Signal: text(d.string()), TimedOut: d.bool(),
		At: d.time(), LostBytes: d.int(),
	}
}

func (s *Setup) encode(e *encoder) {
	e.string(s.Hostname)
	e.strings(s.DNS)
	e.strings(s.Env)
	e.string(s.Workdir)
	e.string(s.User)
	e.int(s.OutputBytes)
	e.string(s.Address)
}

func (s *Setup) decode(d *decoder) {
	s.Hostname = d.string()
	s.DNS = d.strings()
	s.Env = d.strings()
	s.Workdir = d.string()
	s.User = d.string()
	s.OutputBytes = d.int()
	s.Address = d.string()
}

func (v *Event) encode(e *encoder) {
	e.bool(v.Main != nil)
	e.int(v.Running)
	e.int(v.Started)
	e.int(v.FileOps)
	e.int(v.IOBytes)
	if v.Main != nil {
		v.Main.encode(e)
	}
}

func (v *Event) decode(d *decoder) {
	ended := d.bool()
	v.Running = d.int()
	v.Started = d.int()
	v.FileOps = d.int()
	v.IOBytes = d.int()
	if ended {
		v.Main = new(Exec)
		v.Main.decode(d)
	}
}

func (f *FileInfo) encode(e *encoder) {
	e.string(f.Path)
	e.byte(byte(f.Type))
	e.int(f.Size)
	e.uint(uint64(f.Mode))
	e.time(f.ModifiedAt)
	e.uint(uint64(f.UID))
	e.uint(uint64(f.GID))
	e.string(f.Target)
}

func (f *FileInfo) decode(d *decoder) {
	f.Path = text(d.string())
	f.Type = FileType(d.byte())
	f.Size = d.int()
	f.Mode = uint32(d.uint())
	f.ModifiedAt = d.time()
	f.UID = uint32(d.uint())
	f.GID = uint32(d.uint())
	f.Target = text(d.string())
}

func (i *Info) encode(e *encoder) {
	e.uint(i.Version)
	e.int(i.PID)
	e.time(i.StartedAt)
	e.bool(i.Configured)
	e.bool(i.MainStarted)
}

func (i *Info) decode(d *decoder) {
	i.Version = d.uint()
	i.PID = d.int()
	i.StartedAt = d.time()
	i.Configured = d.bool()
	i.MainStarted = d.bool()
}

// Kept says where a server keeps what a process wrote once it has ended.
type Kept struct {
	// Has is set for an output that has a file of its own.
	Has [2]bool
	// Order is the order log that is in memory, after OrderFile bytes in a file.
	Order     []byte
	OrderFile int64
	OrderLost bool
}

// EncodeKept packs a process that has ended, for a server's own use. last is
// the run that the order log does not hold.
func EncodeKept(x *Exec, k Kept, last Run) []byte {
	e := &encoder{b: make([]byte, 0, 128)}
	x.encode(e)
	e.bool(k.Has[0])
	e.bool(k.Has[1])
	e.bytes(k.Order)
	e.int(k.OrderFile)
	e.bool(k.OrderLost)
	e.byte(byte(last.Stream))
	e.int(last.Len)
	return e.b
}

// DecodeKept reads what EncodeKept made.
func DecodeKept(p []byte) (x Exec, k Kept, last Run, err error) {
	d := &decoder{b: p}
	x.decode(d)
	k = Kept{Has: [2]bool{d.bool(), d.bool()}, Order: d.bytes(), OrderFile: d.int(), OrderLost: d.bool()}
	last = Run{Stream: Stream(d.byte() & 1), Len: d.int()}
	return x, k, last, d.err()
}
