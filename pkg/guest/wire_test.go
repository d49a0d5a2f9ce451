package guest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

type message interface {
	encode(*encoder)
	decode(*decoder)
}

func roundTrip(t *rapid.T, in, out message) {
	e := newEncoder(kindItem)
	in.encode(e)
	k, p, err := readFrame(bytes.NewReader(e.frame()), nil)
	if err != nil || k != kindItem {
		t.Fatalf("frame: %v %v", k, err)
	}
	d := &decoder{b: p}
	out.decode(d)
	if d.bad || len(d.b) > 0 || !reflect.DeepEqual(in, out) {
		t.Fatalf("got %+v, want %+v (%d bytes left)", out, in, len(d.b))
	}
	// Any beginning of a message, and any more at its end, can be read.
	cut := rapid.IntRange(0, len(p)).Draw(t, "cut")
	d = &decoder{b: p[:cut:cut]}
	reflect.New(reflect.TypeOf(out).Elem()).Interface().(message).decode(d)
}

func strs(t *rapid.T, name string) []string {
	list := rapid.SliceOfN(rapid.StringN(0, 20, 60), 0, 5).Draw(t, name)
	if len(list) == 0 {
		return nil
	}
	return list
}

func when(t *rapid.T, name string) time.Time {
	n := rapid.Int64().Draw(t, name)
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n)
}

func genExec(t *rapid.T) *Exec {
	x := &Exec{
		ID: rapid.String().Draw(t, "id"), Command: strs(t, "command"), PID: rapid.Int32().Draw(t, "pid"),
		StartedAt: when(t, "at"), Stdout: rapid.Int64().Draw(t, "out"), Stderr: rapid.Int64().Draw(t, "err"),
		TTY: rapid.Bool().Draw(t, "tty"),
	}
	if rapid.Bool().Draw(t, "ended") {
		x.End = &End{
			Code: rapid.Int32().Draw(t, "code"), Signal: rapid.String().Draw(t, "signal"),
			TimedOut: rapid.Bool().Draw(t, "timed out"), At: when(t, "end"), LostBytes: rapid.Int64().Draw(t, "lost"),
		}
	}
	return x
}

func TestMessagesRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := &StartRequest{
			ID: rapid.String().Draw(t, "id"), Command: strs(t, "command"), Env: strs(t, "env"),
			Workdir: rapid.String().Draw(t, "wd"), User: rapid.String().Draw(t, "user"),
			Timeout: time.Duration(rapid.Int64().Draw(t, "timeout")), Stdin: rapid.Bool().Draw(t, "stdin"),
		}
		if rapid.Bool().Draw(t, "tty") {
			r.TTY = &Size{rapid.Uint16().Draw(t, "rows"), rapid.Uint16().Draw(t, "cols")}
		}
		roundTrip(t, r, new(StartRequest))
		roundTrip(t, genExec(t), new(Exec))
		roundTrip(t, &Setup{
			Hostname: rapid.String().Draw(t, "h"), DNS: strs(t, "dns"), Env: strs(t, "env"),
			Workdir: rapid.String().Draw(t, "wd"), User: rapid.String().Draw(t, "u"), OutputBytes: rapid.Int64().Draw(t, "ob"),
			Address: rapid.String().Draw(t, "a"),
		}, new(Setup))
		roundTrip(t, &FileInfo{
			Path: rapid.String().Draw(t, "p"), Type: FileType(rapid.Byte().Draw(t, "t")), Size: rapid.Int64().Draw(t, "s"),
			Mode: rapid.Uint32().Draw(t, "m"), ModifiedAt: when(t, "at"), UID: rapid.Uint32().Draw(t, "uid"),
			GID: rapid.Uint32().Draw(t, "gid"), Target: rapid.String().Draw(t, "target"),
		}, new(FileInfo))
		v := &Event{Running: rapid.Int64().Draw(t, "r"), Started: rapid.Int64().Draw(t, "s"), FileOps: 1, IOBytes: -1}
		if rapid.Bool().Draw(t, "main") {
			v.Main = genExec(t)
		}
		roundTrip(t, v, new(Event))
		roundTrip(t, &Info{Version: rapid.Uint64().Draw(t, "v"), PID: 1, StartedAt: when(t, "at"), Configured: true}, new(Info))

		x, k, last := genExec(t), Kept{Has: [2]bool{true, false}, Order: []byte{1, 2}, OrderFile: 7}, Run{Stream: 1, Len: 9}
		x2, k2, last2, err := DecodeKept(EncodeKept(x, k, last))
		if err != nil || !reflect.DeepEqual(*x, x2) || !reflect.DeepEqual(k, k2) || last != last2 {
			t.Fatalf("kept: %+v %+v %+v %v", x2, k2, last2, err)
		}
	})
}

