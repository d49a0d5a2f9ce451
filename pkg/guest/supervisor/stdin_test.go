package supervisor

import (
	"bytes"
	"context"
	"strings"
	"testing"

	"github.com/sirocco-run/sirocco/pkg/guest"
)

func TestStdinOffsets(t *testing.T) {
	w := newWorld(t)
	w.start(guest.StartRequest{ID: "cat", Command: []string{"cat"}, Stdin: true})
	send := func(off int64, data string, end bool, wantTaken int64) {
		t.Helper()
		n, err := w.Stdin(w.ctx, "cat", off, []byte(data), end)
		if err != nil || n != wantTaken {
			t.Fatalf("stdin at %d: %d, %v", off, n, err)
		}
	}
	send(0, "hello ", false, 6)
	send(0, "hello ", false, 6)    // a resend
	send(3, "lo world", false, 11) // an overlap
	_, err := w.Stdin(w.ctx, "cat", 20, []byte("x"), false)
	want(t, err, guest.ErrGap)
	send(11, "\n", true, 12)
	send(11, "\n", true, 12) // a resend of the end
	_, err = w.Stdin(w.ctx, "cat", 12, []byte("more"), false)
	want(t, err, guest.ErrStdinClosed)
	if out, _ := w.output("cat"); out != "hello world\n" {
		t.Errorf("%q", out)
	}
	until(t, "archived", func() bool { _, _, past := w.s.lookup("cat"); return past })
	send(11, "\n", true, 12) // a resend after the process has ended
	_, err = w.Stdin(w.ctx, "cat", 12, []byte("more"), false)
	want(t, err, guest.ErrStdinClosed)
	_, err = w.Stdin(w.ctx, "nosuch", 0, nil, false)
	want(t, err, guest.ErrNotFound)
	// Without stdin it is empty.
	if out := w.run("empty", "cat; echo end"); out != "end\n" {
		t.Errorf("%q", out)
	}
	w.sh("none", "sleep 1000")
	_, err = w.Stdin(w.ctx, "none", 0, []byte("x"), false)
	want(t, err, guest.ErrStdinClosed)
}

func TestStdinLargeAndBackPressure(t *testing.T) {
	w := newWorld(t)
	data := []byte(strings.Repeat("0123456789abcdef", 1<<16)) // 1 MiB
	fifo(t, w.dir+"/go")
	w.start(guest.StartRequest{ID: "slow", Command: []string{"sh", "-c", "read go < " + w.dir + "/go; cat"}, Stdin: true})
	ctx, cancel := context.WithCancel(w.ctx)
	done := make(chan error, 1)
	go func() {
		_, err := w.Stdin(ctx, "slow", 0, data, true)
		done <- err
	}()
	e, _, _ := w.s.lookup("slow")
	until(t, "the pipe is full", func() bool {
		taken, _ := e.input.state()
		return taken == 0 && len(e.input.turn) == 1
	})
	cancel()
	if err := <-done; err != context.Canceled {
		t.Fatalf("%v", err)
	}
	until(t, "the writer has given up", func() bool { return len(e.input.turn) == 0 })
	taken, _ := e.input.state()
	if taken == 0 || taken >= int64(len(data)) {
		t.Fatalf("taken %d", taken)
	}
	go func() {
		_, err := w.Stdin(w.ctx, "slow", 0, data, true)
		done <- err
	}()
	openFifo(t, w.dir+"/go")
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if out, _ := w.output("slow"); !bytes.Equal([]byte(out), data) {
		t.Errorf("%d bytes came through", len(out))
	}
}

func TestStdinOfAProcessThatEnds(t *testing.T) {
	w := newWorld(t)
	w.start(guest.StartRequest{ID: "e", Command: []string{"sleep", "1000"}, Stdin: true})
	done := make(chan error, 1)
	go func() {
		_, err := w.Stdin(w.ctx, "e", 0, make([]byte, 200<<10), false)
		done <- err
	}()
	e, _, _ := w.s.lookup("e")
	until(t, "it blocks", func() bool { return len(e.input.turn) == 1 })
	if err := w.Signal(w.ctx, "e", "KILL"); err != nil {
		t.Fatal(err)
	}
	want(t, <-done, guest.ErrStdinClosed)
}

func TestTerminal(t *testing.T) {
	w := newWorld(t)
	w.start(guest.StartRequest{
		ID: "tty", TTY: &guest.Size{Rows: 30, Cols: 100}, User: "ann",
		Command: []string{"bash", "--norc", "--noprofile", "-c", `trap 'echo resized $(stty size)' WINCH; test -t 0 && test -t 2 && echo is a tty; tty | sed 's/[0-9]//'; stty size; while read l; do echo "got:$l"; done; echo over`},
	})
	l := w.follow("tty")
	for _, line := range []string{"is a tty\r", "/dev/pts/\r", "30 100\r"} {
		if got := l.next(); got != line {
			t.Fatalf("%q, want %q", got, line)
		}
	}
	off, err := w.Stdin(w.ctx, "tty", 0, []byte("abc\n"), false)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"abc\r", "got:abc\r"} {
		if got := l.next(); got != line {
			t.Fatalf("%q, want %q", got, line)
		}
	}
	if err := w.Resize(w.ctx, "tty", guest.Size{Rows: 50, Cols: 132}); err != nil {
		t.Fatal(err)
	}
	if off, err = w.Stdin(w.ctx, "tty", off, []byte("x\n"), false); err != nil {
		t.Fatal(err)
	}
	var seen []string
	for len(seen) < 3 {
		seen = append(seen, l.next())
	}
	if all := strings.Join(seen, ""); !strings.Contains(all, "resized 50 132\r") || !strings.Contains(all, "got:x\r") {
		t.Errorf("%q", seen)
	}
	// The end of input is a character on a terminal.
	if _, err := w.Stdin(w.ctx, "tty", off, nil, true); err != nil {
		t.Fatal(err)
	}
	if got := l.next(); got != "over\r" {
		t.Errorf("%q", got)
	}
	if e := w.end("tty"); e.Code != 0 {
		t.Errorf("%+v", e)
	}
	w.sh("plain", "sleep 1000")
	want(t, w.Resize(w.ctx, "plain", guest.Size{Rows: 1, Cols: 1}), guest.ErrInvalid)
	until(t, "archived", func() bool { _, _, past := w.s.lookup("tty"); return past })
	want(t, w.Resize(w.ctx, "tty", guest.Size{Rows: 1, Cols: 1}), guest.ErrEnded)
}

func TestTerminalOutputIsWhole(t *testing.T) {
	w := newWorld(t)
	for i := range 20 {
		id := string(rune('a' + i))
		w.start(guest.StartRequest{ID: id, TTY: &guest.Size{Rows: 24, Cols: 80}, Command: []string{"sh", "-c", "seq 1 500; exit 3"}})
		e := w.end(id)
		out, _ := w.output(id)
		if e.Code != 3 || !strings.HasSuffix(out, "499\r\n500\r\n") {
			t.Fatalf("%s: %+v, ends with %q", id, e, out[max(0, len(out)-20):])
		}
	}
}
