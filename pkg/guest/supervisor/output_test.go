package supervisor

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/sirocco-run/sirocco/pkg/guest"
)

const sigUSR1 = unix.SIGUSR1

func TestOutputFromAnyOffset(t *testing.T) {
	w := newWorld(t)
	data := make([]byte, 300_000)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range data {
		data[i] = byte(r.Uint32())
	}
	file := w.dir + "/data"
	if err := os.WriteFile(file, data, 0o644); err != nil {
		t.Fatal(err)
	}
	w.sh("big", "cat "+file+"; head -c 1000 "+file+" >&2")
	w.sh("small", "head -c 1000 "+file+"; head -c 77 "+file+" >&2")
	w.end("big")
	w.end("small")
	for _, c := range []struct {
		id       string
		out, err []byte
	}{{"big", data, data[:1000]}, {"small", data[:1000], data[:77]}} {
		for _, from := range []int{0, 1, 500, 999, 1000, 100_000, 299_999, 300_000, 400_000} {
			o, err := w.Attach(w.ctx, c.id, int64(from), int64(from), false)
			if err != nil {
				t.Fatal(err)
			}
			out, errOut, end, err := guest.Collect(o, 1<<20)
			if err != nil || end == nil {
				t.Fatalf("%s from %d: %v %v", c.id, from, end, err)
			}
			if !bytes.Equal(out, c.out[min(from, len(c.out)):]) || !bytes.Equal(errOut, c.err[min(from, len(c.err)):]) {
				t.Errorf("%s from %d: wrong bytes (%d and %d)", c.id, from, len(out), len(errOut))
			}
		}
	}
	_, err := w.Attach(w.ctx, "nosuch", 0, 0, false)
	if err == nil {
		var o *guest.OutputReader
		o, _ = w.Attach(w.ctx, "nosuch", 0, 0, false)
		_, err = o.Next()
		_ = o.Close()
	}
	want(t, err, guest.ErrNotFound)
}

func TestFollowLive(t *testing.T) {
	w := newWorld(t)
	x := w.start(guest.StartRequest{ID: "f", Command: []string{"sh", "-c", "while read l; do echo got $l; done; echo bye"}, Stdin: true})
	l := w.follow("f")
	var off int64
	for i := range 20 {
		line := fmt.Sprintf("line %d\n", i)
		n, err := w.Stdin(w.ctx, "f", off, []byte(line), false)
		if err != nil {
			t.Fatal(err)
		}
		off = n
		if got := l.next(); got != "got "+strings.TrimSpace(line) {
			t.Fatalf("%q", got)
		}
	}
	if _, err := w.Stdin(w.ctx, "f", off, nil, true); err != nil {
		t.Fatal(err)
	}
	if got := l.next(); got != "bye" {
		t.Fatalf("%q", got)
	}
	if got := l.next(); got != "<end>" {
		t.Fatalf("%q", got)
	}
	if x.Stdout != 0 {
		t.Errorf("%+v", x)
	}
}

func TestFollowSurvivesReconnect(t *testing.T) {
	w := newWorld(t)
	w.sh("c", "i=0; while [ $i -lt 2000 ]; do echo $i; i=$((i+1)); done")
	var got []byte
	for {
		c := w.dial() // replaces the connection before
		r, err := c.Attach(w.ctx, "c", int64(len(got)), guest.Skip, true)
		if err != nil {
			t.Fatal(err)
		}
		o, err := r.Next()
		if err == nil && o.End == nil {
			if o.Offset != int64(len(got)) {
				t.Fatalf("offset %d, want %d", o.Offset, len(got))
			}
			got = append(got, o.Data...)
		}
		_ = r.Close()
		_ = c.Close()
		if err == io.EOF || o.End != nil {
			break
		}
	}
	var all strings.Builder
	for i := range 2000 {
		fmt.Fprintln(&all, i)
	}
	if string(got) != all.String() {
		t.Errorf("%d bytes, want %d", len(got), all.Len())
	}
	w.Client = w.dial()
}