func TestStringsOfAGuestAreMadeValid(t *testing.T) {
	e := newEncoder(kindItem)
	(&FileInfo{Path: "/a\xff", Target: "\xfe"}).encode(e)
	var f FileInfo
	f.decode(&decoder{b: e.b[prefix:]})
	if f.Path != "/a\uFFFD" || f.Target != "\uFFFD" {
		t.Errorf("%+v", f)
	}
}

func TestFrameLimits(t *testing.T) {
	head := func(k kind, n uint32) []byte {
		return binary.BigEndian.AppendUint32([]byte{byte(k)}, n)
	}
	for _, c := range []struct {
		in  []byte
		err error
	}{
		{head(kindData, MaxFrame+1), errTooLong},
		{head(kindRequest, MaxRequest+1), errTooLong},
		{head(kindData, 1<<32-1), errTooLong},
		{head(kindData, 5), io.ErrUnexpectedEOF},
		{head(kindRequest, MaxRequest), io.ErrUnexpectedEOF},
		{[]byte{1, 2}, io.ErrUnexpectedEOF},
		{nil, io.EOF},
	} {
		if _, _, err := readFrame(bytes.NewReader(c.in), nil); !errors.Is(err, c.err) {
			t.Errorf("%v: %v, want %v", c.in, err, c.err)
		}
	}
	// The length alone takes no memory.
	in := head(kindRequest, MaxRequest)
	if n := testing.AllocsPerRun(10, func() { _, _, _ = readFrame(bytes.NewReader(in), nil) }); n > 5 {
		t.Errorf("%v allocations", n)
	}
	_, buf, _ := readFrame(bytes.NewReader(in), nil)
	if cap(buf) > chunk {
		t.Errorf("%d bytes taken for a frame that never came", cap(buf))
	}
}

func TestErrors(t *testing.T) {
	err := Fail(CodeNotFound, "no file ", "/x")
	if !errors.Is(err, ErrNotFound) || errors.Is(err, ErrExists) || !strings.Contains(err.Error(), "no file /x") {
		t.Errorf("%v", err)
	}
	if ErrGap.Error() != "guest: gap" {
		t.Errorf("%v", ErrGap)
	}
}

// FuzzDecode: no payload makes a decoder panic, or take more memory than the
// payload deserves.
func FuzzDecode(f *testing.F) {
	e := newEncoder(kindItem)
	(&StartRequest{ID: "a", Command: []string{"x", "y"}, TTY: &Size{1, 2}}).encode(e)
	f.Add(e.b[prefix:])
	f.Add([]byte{255, 255, 255, 255, 255, 255, 255, 255, 255, 1})
	f.Fuzz(func(_ *testing.T, p []byte) {
		for _, m := range []message{
			new(StartRequest), new(Exec), new(Setup), new(FileInfo), new(Event), new(Info),
		} {
			m.decode(&decoder{b: p})
		}
		_, _, _, _ = DecodeKept(p)
	})
}

// FuzzFrames: any bytes end in frames within the limits or an error.
func FuzzFrames(f *testing.F) {
	f.Add(newEncoder(kindEnd).frame())
	f.Add([]byte{4, 0, 0, 0, 3, 1, 2, 3, 6, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, p []byte) {
		r := bytes.NewReader(p)
		var buf []byte
		for {
			_, b, err := readFrame(r, buf)
			if err != nil {
				return
			}
			if len(b) > len(p) {
				t.Fatal("more bytes than came")
			}
			buf = b
		}
	})
}
