package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
	"mvdan.cc/sh/v3/syntax"

	"github.com/sirocco-run/sirocco/guest/base/applet"
)

// install builds the program as the image has it, both builds with all links,
// and returns the folder.
func install(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, tags := range map[string]string{applet.Program: "", applet.NetProgram: "sirocco_net"} {
		cmd := exec.Command("go", "build", "-tags", tags, "-o", filepath.Join(dir, name), ".")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build: %v\n%s", err, out)
		}
	}
	for _, n := range applet.Names() {
		target := applet.Program
		if applet.Net(n) {
			target = applet.NetProgram
		}
		if err := os.Symlink(target, filepath.Join(dir, n)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestEveryNameHasACommand(t *testing.T) {
	names := applet.Names()
	if !slices.IsSorted(names) || len(slices.Compact(slices.Clone(names))) != len(names) {
		t.Errorf("names are not sorted and unique: %v", names)
	}
	for _, n := range names {
		if (find(n) == nil) != applet.Net(n) {
			t.Errorf("%s: in this build: %v, needs the network: %v", n, find(n) != nil, applet.Net(n))
		}
	}
}

// TestShell runs scripts in the real program and compares output and status.
func TestShell(t *testing.T) {
	bin := install(t)
	run := func(t *testing.T, stdin string, args ...string) (string, int) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		cmd := exec.CommandContext(ctx, filepath.Join(bin, args[0]), args[1:]...)
		cmd.Env = []string{"PATH=" + bin, "HOME=/root", "TZ=UTC"}
		cmd.Dir = t.TempDir()
		cmd.Stdin = strings.NewReader(stdin)
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatalf("%v: %v", args, err)
		}
		return string(out), cmd.ProcessState.ExitCode()
	}
	for _, c := range []struct {
		name, script, want string
		code               int
	}{
		{"echo", `echo hi`, "hi\n", 0},
		{"echo options", `echo -n a; echo -e 'b\tc'; echo -x`, "ab\tc\n-x\n", 0},
		{"exit", `exit 7`, "", 7},
		{"not found", `nosuchthing 2>/dev/null`, "", 127},
		{"syntax", `if`, "sh:1:1: `if` must be followed by a statement list\n", 2},
		{"substitution", `echo "<$(printf %03d 7)>"`, "<007>\n", 0},
		{"pipes", `seq 5 | tac | head -2 | tail -1`, "4\n", 0},
		{"loop", `for i in 1 2 3; do [ $i = 2 ] && continue; echo $i; done`, "1\n3\n", 0},
		{"errexit", `set -e; false; echo no`, "", 1},
		{"trap", `trap 'echo bye' EXIT; echo x`, "x\nbye\n", 0},
		{"trap by number, and taken back", `trap 'echo bye' 0; trap 'echo no' EXIT; trap - EXIT; echo x`, "x\n", 0},
		{"trap of a signal", `trap 'echo caught' TERM; kill -TERM $$; echo on`, "caught\non\n", 0},
		{"trap ends what the shell does", `trap 'echo caught $?' TERM; { sleep 0.05; kill -TERM $$; } & sleep 60; echo on`, "caught 143\non\n", 0},
		{"traps of several", `trap 'echo caught; exit 3' INT TERM; trap 'echo bye' EXIT; kill -INT $$; echo no`, "caught\nbye\n", 3},
		{"trap of a fault", `trap 'echo caught' SEGV QUIT; kill -SEGV $$; kill -QUIT $$; echo on`, "caught\ncaught\non\n", 0},
		{"faults ignored", `trap '' SEGV QUIT; kill -SEGV $$; kill -QUIT $$; echo on; trap 'echo caught' SEGV QUIT; kill -SEGV $$; kill -QUIT $$`, "on\ncaught\ncaught\n", 0},
		{"status of a signal", `for s in SEGV QUIT ABRT FPE TERM; do sh -c "kill -$s \$\$; echo no"; echo $?; done`, "139\n131\n134\n136\n143\n", 0},
		{"kill of a background job by a fault", `sleep 60 & kill -SEGV $!; wait $!; echo $?`, "139\n", 0},
		{"trap of EXIT and signals", `trap 'echo bye' EXIT INT; kill -INT $$; echo x`, "bye\nx\nbye\n", 0},
		{"trap during the last command", `trap 'echo caught; exit 4' USR1; { sleep 0.05; kill -USR1 $$; } & sh -c 'sleep 0.2'`, "caught\n", 4},
		{"the status stays", `trap 'true' TERM; kill -TERM $$; trap - TERM; sh -c 'exit 9'`, "", 9},
		{"trap that changes the shell", `trap 'n=$((n+1))' USR1; for i in 1 2 3; do kill -USR1 $$; done; echo $n`, "3\n", 0},
		{"trap changes the next command", `trap 'n=1' TERM; { sleep 0.05; kill -TERM $$; } & while [ -z "$n" ]; do sleep 60; done; echo $n`, "1\n", 0},
		{"words stay with a trap", `trap 'echo no' TERM; f() { echo "<$1>" "$#"; return 7; }; f "a  b" ''; echo $?; sh -c 'exit 6' || echo $?; env printf '%s|' '$x' "it's"; set -e; sh -c 'exit 5'; echo no`, "<a  b> 2\n7\n6\n$x|it's|", 5},
		{"ignored", `trap '' INT; kill -INT $$; sh -c 'kill -INT $$; echo child'; echo on`, "child\non\n", 0},
		{"default again", `trap 'echo no' TERM; trap - TERM; sh -c 'kill -TERM '$$; sleep 5; echo no`, "", -1},
		{"trap ends a wait", `trap 'echo caught; kill $!; stop=1' TERM; sleep 60 & { sleep 0.05; kill -TERM $$; } & wait; echo $? $stop`, "caught\n143 1\n", 0},
		{"trap ends a wait for one", `trap 'kill $pid' TERM; sleep 60 & pid=$!; (sleep 0.05; kill -TERM $$) & wait $pid; echo $?; wait $pid; echo $?`, "143\n143\n", 0},
		{"wait without a signal", `trap 'echo no' TERM; (exit 5) & wait $!; echo $?; { set -e; false; echo no; } & wait $!; echo $?; wait; echo $?`, "5\n1\n0\n", 0},
		{"traps are the shell's", `trap 'echo caught' USR1; (kill -USR1 $$; sleep 0.05; echo in); echo out | cat; x=$(trap 'echo no' USR1; echo sub); echo $x`, "in\ncaught\nout\nsub\n", 0},
		{"list of traps", `trap 'echo "a b"' TERM; trap 'x' EXIT; trap; trap - EXIT TERM; trap`, "trap -- \"echo \\\"a b\\\"\" TERM\ntrap -- \"x\" EXIT\n", 0},
		{"no such signal", `trap 'x' NOSUCH 2>/dev/null`, "", 2},
		{"exec", `exec echo replaced; echo no`, "replaced\n", 0},
		{"exec redirected keeps the shell", `(exec true); echo still`, "still\n", 0},
		{"cd holds for commands", `mkdir -p d/e; cd d; echo x > f; cat f; ls; pwd | grep -c /d$`, "x\ne\nf\n1\n", 0},
		{"files", `echo a > x; cp x y; mv y z; ln -s z l; readlink l; cat l; rm -r x z l; ls | wc -l`, "z\na\n0\n", 0},
		{"trees", `mkdir -p a/b; echo 1 > a/b/c; cp -r a d; find d -type f; rm -r a d; ls -A`, "d/b/c\n", 0},
		{"copy into itself", `mkdir a; cp -r a a/b 2>/dev/null`, "", 1},
		{"remove root", `rm -rf / 2>&1`, "rm: refusing to remove \"/\"\n", 1},
		{"text", `printf 'b 2\na 10\nb 2\n' | sort | uniq -c | tr -s ' '`, " 1 a 10\n 2 b 2\n", 0},
		{"sort by key", `printf 'x 10\ny 9\n' | sort -k2 -n`, "y 9\nx 10\n", 0},
		{"cut", `echo a:b:c:d | cut -d: -f2-3,4`, "b:c:d\n", 0},
		{"tr", `echo hello | tr a-y b-z; echo HeLLo | tr '[:upper:]' '[:lower:]'; echo a1b2 | tr -d 0-9; echo aabb | tr -s a-z`, "ifmmp\nhello\nab\nab\n", 0},
		{"grep", `printf 'one\ntwo\nthree\n' > f; grep -n t f; grep -c e f; grep -v o f; grep -E 't(wo|hree)' f; grep -q zzz f`, "2:two\n3:three\n2\nthree\ntwo\nthree\n", 1},
		{"grep basic", `echo 'a+b(c)' | grep 'a+b(c)'; echo aab | grep -o 'a\{2\}'`, "a+b(c)\naa\n", 0},
		{"sed", `printf 'a\nb\nc\n' | sed -e 's/b/[&]/' -e '$d'; echo foo/bar | sed 's|/|-|; s/o/0/g'; seq 9 | sed -n '3,5p;/8/p'`, "a\n[b]\nf00-bar\n3\n4\n5\n8\n", 0},
		{"sed in place", `echo x > f; chmod 640 f; sed -i.bak 's/x/z/;s/$/y/' f; cat f f.bak; stat -c %a f; ls -A | wc -l`, "zy\nx\n640\n2\n", 0},
		{"sed groups", `echo ab | sed 's/\(a\)\(b\)/\2\1/'; echo ab | sed -E 's/(a)(b)/\2\1/'`, "ba\nba\n", 0},
		{"xargs", `seq 4 | xargs -n2 echo; echo 'a b' | xargs -I X echo '<X>'; printf 'a b\0c\0' | xargs -0 -n1 echo`, "1 2\n3 4\n<a b>\na b\nc\n", 0},
		{"xargs status", `echo x | xargs false`, "", 123},
		{"tar", `mkdir d; echo 1 > d/f; ln -s f d/l; tar -czf a.tgz d; rm -r d; tar -tf a.tgz; tar -xzf a.tgz; cat d/l; tar xf a.tgz --strip-components=1; cat f`, "d/\nd/f\nd/l\n1\n1\n", 0},
		{"gzip", `echo z > f; gzip f; ls; zcat f.gz; gunzip f.gz; cat f`, "f.gz\nz\nz\n", 0},
		{"sums", `echo abc > f; sha256sum f > s; sha256sum -c s; md5sum < f`, "f: OK\n0bee89b07a248e27c83fc3d5951213c1  -\n", 0},
		{"dd", `dd if=/dev/zero of=f bs=1k count=3 status=none; wc -c < f; stat -c %s f; truncate -s 1M f; stat -c '%s %a' f`, "3072\n3072\n1048576 644\n", 0},
		{"head and tail", `seq 10 > f; head -n 2 f; tail -n 2 f; tail -n +9 f; head -c 3 f; head -n -8 f`, "1\n2\n9\n10\n9\n10\n1\n21\n2\n", 0},
		{"basename", `basename /a/b.c .c; dirname /a/b.c; dirname x; dirname /`, "b\n/a\n.\n/\n", 0},
		{"date", `date -u -d @0 +%FT%T; date -u -d 2024-02-03 '+%s %j %a'`, "1970-01-01T00:00:00\n1706918400 034 Sat\n", 0},
		{"timeout", `timeout 0.1 sleep 9`, "", 124},
		{"timeout not reached", `timeout 9 sh -c 'exit 3'`, "", 3},
		{"env", `A=1 env | grep ^A; env -i B=2; env -u TZ printenv TZ || echo none`, "A=1\nB=2\nnone\n", 0},
		{"a background job is waited for", `{ sleep 0.05; echo in; } & wait; echo out`, "in\nout\n", 0},
		{"kill of a background job", `sleep 60 & kill $!; wait $!; echo $?`, "143\n", 0},
		{"kill of a background process", `sh -c 'sleep 60' & kill -9 $!; wait $!; echo $?`, "137\n", 0},
		{"kill of a background loop", `while true; do sleep 0.01; done & kill $!; wait; echo done`, "done\n", 0},
		{"killed twice", `sleep 60 & kill $!; kill -0 $! 2>/dev/null; echo $?`, "1\n", 0},
		{"builtins as programs", `env test a = a && env [ b = b ] && env printf '%s\n' ok`, "ok\n", 0},
		{"own script", `printf 'echo own $1\n' > ls; chmod +x ls; PATH=.:$PATH; ls x`, "own x\n", 0},
		{"stty without a terminal", `stty size 2>/dev/null`, "", 1},
		{"umask", `umask 077; touch f; stat -c %a f`, "600\n", 0},
		{"yes ends with its reader", `yes | head -2`, "y\ny\n", 0},
		{"mktemp", `TMPDIR=. ; f=$(mktemp -d ./x.XXXX); [ -d "$f" ] && echo yes`, "yes\n", 0},
		{"which", `which sh | grep -c /sh; which nosuch`, "1\n", 1},
		{"tee", `echo a | tee f | cat; cat f; echo b | tee -a f > /dev/null; wc -l < f`, "a\na\n2\n", 0},
		{"id", `id -u | grep -c '[0-9]'`, "1\n", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, code := run(t, "", "sh", "-c", c.script)
			if out != c.want || code != c.code {
				t.Errorf("%s\n got %q status %d\nwant %q status %d", c.script, out, code, c.want, c.code)
			}
		})
	}
	t.Run("script and arguments", func(t *testing.T) {
		script := filepath.Join(t.TempDir(), "s")
		if err := os.WriteFile(script, []byte("echo $# $1; exit 4"), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, code := run(t, "", "sh", script, "a", "b"); out != "2 a\n" || code != 4 {
			t.Errorf("got %q, %d", out, code)
		}
		if out, code := run(t, "echo from stdin; exit 5", "sh"); out != "from stdin\n" || code != 5 {
			t.Errorf("got %q, %d", out, code)
		}
		if out, _ := run(t, "", "sh", "-ec", "echo $0 $1", "n", "a"); out != "n a\n" {
			t.Errorf("got %q", out)
		}
	})
	t.Run("signals", func(t *testing.T) { signals(t, bin) })
	t.Run("network", func(t *testing.T) { network1(t, bin) })
	t.Run("interactive", func(t *testing.T) { interactive(t, bin) })
}

