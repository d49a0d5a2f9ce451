package guest

import (
	"bytes"
	"errors"
	"io"
	"runtime"
	"strings"
	"testing"
	"time"
)

func TestSimCommands(t *testing.T) {
	s := NewSimServer(secret)
	c := link(t, s.Serve)
	ctx := t.Context()
	if err := c.Configure(ctx, Setup{Hostname: "sim", Env: []string{"A=1"}}); err != nil {
		t.Fatal(err)
	}
	for _, k := range []struct {
		id       string
		argv     []string
		code     int32
		out, err string
	}{
		{"true", []string{"/bin/true"}, 0, "", ""},
		{"false", []string{"false"}, 1, "", ""},
		{"echo", []string{"echo", "a", "b"}, 0, "a b\n", ""},
		{"sh", []string{"sh", "-c", "echo one; echo two >&2; sleep 0.01; hostname; exit 7; echo no"}, 7, "one\nsim\n", "two\n"},
		{"and", []string{"sh", "-c", "false && echo no; true && printenv A"}, 0, "1\n", ""},
		{"nofile", []string{"cat", "/x"}, 1, "", "cat: /x: No such file or directory\n"},
		{"unknown", []string{"sh", "-c", "frobnicate"}, 127, "", "frobnicate: not found\n"},
	} {
		if _, err := c.Start(ctx, StartRequest{ID: k.id, Command: k.argv}); err != nil {
			t.Fatalf("%s: %v", k.id, err)
		}
		r, err := c.Attach(ctx, k.id, 0, 0, true)
		if err != nil {
			t.Fatal(err)
		}
		out, errOut, end, err := Collect(r, 1<<20)
		if err != nil || string(out) != k.out || string(errOut) != k.err || end == nil || end.Code != k.code {
			t.Errorf("%s: %q %q %+v %v", k.id, out, errOut, end, err)
		}
	}
	if _, err := c.Start(ctx, StartRequest{ID: "x", Command: []string{"frobnicate"}}); !errors.Is(err, ErrCommandNotFound) {
		t.Errorf("%v", err)
	}
	// Logs keep the order of arrival.
	r, err := c.Logs(ctx, "sh", false)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var all bytes.Buffer
	for o, err := r.Next(); err == nil; o, err = r.Next() {
		all.Write(o.Data)
	}
	if all.String() != "one\ntwo\nsim\n" {
		t.Errorf("%q", all.String())
	}
	if list, err := c.ListExecs(ctx); err != nil || len(list) != 7 || list[0].ID != "true" {
		t.Errorf("%v %v", list, err)
	}
}

func TestSimStdinSignalTimeout(t *testing.T) {
	s := NewSimServer(secret)
	c := link(t, s.Serve)
	ctx := t.Context()
	if _, err := c.Start(ctx, StartRequest{ID: "cat", Command: []string{"cat"}, Stdin: true}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if n, err := c.Stdin(ctx, "cat", 0, []byte("hello"), false); err != nil || n != 5 {
			t.Fatalf("%d %v", n, err)
		}
	}
	if _, err := c.Stdin(ctx, "cat", 9, nil, false); !errors.Is(err, ErrGap) {
		t.Errorf("%v", err)
	}
	if _, err := c.Stdin(ctx, "cat", 5, nil, true); err != nil {
		t.Fatal(err)
	}
	if x, err := c.Wait(ctx, "cat", time.Minute); err != nil || x.End == nil || x.Stdout != 5 {
		t.Errorf("%+v %v", x, err)
	}
	events := make(chan Event, 10)
	stop := errors.New("stop")
	go func() {
		_ = c.Events(ctx, func(v Event) error {
			if events <- v; v.Main != nil {
				return stop
			}
			return nil
		})
	}()
	if _, err := c.Start(ctx, StartRequest{ID: MainExec, Command: []string{"sleep", "infinity"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Start(ctx, StartRequest{ID: "t", Command: []string{"sleep", "1000"}, Timeout: 10 * time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	if x, err := c.Wait(ctx, "t", time.Minute); err != nil || x.End == nil || x.End.Code != 124 || !x.End.TimedOut {
		t.Errorf("%+v %v", x, err)
	}
	if err := c.Signal(ctx, MainExec, "term"); err != nil {
		t.Fatal(err)
	}
	for v := range events {
		if v.Main != nil {
			if v.Main.End.Code != 143 || v.Running != 0 {
				t.Errorf("%+v", v)
			}
			break
		}
	}
	if err := c.Signal(ctx, MainExec, "KILL"); !errors.Is(err, ErrEnded) {
		t.Errorf("%v", err)
	}
	if err := c.Shutdown(ctx, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Start(ctx, StartRequest{ID: "late", Command: []string{"true"}}); !errors.Is(err, ErrStopping) {
		t.Errorf("%v", err)
	}
}

func TestSimFiles(t *testing.T) {
	s := NewSimServer(secret)
	c := link(t, s.Serve)
	ctx := t.Context()
	data := bytes.Repeat([]byte("x"), 100_000)
	if _, err := c.WriteFile(ctx, "/a/b", 0, false, bytes.NewReader(data)); !errors.Is(err, ErrNotFound) {
		t.Errorf("%v", err)
	}
	if f, err := c.WriteFile(ctx, "/a/b", 0, true, bytes.NewReader(data)); err != nil || f.Size != 100_000 {
		t.Fatalf("%+v %v", f, err)
	}
	r, err := c.ReadFile(ctx, "/a/b", 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	_ = r.Close()
	if err != nil || len(got) != 99_999 {
		t.Errorf("%d %v", len(got), err)
	}
	if f, err := c.Move(ctx, "/a", "/c"); err != nil || f.Type != FileDir {
		t.Errorf("%+v %v", f, err)
	}
	var names []string
	if err := c.ListFiles(ctx, "/c", func(f FileInfo) error { names = append(names, f.Path); return nil }); err != nil {
		t.Fatal(err)
	}
	if strings.Join(names, ",") != "/c/b" {
		t.Errorf("%v", names)
	}
	if err := c.Remove(ctx, "/c", false); !errors.Is(err, ErrNotEmpty) {
		t.Errorf("%v", err)
	}
	if err := c.Remove(ctx, "/c", true); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Stat(ctx, "/c/b"); !errors.Is(err, ErrNotFound) {
		t.Errorf("%v", err)
	}
	if _, err := c.MakeDir(ctx, "/x/../y", 0); !errors.Is(err, ErrInvalid) {
		t.Errorf("%v", err)
	}
}

// TestSimIdleCostsNothing: thirty thousand of them fit beside everything else.
func TestSimIdleCostsNothing(t *testing.T) {
	const n = 10_000
	before := runtime.NumGoroutine()
	var m1, m2 runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m1)
	all := make([]*SimServer, n)
	for i := range all {
		all[i] = NewSimServer(secret)
		if _, err := all[i].start(&StartRequest{ID: MainExec, Command: []string{"sleep", "infinity"}}); err != nil {
			t.Fatal(err)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&m2)
	if runtime.NumGoroutine() > before {
		t.Errorf("%d goroutines more", runtime.NumGoroutine()-before)
	}
	if per := (m2.HeapAlloc - m1.HeapAlloc) / n; per > 2048 {
		t.Errorf("%d bytes for each", per)
	}
	for _, s := range all {
		s.Kill()
	}
}
