package supervisor

import (
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirocco-run/sirocco/pkg/guest"
)

func TestExecEnds(t *testing.T) {
	w := newWorld(t)
	for _, c := range []struct {
		script, signal string
		code           int32
	}{
		{"true", "", 0},
		{"exit 7", "", 7},
		{"exit 255", "", 255},
		{"kill -TERM $$", "SIGTERM", 143},
		{"kill -KILL $$", "SIGKILL", 137},
		{"kill -SEGV $$", "SIGSEGV", 139},
	} {
		id := strings.NewReplacer(" ", "_", "$", "").Replace(c.script)
		w.sh(id, c.script)
		if e := w.end(id); e.Code != c.code || e.Signal != c.signal || e.TimedOut || e.At.IsZero() {
			t.Errorf("%s: %+v", c.script, e)
		}
	}
}

func TestStartIsIdempotent(t *testing.T) {
	w := newWorld(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	pids := map[int32]bool{}
	for range 16 {
		wg.Go(func() {
			x, err := w.Start(w.ctx, guest.StartRequest{ID: "one", Command: []string{"sleep", "1000"}})
			if err != nil {
				t.Errorf("start: %v", err)
			}
			mu.Lock()
			pids[x.PID] = true
			mu.Unlock()
		})
	}
	wg.Wait()
	if len(pids) != 1 {
		t.Fatalf("one id started %d processes", len(pids))
	}
	if err := w.Signal(w.ctx, "one", "kill"); err != nil {
		t.Fatal(err)
	}
	if e := w.end("one"); e.Code != 137 || e.Signal != "SIGKILL" {
		t.Fatalf("%+v", e)
	}
	// After the end as well.
	if x := w.start(guest.StartRequest{ID: "one", Command: []string{"true"}}); !pids[x.PID] || x.End == nil {
		t.Fatalf("a second start of an id that has ended: %+v", x)
	}
}

func TestStartErrors(t *testing.T) {
	w := newWorld(t)
	script := w.dir + "/script"
	if err := os.WriteFile(script, []byte("#!/no/such/interpreter\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	text := w.dir + "/text"
	if err := os.WriteFile(text, []byte("no program"), 0o644); err != nil {
		t.Fatal(err)
	}
	junk := w.dir + "/junk"
	if err := os.WriteFile(junk, []byte("\x00\x01\x02"), 0o755); err != nil {
		t.Fatal(err)
	}
	roots := w.dir + "/roots"
	if err := os.WriteFile(roots, []byte("#!/bin/sh\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	big := strings.Repeat("x", 3<<20)
	for name, c := range map[string]struct {
		r   guest.StartRequest
		err error
	}{
		"no command":     {guest.StartRequest{}, guest.ErrInvalid},
		"empty":          {guest.StartRequest{Command: []string{""}}, guest.ErrInvalid},
		"nul":            {guest.StartRequest{Command: []string{"a\x00b"}}, guest.ErrInvalid},
		"missing":        {guest.StartRequest{Command: []string{"no-such-command"}}, guest.ErrCommandNotFound},
		"missing path":   {guest.StartRequest{Command: []string{"/no/such"}}, guest.ErrCommandNotFound},
		"interpreter":    {guest.StartRequest{Command: []string{script}}, guest.ErrCommandNotFound},
		"not executable": {guest.StartRequest{Command: []string{text}}, guest.ErrNotExecutable},
		"folder":         {guest.StartRequest{Command: []string{w.dir}}, guest.ErrNotExecutable},
		"junk":           {guest.StartRequest{Command: []string{junk}}, guest.ErrNotExecutable},
		"not the user's": {guest.StartRequest{Command: []string{roots}, User: "nobody", Workdir: "/"}, guest.ErrNotExecutable},
		"not in PATH":    {guest.StartRequest{Command: []string{"text"}, Env: []string{"PATH=" + w.dir}}, guest.ErrNotExecutable},
		"no PATH":        {guest.StartRequest{Command: []string{"sh"}, Env: []string{"PATH=/no"}}, guest.ErrCommandNotFound},
		"workdir":        {guest.StartRequest{Command: []string{"true"}, Workdir: "/no/such"}, guest.ErrWorkdirMissing},
		"workdir a file": {guest.StartRequest{Command: []string{"true"}, Workdir: text}, guest.ErrWorkdirMissing},
		"workdir rel":    {guest.StartRequest{Command: []string{"true"}, Workdir: "tmp"}, guest.ErrInvalid},
		"user":           {guest.StartRequest{Command: []string{"true"}, User: "nosuch"}, guest.ErrUnknownUser},
		"group":          {guest.StartRequest{Command: []string{"true"}, User: "ann:nosuch"}, guest.ErrUnknownUser},
		"uid too large":  {guest.StartRequest{Command: []string{"true"}, User: "4294967295"}, guest.ErrUnknownUser},
		"too long":       {guest.StartRequest{Command: []string{"true", big}}, guest.ErrInvalid},
		"forbidden":      {guest.StartRequest{Command: []string{"true"}, User: "nobody", Workdir: "/root"}, guest.ErrWorkdirDenied},
	} {
		c.r.ID = "x"
		_, err := w.Start(w.ctx, c.r)
		if err == nil {
			t.Errorf("%s: no error", name)
			continue
		}
		t.Run(name, func(t *testing.T) { want(t, err, c.err) })
	}
	for _, id := range []string{"", "a b", "ä", strings.Repeat("x", 65), "../x"} {
		_, err := w.Start(w.ctx, guest.StartRequest{ID: id, Command: []string{"true"}})
		want(t, err, guest.ErrInvalid)
	}
	// A start that failed leaves the id free and nothing in the list.
	w.run("x", "true")
	if list, err := w.ListExecs(w.ctx); err != nil || len(list) != 1 {
		t.Fatalf("list: %v, %v", list, err)
	}
	for _, err := range []error{
		w.Signal(w.ctx, "nosuch", "TERM"),
		w.Resize(w.ctx, "nosuch", guest.Size{}),
	} {
		want(t, err, guest.ErrNotFound)
	}
	_, err := w.Wait(w.ctx, "nosuch", 0)
	want(t, err, guest.ErrNotFound)
	want(t, w.Signal(w.ctx, "x", "TERM"), guest.ErrEnded)
	want(t, w.Signal(w.ctx, "x", "SIGNONE"), guest.ErrInvalid)
}

func TestUserEnvironmentWorkdir(t *testing.T) {
	w := newWorld(t)
	if err := w.Configure(w.ctx, guest.Setup{
		Hostname: "sb-test", DNS: []string{"192.0.2.1", "2001:db8::1"}, Env: []string{"A=base", "B=base"},
		Workdir: "/usr", User: "ann", Address: "10.0.0.2",
	}); err != nil {
		t.Fatal(err)
	}
	if got := w.run("def", `echo "$A $B $HOME $(pwd) $(id -u):$(id -g) $(id -G)"`); got != "base base /tmp /usr 1234:1300 1300 1400 1500\n" {
		t.Errorf("defaults: %q", got)
	}
	for user, ids := range map[string]string{
		"0": "0:0", "root": "0:0", "777": "777:0", "777:888": "777:888", "ann:staff": "1234:1400", "nobody": "65534:65534", "1234": "1234:1300",
	} {
		id := strings.ReplaceAll(user, ":", "-")
		w.start(guest.StartRequest{
			ID: id, Command: []string{"sh", "-c", `echo "$A $B $(id -u):$(id -g)"`},
			User: user, Env: []string{"B=own", "PATH=/usr/bin:/bin"}, Workdir: "/",
		})
		if out, errOut := w.output(id); out != "base own "+ids+"\n" {
			t.Errorf("user %s: %q %q", user, out, errOut)
		}
	}
	hosts, _ := os.ReadFile(w.s.cfg.Etc + "/hosts")
	resolv, _ := os.ReadFile(w.s.cfg.Etc + "/resolv.conf")
	name, _ := os.ReadFile(w.s.cfg.Etc + "/hostname")
	if !strings.Contains(string(hosts), "10.0.0.2\tsb-test\n") || string(name) != "sb-test\n" ||
		string(resolv) != "nameserver 192.0.2.1\nnameserver 2001:db8::1\n" {
		t.Errorf("/etc: %q %q %q", hosts, resolv, name)
	}
}

// Who asks for no folder, and may not enter the image's, works at home or in
// "/". Who asks for one gets that or an error.
func TestDefaultWorkdir(t *testing.T) {
	w := newWorld(t)
	closed := w.dir + "/closed"
	if err := os.Mkdir(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := w.Configure(w.ctx, guest.Setup{Workdir: closed}); err != nil {
		t.Fatal(err)
	}
	// ann's home is /tmp, that of nobody is not there, 4321 has none.
	for user, want := range map[string]string{"root": closed, "ann": "/tmp", "nobody": "/", "4321": "/"} {
		w.start(guest.StartRequest{ID: user, Command: []string{"sh", "-c", "pwd"}, User: user})
		if out, errOut := w.output(user); out != want+"\n" {
			t.Errorf("%s works in %q, want %s; %s", user, out, want, errOut)
		}
	}
	_, err := w.Start(w.ctx, guest.StartRequest{ID: "x", Command: []string{"pwd"}, User: "ann", Workdir: closed})
	want(t, err, guest.ErrWorkdirDenied)
	// An image that names a folder which it does not have is in error.
	if err := w.Configure(w.ctx, guest.Setup{Workdir: "/no/such"}); err != nil {
		t.Fatal(err)
	}
	_, err = w.Start(w.ctx, guest.StartRequest{ID: "x", Command: []string{"pwd"}, User: "ann"})
	want(t, err, guest.ErrWorkdirMissing)
}

func TestConfigure(t *testing.T) {
	w := newWorld(t)
	first := guest.Setup{Hostname: "a", User: "root"}
	for _, bad := range []guest.Setup{
		{Hostname: "a b"}, {DNS: []string{"x"}}, {Env: []string{"=x"}}, {Env: []string{"x"}}, {Workdir: "rel"},
		{Hostname: strings.Repeat("x", 65)}, {Address: "1.2.3"},
	} {
		want(t, w.Configure(w.ctx, bad), guest.ErrInvalid)
	}
	want(t, w.Configure(w.ctx, guest.Setup{User: "nosuch"}), guest.ErrUnknownUser)
	for _, s := range []guest.Setup{first, {Hostname: "b"}, first} {
		if err := w.Configure(w.ctx, s); err != nil {
			t.Fatal(err)
		}
	}
	w.start(guest.StartRequest{ID: guest.MainExec, Command: []string{"sleep", "1000"}})
	if err := w.Configure(w.ctx, first); err != nil {
		t.Errorf("the same setup again: %v", err)
	}
	want(t, w.Configure(w.ctx, guest.Setup{Hostname: "b"}), guest.ErrConfigured)
	if i, err := w.Ping(w.ctx); err != nil || !i.Configured || !i.MainStarted || i.Version != guest.Version {
		t.Errorf("ping: %+v %v", i, err)
	}
}

// gone reports whether a process does not run any more.
func gone(pid string) bool {
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	return err != nil || strings.Contains(string(stat), ") Z ")
}

func TestTimeoutKillsTheSession(t *testing.T) {
	w := newWorld(t)
	// A child in a process group of its own (set -m), holding the output.
	began := time.Now()
	w.start(guest.StartRequest{
		ID: "t", Timeout: 300 * time.Millisecond,
		Command: []string{"bash", "-mc", "sleep 1000 & echo $!; trap '' TERM; wait"},
	})
	child := w.follow("t").next()
	e := w.end("t")
	if e.Code != 124 || !e.TimedOut || e.Signal != "SIGKILL" {
		t.Errorf("%+v", e)
	}
	if d := time.Since(began); d < 300*time.Millisecond || d > 10*time.Second {
		t.Errorf("took %v", d)
	}
	until(t, "child is dead", func() bool { return gone(child) })
	// One that ends in time is not affected.
	w.start(guest.StartRequest{ID: "ok", Timeout: time.Minute, Command: []string{"true"}})
	if e := w.end("ok"); e.Code != 0 || e.TimedOut {
		t.Errorf("%+v", e)
	}
}

func TestStragglersDoNotHoldTheEnd(t *testing.T) {
	w := newWorld(t)
	w.sh("s", `(trap 'echo late; exit' USR1; echo $BASHPID ready; while :; do sleep 0.01; done) & echo started $!`)
	l := w.follow("s")
	if got := l.next(); !strings.HasPrefix(got, "started") && !strings.HasSuffix(got, "ready") {
		t.Fatalf("%q", got)
	}
	if e := w.end("s"); e.Code != 0 {
		t.Fatalf("%+v", e)
	}
	var pid int
	until(t, "child is ready", func() bool {
		out, _ := w.output("s")
		for line := range strings.Lines(out) {
			if f := strings.Fields(line); len(f) == 2 && f[0] == "started" {
				pid, _ = strconv.Atoi(f[1])
			}
		}
		return pid > 0 && strings.Contains(out, "ready")
	})
	// It lives on, may write, and what it writes is kept.
	p, _ := os.FindProcess(pid)
	if err := p.Signal(sigUSR1); err != nil {
		t.Fatal(err)
	}
	until(t, "late output is kept", func() bool {
		out, _ := w.output("s")
		return strings.HasSuffix(out, "late\n")
	})
	until(t, "the process is archived", func() bool {
		_, _, past := w.s.lookup("s")
		return past
	})
}

func TestSignalReachesTheGroup(t *testing.T) {
	w := newWorld(t)
	w.sh("g", `sh -c 'trap "echo child; exit" TERM; echo ready; while :; do sleep 0.01; done' & trap 'wait; echo parent; exit 3' TERM; wait`)
	l := w.follow("g")
	if got := l.next(); got != "ready" {
		t.Fatalf("%q", got)
	}
	if err := w.Signal(w.ctx, "g", "term"); err != nil {
		t.Fatal(err)
	}
	if e := w.end("g"); e.Code != 3 {
		t.Fatalf("%+v", e)
	}
	if out, _ := w.output("g"); out != "ready\nchild\nparent\n" {
		t.Errorf("%q", out)
	}
}

func TestWaitTimesOut(t *testing.T) {
	w := newWorld(t)
	w.sh("w", "sleep 1000")
	for _, d := range []time.Duration{0, 20 * time.Millisecond} {
		if x, err := w.Wait(w.ctx, "w", d); err != nil || x.End != nil || x.PID == 0 {
			t.Fatalf("%+v %v", x, err)
		}
	}
}

func TestShutdown(t *testing.T) {
	w := newWorld(t)
	w.sh("nice", "trap 'exit 5' TERM; echo up; while :; do sleep 0.01; done")
	w.sh("stubborn", "trap '' TERM; echo up; while :; do sleep 0.01; done")
	w.follow("nice").next()
	w.follow("stubborn").next()
	if err := w.Shutdown(w.ctx, 300*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if a, b := w.end("nice"), w.end("stubborn"); a.Code != 5 || b.Code != 137 {
		t.Fatalf("%+v %+v", a, b)
	}
	_, err := w.Start(w.ctx, guest.StartRequest{ID: "late", Command: []string{"true"}})
	want(t, err, guest.ErrStopping)
	if out, _ := w.output("nice"); out != "up\n" {
		t.Errorf("output after a shutdown: %q", out)
	}
}

func TestListIsInOrder(t *testing.T) {
	w := newWorld(t)
	for i := range 50 {
		w.start(guest.StartRequest{ID: "e" + strconv.Itoa(i), Command: []string{"sh", "-c", "exit " + strconv.Itoa(i)}})
	}
	for i := range 50 {
		w.end("e" + strconv.Itoa(i))
	}
	list, err := w.ListExecs(w.ctx)
	if err != nil || len(list) != 50 {
		t.Fatalf("%d execs, %v", len(list), err)
	}
	for i, x := range list {
		if x.ID != "e"+strconv.Itoa(i) || x.End == nil || x.End.Code != int32(i) || x.Command[0] != "sh" || x.StartedAt.IsZero() {
			t.Errorf("%d: %+v", i, x)
		}
	}
}
