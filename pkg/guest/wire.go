package guest

import (
	"encoding/binary"
	"errors"
	"io"
	"time"
)

// Port is the TCP port on which a supervisor listens inside its sandbox.
const Port = 49983

// SecretEnv names the environment variable that carries the shared secret to a
// supervisor. No process that it starts inherits it.
const SecretEnv = "SIROCCO_GUEST_SECRET"

// Dir is the folder that belongs to the supervisor inside a sandbox. The file
// operations refuse it.
const Dir = "/.sirocco"

// MainExec is the id of the sandbox's own command.
const MainExec = "main"

// Limits of the protocol.
const (
	// Version of the protocol, spoken by both sides.
	Version = 1
	// MaxRequest is the largest request in bytes.
	MaxRequest = 4 << 20
	// MaxFrame is the largest payload of any other frame in bytes.
	MaxFrame = 128 << 10
	// MaxList is how many bytes of elements a client takes of one list.
	MaxList = 64 << 20
	// MaxStdin is how many bytes one request for standard input may carry. The
	// client splits what is longer.
	MaxStdin = 256 << 10
	// HandshakeTimeout is how long either side waits for the other's part.
	HandshakeTimeout = 5 * time.Second

	chunk = 32 << 10
	// prefix is kind and length before each payload.
	prefix = 5
)

type kind uint8

const (
	kindRequest kind = 1 + iota
	kindOK
	kindError
	kindData
	kindItem
	kindEnd
	kindStdout
	kindStderr
)

// Op names an operation.
type Op uint8

// The operations, one for each method of Client.
const (
	OpPing Op = 1 + iota
	OpConfigure
	OpStart
	OpAttach
	OpLogs
	OpStdin
	OpResize
	OpSignal
	OpWait
	OpListExecs
	OpEvents
	OpShutdown
	OpRead
	OpWrite
	OpListFiles
	OpStat
	OpMakeDir
	OpRemove
	OpMove
	OpWatch
)

var (
	errMalformed = errors.New("guest: malformed message")
	errTooLong   = errors.New("guest: frame is too long")
)

// encoder builds one frame: kind, a length filled in by frame, and fields.
type encoder struct{ b []byte }

func newEncoder(k kind) *encoder {
	e := &encoder{b: make([]byte, prefix, 64)}
	e.b[0] = byte(k)
	return e
}

func (e *encoder) frame() []byte {
	binary.BigEndian.PutUint32(e.b[1:prefix], uint32(len(e.b)-prefix))
	return e.b
}

func (e *encoder) byte(v byte)              { e.b = append(e.b, v) }
func (e *encoder) uint(v uint64)            { e.b = binary.AppendUvarint(e.b, v) }
func (e *encoder) int(v int64)              { e.b = binary.AppendVarint(e.b, v) }
func (e *encoder) string(s string)          { e.uint(uint64(len(s))); e.b = append(e.b, s...) }
func (e *encoder) bytes(p []byte)           { e.uint(uint64(len(p))); e.b = append(e.b, p...) }
func (e *encoder) duration(d time.Duration) { e.int(int64(d)) }

func (e *encoder) bool(v bool) {
	if v {
		e.byte(1)
	} else {
		e.byte(0)
	}
}

func (e *encoder) strings(list []string) {
	e.uint(uint64(len(list)))
	for _, s := range list {
		e.string(s)
	}
}

func (e *encoder) time(t time.Time) {
	if t.IsZero() {
		e.int(0)
	} else {
		e.int(t.UnixNano())
	}
}

// decoder reads fields. After a malformed one everything reads as zero and bad
// is set; at the end of the payload fields read as zero without bad.
type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) err() error {
	if d.bad {
		return errMalformed
	}
	return nil
}

func (d *decoder) fail() {
	d.bad = true
	d.b = nil
}

func (d *decoder) byte() byte {
	if len(d.b) == 0 {
		return 0
	}
	v := d.b[0]
	d.b = d.b[1:]
	return v
}

func (d *decoder) bool() bool { return d.byte() != 0 }

func (d *decoder) uint() uint64 {
	if len(d.b) == 0 {
		return 0
	}
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) int() int64 {
	if len(d.b) == 0 {
		return 0
	}
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

// bytes returns a part of the payload, not a copy.
func (d *decoder) bytes() []byte {
	n := d.uint()
	if n > uint64(len(d.b)) {
		d.fail()
		return nil
	}
	p := d.b[:n:n]
	d.b = d.b[n:]
	return p
}

func (d *decoder) string() string          { return string(d.bytes()) }
func (d *decoder) duration() time.Duration { return time.Duration(d.int()) }

func (d *decoder) strings() []string {
	n := d.uint()
	// Each element takes a byte at least: no length is believed before that.
	if n > uint64(len(d.b)) {
		d.fail()
		return nil
	}
	if n == 0 {
		return nil
	}
	list := make([]string, 0, n)
	for range n {
		list = append(list, d.string())
	}
	if d.bad {
		return nil
	}
	return list
}

func (d *decoder) time() time.Time {
	v := d.int()
	if v == 0 {
		return time.Time{}
	}
	return time.Unix(0, v)
}

// readFrame reads one frame into buf, which grows as needed, and returns its
// payload. Memory is taken as bytes arrive, never on the word of a length.
func readFrame(r io.Reader, buf []byte) (kind, []byte, error) {
	var head [prefix]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, buf[:0], err
	}
	k := kind(head[0])
	n := int(binary.BigEndian.Uint32(head[1:]))
	limit := MaxFrame
	if k == kindRequest {
		limit = MaxRequest
	}
	if n > limit || n < 0 {
		return 0, buf[:0], errTooLong
	}
	buf = buf[:0]
	for len(buf) < n {
		step := min(n-len(buf), chunk)
		have := len(buf)
		if cap(buf) < have+step {
			grown := make([]byte, have, max(have+step, min(n, 2*cap(buf))))
			copy(grown, buf)
			buf = grown
		}
		buf = buf[:have+step]
		if _, err := io.ReadFull(r, buf[have:]); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return 0, buf[:0], err
		}
	}
	return k, buf, nil
}