// network1 serves a folder and fetches from it.
func network1(t *testing.T, bin string) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(bin, "httpd"), "-p", "0", "-a", "127.0.0.1", dir)
	errs, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	buf := make([]byte, 512)
	n, err := errs.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.Copy(io.Discard, errs) }()
	addr := string(buf[strings.LastIndex(string(buf[:n]), " ")+1 : n-1])
	out, err := exec.Command(filepath.Join(bin, "wget"), "-q", "-O", "-", "http://"+addr+"/f").Output()
	if err != nil || string(out) != "content" {
		t.Errorf("wget: %q, %v", out, err)
	}
	err = exec.Command(filepath.Join(bin, "wget"), "-q", "-O", "-", "http://"+addr+"/missing").Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 8 {
		t.Errorf("wget of what is missing: %v, want status 8", err)
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	nc := exec.Command(filepath.Join(bin, "nc"), host, port)
	nc.Stdin = strings.NewReader("GET /f HTTP/1.0\r\n\r\n")
	if out, err := nc.Output(); err != nil || !bytes.HasSuffix(out, []byte("content")) {
		t.Errorf("nc: %q, %v", out, err)
	}
	if err := exec.Command(filepath.Join(bin, "nc"), "-z", host, port).Run(); err != nil {
		t.Errorf("nc -z: %v", err)
	}
}