func TestLogsInOrder(t *testing.T) {
	w := newWorld(t)
	// Each line is taken before the next is written, so that the order is known.
	w.start(guest.StartRequest{
		ID: "o", Stdin: true,
		Command: []string{"bash", "-c", `while read s l; do if [ $s = e ]; then echo $l >&2; else echo $l; fi; done`},
	})
	var wantLog strings.Builder
	r, err := w.Logs(w.ctx, "o", true)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	l := &lines{t: t, r: r}
	var off int64
	for i := range 400 {
		s := "o"
		if i%3 == 1 {
			s = "e"
		}
		if off, err = w.Stdin(w.ctx, "o", off, fmt.Appendf(nil, "%s %d\n", s, i), false); err != nil {
			t.Fatal(err)
		}
		if got := l.next(); got != fmt.Sprint(i) {
			t.Fatalf("%d: %q", i, got)
		}
		fmt.Fprintln(&wantLog, i)
	}
	if _, err := w.Stdin(w.ctx, "o", off, nil, true); err != nil {
		t.Fatal(err)
	}
	if got := l.next(); got != "<end>" {
		t.Fatalf("%q", got)
	}
	for _, when := range []string{"ended", "archived"} {
		if when == "archived" {
			until(t, when, func() bool { _, _, past := w.s.lookup("o"); return past })
		}
		r, err := w.Logs(w.ctx, "o", false)
		if err != nil {
			t.Fatal(err)
		}
		var got bytes.Buffer
		for {
			o, err := r.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			got.Write(o.Data)
		}
		_ = r.Close()
		if got.String() != wantLog.String() {
			t.Errorf("%s: order is lost", when)
		}
	}
}

// TestOrderLog checks the order log against a plain list of runs.
func TestOrderLog(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		s := New(Config{Dir: dir})
		e := &exec{s: s, seq: 1}
		var ord order
		var model []guest.Run
		for range rapid.IntRange(0, 3000).Draw(t, "runs") {
			i := guest.Stream(rapid.IntRange(0, 1).Draw(t, "stream"))
			n := rapid.Int64Range(1, 1<<20).Draw(t, "len")
			ord.add(s, e, i, n)
			if k := len(model); k > 0 && model[k-1].Stream == i {
				model[k-1].Len += n
			} else {
				model = append(model, guest.Run{Stream: i, Len: n})
			}
		}
		defer func() {
			if ord.file != nil {
				_ = ord.file.Close()
			}
		}()
		pos := int64(0)
		for i, m := range model {
			r, ok := ord.at(pos)
			if !ok || r.Stream != m.Stream || r.Len != m.Len || (r.Next == 0) != (i == len(model)-1) {
				t.Fatalf("run %d is %+v, want %+v", i, r, m)
			}
			pos = r.Next
		}
	})
}

func TestOutputLimitIsCounted(t *testing.T) {
	w := newWorld(t)
	if err := w.Configure(w.ctx, guest.Setup{OutputBytes: 10_000}); err != nil {
		t.Fatal(err)
	}
	w.sh("l", "head -c 25000 /dev/zero; echo done >&2")
	e := w.end("l")
	out, errOut := w.output("l")
	// Which of the two streams is cut depends on which is taken first.
	if len(out)+len(errOut) != 10_000 || e.LostBytes != 15_005 || e.Code != 0 {
		t.Errorf("%d bytes kept, %q, %+v", len(out), errOut, e)
	}
}

func TestDiskFull(t *testing.T) {
	w := newWorld(t)
	dir := w.s.cfg.Dir
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Fatalf("this test needs to mount a small file system: %v", err)
	}
	t.Cleanup(func() {
		w.s.shutdown(0)
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	w.sh("full", "head -c 1000000 /dev/zero; echo still here >&2; exit 4")
	e := w.end("full")
	out, errOut := w.output("full")
	if e.Code != 4 || errOut != "still here\n" {
		t.Fatalf("%+v %q", e, errOut)
	}
	if int64(len(out))+e.LostBytes != 1_000_000 || e.LostBytes == 0 || len(out) == 0 {
		t.Errorf("%d kept + %d lost", len(out), e.LostBytes)
	}
	// What ends now can't be archived and stays readable.
	for i := range 5 {
		id := fmt.Sprint("more", i)
		w.sh(id, "echo "+id)
		w.end(id)
		if out, _ := w.output(id); out != id+"\n" {
			t.Errorf("%s: %q", id, out)
		}
	}
}

func TestAttachStopsWithItsContext(t *testing.T) {
	w := newWorld(t)
	w.sh("c", "sleep 1000")
	ctx, cancel := context.WithCancel(w.ctx)
	r, err := w.Attach(ctx, "c", 0, 0, true)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cancel()
	if _, err := r.Next(); err != context.Canceled {
		t.Fatalf("%v", err)
	}
	if _, err := w.Ping(w.ctx); err != nil {
		t.Errorf("other calls: %v", err)
	}
}