// interactive types into a shell on a terminal and waits for what it prints.
func interactive(t *testing.T, bin string) {
	cmd := exec.Command(filepath.Join(bin, "sh"))
	cmd.Env = []string{"PATH=" + bin}
	tty, err := pty.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	defer tty.Close()
	seen := make(chan string)
	go func() {
		defer close(seen)
		buf := make([]byte, 4096)
		for {
			n, err := tty.Read(buf)
			if err != nil {
				return
			}
			seen <- string(buf[:n])
		}
	}()
	var all strings.Builder
	deadline := time.After(30 * time.Second)
	wait := func(what string) {
		t.Helper()
		for !strings.Contains(all.String(), what) {
			select {
			case s, ok := <-seen:
				if !ok {
					t.Fatalf("the shell ended before %q; it printed %q", what, all.String())
				}
				all.WriteString(s)
			case <-deadline:
				t.Fatalf("no %q; it printed %q", what, all.String())
			}
		}
		rest := all.String()
		rest = rest[strings.Index(rest, what)+len(what):]
		all.Reset()
		all.WriteString(rest)
	}
	typed := func(s string) {
		if _, err := tty.WriteString(s); err != nil {
			t.Fatal(err)
		}
	}
	prompt := "$ "
	if os.Geteuid() == 0 {
		prompt = "# "
	}
	wait(prompt)
	typed("echo a$((1+1))c\n")
	wait("a2c\r\n")
	wait(prompt)
	typed("for i in x y\ndo echo =$i=\ndone\n")
	wait("=y=\r\n")
	wait(prompt)
	// What is typed is echoed before it runs: only its output says that it does.
	typed("echo go; sleep 600\n")
	wait("sleep 600\r\ngo\r\n")
	typed("\x03")
	wait(prompt)
	typed("if echo half\n")
	wait("> ")
	typed("\x03")
	wait(prompt)
	typed("echo whole\n")
	wait("whole\r\n")
	wait("whole\r\n")
	wait(prompt)
	typed("sh -c 'echo ready; sleep 600'\n")
	wait("ready\r\n")
	typed("\x03")
	wait(prompt)
	typed("fi\n")
	wait(prompt)
	if err := pty.Setsize(tty, &pty.Winsize{Rows: 31, Cols: 97}); err != nil {
		t.Fatal(err)
	}
	typed("stty size\n")
	wait("31 97\r\n")
	typed("old=$(stty -g); stty -echo; stty | grep -c -e ' -echo '; echo q$((1+1))\n")
	wait("1\r\nq2\r\n")
	wait(prompt)
	typed("echo unseen\n")
	wait("unseen\r\n")
	if before, _, _ := strings.Cut(all.String(), prompt); strings.Contains(before, "unseen") {
		t.Errorf("typed without echo, and seen: %q", before)
	}
	typed("stty $old; stty cols 70; stty size\n")
	wait("31 70\r\n")
	wait(prompt)
	typed("echo seen; stty nonsense\n")
	wait("seen; stty nonsense\r\nseen\r\n")
	wait("invalid argument \"nonsense\"\r\n")
	typed("exit 3\n")
	for range seen { //nolint:revive // until the terminal closes
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 3 {
		t.Errorf("exit: %v, want status 3", err)
	}
}

func FuzzBasicRegexp(f *testing.F) {
	for _, s := range []string{`a\{2\}`, `[[:alpha:]]*`, `*a`, `[]x]`, `a+b(c)`, `[^]`, `\`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		basicRegexp(s)
		trSet(s)
		if _, err := parseSed(s, false); err == nil {
			t.Log(s)
		}
	})
}

// FuzzMarkJobs checks that the change made to scripts keeps them scripts.
func FuzzMarkJobs(f *testing.F) {
	for _, s := range []string{"a & b", "{ a & }; (b &)", "if a & then b & fi", "f() { x & }; f", "a | b & c > d &", "$(x &)", "! a &", "a | (b; c &) | d", "trap x TERM; wait"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		prog, err := syntax.NewParser().Parse(strings.NewReader(s), "")
		if err != nil {
			return
		}
		markInside(prog)
		markJobs(prog)
		var b bytes.Buffer
		if err := syntax.NewPrinter().Print(&b, prog); err != nil {
			t.Fatal(err)
		}
	})
}
