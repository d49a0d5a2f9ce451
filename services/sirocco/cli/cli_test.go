package cli_test

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/sirocco-run/sirocco/services/sirocco/cli"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// TestOutput pins what people and scripts read.
func TestOutput(t *testing.T) {
	const url = "https://8000-" + id + ".sandbox.localhost:7443/"
	for _, c := range []struct {
		args     string
		out, err string
		code     int
	}{
		{args: "run echo hello there", out: "hello there\n", err: url + "\n"},
		{args: "run both", out: "out\n", err: url + "\nerr\n"},
		{args: "run -- exit 42", err: url + "\n", code: 42},
		{args: "run --detach --port 8000 -- python3 -m http.server", out: id + "\n" + url + "\n"},
		{args: "run --memory 1 -- true", err: "sirocco: resources.memory_limit_bytes: 1 is below the least, 25165824\n", code: 102},
		{args: "run --memory lots -- true", err: "sirocco: --memory \"lots\" is not a size such as 256Mi or 2G\n  see sirocco run --help\n", code: 2},
		{args: "run --image full -- true", err: "sirocco: no node fits: memory on 3\n  try again in 2s.\n", code: 107},
		{args: "run", err: "sirocco: name a command, or let the sandbox wait for execs with --detach\n  see sirocco run --help\n", code: 2},
		{args: "exec " + id + " -- exit 7", code: 7},
		{args: "exec web echo by name", out: "by name\n"},
		{args: "run -- nosuch", err: url + "\nsirocco: command: nosuch not found in PATH\n", code: 127},
		{args: "exec " + id + " -- nosuch", err: "sirocco: command: nosuch not found in PATH\n", code: 127},
		{args: "exec --detach " + id + " -- nosuch", err: "sirocco: command: nosuch not found in PATH\n", code: 127},
		{args: "exec " + id + " -- nowhere", err: "sirocco: workdir: no folder /nowhere to work in\n", code: 126},
		{args: "run -- noexec", err: url + "\nsirocco: command: noexec is not executable\n", code: 126},
		{args: "exec " + id + " -- noexec", err: "sirocco: command: noexec is not executable\n", code: 126},
		{args: "exec " + id + " -- closed", err: "sirocco: workdir: user may not enter /closed\n", code: 126},
		{args: "exec " + id + " -- odd", err: "sirocco: exec_id: odd\n", code: 102},
		{args: "exec nobody -- true", err: "sirocco: no sandbox nobody\n", code: 103},
		{args: "exec --detach --id job-1 " + id + " -- sleep 5", out: "job-1\n"},
		{args: "attach " + id, out: "from main\n"},
		{args: "logs " + id, out: "one\ntwo\n"},
		{args: "ps " + id, out: "EXEC  PID  STATE     AGE  OUTPUT  COMMAND\nmain  2    running   5m   2Ki     sleep 9\ne1    7    exited 1  5m   0       false\n"},
		{args: "ls", out: "ID                             NAME  STATE    IMAGE  NODE    AGE  LEFT  TAGS\n" + id + "  web   running  base   node-1  1m   58m   app=shop,team=red\n"},
		{args: "ls --all", out: "ID                             NAME  STATE          IMAGE  NODE    AGE  LEFT  TAGS\n" + id + "  web   running        base   node-1  1m   58m   app=shop,team=red\n" + id + "  -     stopped (oom)  base   node-1  1m   -     -\n"},
		{args: "ls -q", out: id + "\n"},
		{args: "ls --state odd", err: "sirocco: --state \"odd\" is not a state: want accepted, placed, starting, running, stopping, stopped or failed\n  see sirocco ls --help\n", code: 2},
		{args: "get missing", err: "sirocco: no sandbox missing\n", code: 3},
		{args: "rm " + id, out: id + "\n"},
		{args: "rm missing " + id, out: id + "\n", err: "sirocco: no sandbox missing\n", code: 3},
		{args: "rm", err: "sirocco: name the sandboxes to end, or give --all\n  see sirocco rm --help\n", code: 2},
		{args: "extend " + id + " 30m", out: "2100-01-02T03:04:05.000Z\n"},
		{args: "extend " + id + " soon", err: "sirocco: \"soon\" is not a duration such as 30m\n  see sirocco extend --help\n", code: 2},
		{args: "tag " + id + " a=1 b=2", out: "a=1,b=2\n"},
		{args: "tunnel open " + id + " 5432/tcp", out: "tcp://sandbox.localhost:20000\n"},
		{args: "tunnel ls " + id, out: "PORT  PROTOCOL  URL                                                                 TOKEN\n8000  https     " + url + "  no\n"},
		{args: "tunnel close " + id + " 8000"},
		{args: "tunnel close " + id + " 70000", err: "sirocco: \"70000\" is not a port\n  see sirocco tunnel close --help\n", code: 2},
		{args: "node ls", out: "NODE    REGION  STATE  SANDBOXES  CPU         MEMORY     RUNTIME  ADDRESS\nnode-1  local   ready  3/600      150/8000m   192Mi/8Gi  gvisor   127.0.0.1:7101\n"},
		{args: "node cordon node-1", out: "NODE    REGION  STATE     SANDBOXES  CPU        MEMORY     RUNTIME  ADDRESS\nnode-1  local   cordoned  3/600      150/8000m  192Mi/8Gi  gvisor   127.0.0.1:7101\n"},
		{args: "node drain node-1", err: "sirocco: only operators steer nodes\n  this needs a key of another kind: `sirocco key create --operator`.\n", code: 9},
		{args: "node drain node-2", out: "node-2: done: 3 were moved in 1s\n", err: "node-2  stage 2/3  1/3 moved  1 under way  0 failed  p99 -  moving\nnode-2  stage 2/3  1/3 moved  0 under way  2 failed  p99 130ms  paused: 2 of 3 moves failed\nnode-2  stage 3/3  3/3 moved  0 under way  2 failed  p99 131ms  done: 3 were moved in 1s\n"},
		{args: "node drain node-2 --cancel --resume", err: "sirocco: --cancel, --resume and --status exclude each other\n  see sirocco node drain --help\n", code: 2},
		{args: "region evacuate eu --over 5s", out: "eu: incomplete: 1 could not be moved: 1 × it may run in eu only\n", err: "eu  stage 3/3  7/8 moved  0 under way  0 failed  p99 90ms  incomplete: 1 could not be moved: 1 × it may run in eu only\n", code: 1},
		{args: "region evacuate eu --no-wait --cancel", out: "eu: cancelling: -\n"},
		{args: "region evacuate eu --status", out: "eu: cancelled: -\n", code: 1},
		{args: "region evacuate mars", err: "sirocco: no region mars\n", code: 3},
		{args: "pool ls", out: "POOL       IMAGE  CPU   MEMORY  NETWORK             WARM  MAX  READY  NODES  KEY\nweb        host   500m  1Gi     allow=1.2.3.0/24    8     64   5      2      00ff\n(learned)  -      -     -       -                   -     -    2      1      11ee\n"},
		{args: "pool set web --network blocked --warm 3", out: "POOL  IMAGE  CPU  MEMORY  NETWORK  WARM  MAX  READY  NODES  KEY\nweb   base   0m   0       blocked  3     -    0      0      00ff\n"},
		{args: "pool set web --max 3", err: "sirocco: say with --warm how many each node keeps\n  see sirocco pool set --help\n", code: 2},
		{args: "pool set web --warm 1 --memory lots", err: "sirocco: --memory \"lots\" is not a size such as 256Mi or 2G\n  see sirocco pool set --help\n", code: 2},
		{args: "pool set web --warm 20000", err: "sirocco: warm: 20000 is out of range: 0 to 10000\n", code: 2},
		{args: "pool set --warm 1", err: "sirocco: want sirocco pool set NAME --warm N [flags]\n  see sirocco pool set --help\n", code: 2},
		{args: "quota ls", out: "TENANT  LIVE  OF  MEMORY  OF    RATE  BURST\nacme    12    -   3Gi     64Gi  50    500\ntrial   1     5*  64Mi    64Gi  0.5*  500\n"},
		{args: "quota set trial --live 0 --rate 2.5 --memory 1Gi", out: "TENANT  LIVE  OF  MEMORY  OF    RATE  BURST\ntrial   0     -*  0       1Gi*  2.5*  -\n"},
		{args: "quota set trial", err: "sirocco: say what it may have: --live, --rate, --burst, --memory\n  see sirocco quota set --help\n", code: 2},
		{args: "quota set trial --memory lots", err: "sirocco: --memory \"lots\" is not a size such as 256Mi or 2G\n  see sirocco quota set --help\n", code: 2},
		{args: "quota set trial --live -1", err: "sirocco: limits.live: -1 is out of range\n", code: 2},
		{args: "quota rm trial"},
		{args: "quota rm nobody", err: "sirocco: tenant nobody has no quota of its own\n", code: 3},
		{args: "pool rm web"},
		{args: "pool rm nothing", err: "sirocco: no pool nothing\n", code: 3},
		{args: "image ls", out: "IMAGE  SOURCE   SIZE  AGE  DIGEST\nbase   builtin  3Mi   -    -\n"},
		{args: "image import mine -", out: "IMAGE  SOURCE  SIZE  AGE  DIGEST\nmine   import  5     -    -\n"},
		{args: "token " + id, out: "token    tok\nurl      URL\nexpires  2100-01-02T03:04:05.000Z\n"},
		{args: "events", out: "2026-01-02T03:04:05.000Z 1 " + id + " running on node-1\n2026-01-02T03:04:05.000Z 2 " + id + " stopped exited (exit code 3)\n2026-01-02T03:04:05.000Z 3 command k1 rejected create: invalid_argument: no JSON\n"},
		{args: "no-such-command", err: "sirocco: unknown command \"no-such-command\" for \"sirocco\"\n  see sirocco --help\n", code: 2},
		{args: "tunnel nonsense", err: "sirocco: unknown command \"nonsense\" for \"sirocco tunnel\"\n  see sirocco tunnel --help\n", code: 2},
		{args: "evnts", err: "sirocco: unknown command \"evnts\" for \"sirocco\": did you mean events?\n  see sirocco --help\n", code: 2},
		{args: "ls --no-such-flag", err: "sirocco: unknown flag: --no-such-flag\n  see sirocco ls --help\n", code: 2},
	} {
		t.Run(c.args, func(t *testing.T) {
			t.Parallel()
			p := newPlatform(t)
			got := p.sirocco(t, "12345", strings.Fields(c.args)...)
			want := result{c.code, strings.ReplaceAll(c.out, "URL\n", p.url+"\n"), c.err}
			if c.args == "tunnel ls "+id {
				want.out = c.out
			}
			if got.code != want.code || squeeze(got.out) != squeeze(want.out) || got.err != want.err {
				t.Errorf("got  %d\n%s%s\nwant %d\n%s%s", got.code, got.out, got.err, want.code, want.out, want.err)
			}
		})
	}
}

// squeeze leaves the widths of columns out of the comparison.
func squeeze(s string) string {
	var lines []string
	for line := range strings.Lines(s) {
		lines = append(lines, strings.Join(strings.Fields(line), " "))
	}
	return strings.Join(lines, "\n")
}

func TestCreateTakesEveryField(t *testing.T) {
	p := newPlatform(t)
	got := p.sirocco(t, "", "run", "-d", "--image", "host", "--cpu", "1.5", "--cpu-request", "250m", "--memory", "256Mi", "--memory-request", "64M",
		"--disk", "2Gi", "--pids", "99", "--timeout", "10m", "--idle", "1m", "--idle-activity", "tunnel", "-p", "8000", "-p", "5432/tcp", "-p", "8443/tls",
		"--port-token", "8000=secret", "-e", "A=b=c", "-e", "COLOR", "-w", "/srv", "-u", "1000:1000", "--name", "web", "--tag", "a=1", "--network", "allow=1.2.3.0/24,5.6.7.8/32",
		"--ready-cmd", "test -f /ok", "--ready-timeout", "5s", "--ready-interval", "50ms", "--region", "eu", "--key", "k-1", "--", "server", "-x")
	if got.code != 0 {
		t.Fatalf("%+v", got)
	}
	want := &siroccov1.CreateSandboxRequest{}
	const text = `{"image":"host","command":["server","-x"],"env":{"A":"b=c","COLOR":"blue"},"workdir":"/srv","user":"1000:1000",
		"resources":{"cpu_request_millis":250,"cpu_limit_millis":1500,"memory_request_bytes":"64000000","memory_limit_bytes":"268435456","disk_limit_bytes":"2147483648","pids_limit":99},
		"max_lifetime":"600s","idle":{"timeout":"60s","activity":["ACTIVITY_TUNNEL"]},
		"ports":[{"port":8000,"protocol":"PROTOCOL_HTTPS","bearer_token":"secret"},{"port":5432,"protocol":"PROTOCOL_TCP"},{"port":8443,"protocol":"PROTOCOL_TLS_PASSTHROUGH"}],
		"network":{"mode":"NETWORK_MODE_ALLOWED","allowed_cidrs":["1.2.3.0/24","5.6.7.8/32"]},
		"readiness":{"command":["sh","-c","test -f /ok"],"interval":"0.050s","timeout":"5s"},
		"name":"web","tags":{"a":"1"},"idempotency_key":"k-1","regions":["eu"]}`
	unmarshal(t, text, want)
	if !proto.Equal(p.created, want) {
		t.Errorf("got  %v\nwant %v", p.created, want)
	}
}

func TestPoolSetTakesEveryField(t *testing.T) {
	p := newPlatform(t)
	got := p.sirocco(t, "", "pool", "set", "web", "--image", "host", "--cpu", "1.5", "--cpu-request", "250m", "--memory", "256Mi", "--memory-request", "64M",
		"--disk", "2Gi", "--pids", "99", "--network", "allow=1.2.3.0/24,5.6.7.8/32", "--warm", "8", "--max", "64")
	if got.code != 0 {
		t.Fatalf("%+v", got)
	}
	want := &siroccov1.SetPoolRequest{}
	unmarshal(t, `{"name":"web","warm":8,"max":64,"template":{"image":"host",
		"resources":{"cpu_request_millis":250,"cpu_limit_millis":1500,"memory_request_bytes":"64000000","memory_limit_bytes":"268435456","disk_limit_bytes":"2147483648","pids_limit":99},
		"network":{"mode":"NETWORK_MODE_ALLOWED","allowed_cidrs":["1.2.3.0/24","5.6.7.8/32"]}}}`, want)
	if !proto.Equal(p.pool, want) {
		t.Errorf("got  %v\nwant %v", p.pool, want)
	}
}

func TestRunEndsItsSandbox(t *testing.T) {
	p := newPlatform(t)
	if got := p.sirocco(t, "", "run", "--", "exit", "3"); got.code != 3 {
		t.Fatalf("%+v", got)
	}
	if len(p.terminated) != 1 || !p.terminated[0].GetNoWait() {
		t.Fatalf("want one end, got %v", p.terminated)
	}
	p.terminated = nil
	if got := p.sirocco(t, "", "run", "--keep", "--", "true"); got.code != 0 || !strings.Contains(got.err, id) {
		t.Fatalf("%+v", got)
	}
	if len(p.terminated) != 0 {
		t.Fatalf("--keep ended it: %v", p.terminated)
	}
}

func TestEndsOfSandboxesAsExitCodes(t *testing.T) {
	for _, c := range []struct {
		end  *siroccov1.End
		code int
		says string
	}{
		{&siroccov1.End{Cause: siroccov1.Cause_CAUSE_IMAGE_ERROR, Message: "no such tag"}, 108, "image_error: no such tag"},
		{&siroccov1.End{Cause: siroccov1.Cause_CAUSE_NO_CAPACITY, Message: "no node fits"}, 107, "no node fits"},
		{&siroccov1.End{Cause: siroccov1.Cause_CAUSE_PROBE_FAILED}, 105, "probe_failed"},
		{&siroccov1.End{Cause: siroccov1.Cause_CAUSE_INTERNAL, ErrorId: "e-1"}, 113, "error id e-1"},
		{&siroccov1.End{Cause: siroccov1.Cause_CAUSE_START_ERROR, ExitCode: proto.Int32(127)}, 127, "start_error"},
		{&siroccov1.End{Cause: siroccov1.Cause_CAUSE_OOM, Limit: "memory_bytes=268435456"}, 137, "memory_bytes=268435456"},
		{&siroccov1.End{Cause: siroccov1.Cause_CAUSE_MAX_LIFETIME}, 124, "max_lifetime"},
	} {
		// While it starts, and under a running command.
		starting, running := newPlatform(t), newPlatform(t)
		starting.fails, running.gone = c.end, c.end
		for _, p := range []*platform{starting, running} {
			got := p.sirocco(t, "", "run", "--", "sleep", "9")
			if got.code != c.code || !strings.Contains(got.err, c.says) || !strings.Contains(got.err, "sirocco: ") {
				t.Errorf("%v: got %+v", c.end, got)
			}
		}
	}
}

// What is only remembered of a region that is away is shown as such.
func TestLost(t *testing.T) {
	p := newPlatform(t)
	p.lost = &siroccov1.RegionLoss{Region: "us", Since: timestamppb.New(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)), Note: "us is silent"}
	for _, c := range []struct {
		dead bool
		word string
	}{{false, "lost?"}, {true, "lost"}} {
		p.lost.Dead = c.dead
		got := p.sirocco(t, "", "ls")
		if !strings.Contains(got.out, " running ("+c.word+") ") || got.err != "sirocco: region us has been silent since 2026-01-02T03:04:05.000Z; 1 sandboxes are shown as they were last known\n" {
			t.Errorf("%+v", got)
		}
		if got := p.sirocco(t, "", "get", "web"); !regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(c.word) + ` +us is silent$`).MatchString(got.out) {
			t.Errorf("%+v", got)
		}
	}
	want := "2026-01-02T03:04:05.000Z eu:1,us:1 region us away: us is silent\n2026-01-02T03:04:05.000Z eu:1,us:1 region us back\n2026-01-02T03:04:05.000Z eu:1,us:2 " + id + " running on node-1\n"
	if got := p.sirocco(t, "", "events", "--from", "eu:1,us:1"); !strings.HasPrefix(got.out, want) {
		t.Errorf("want %s, got %+v", want, got)
	}
}

func TestGetTellsWhatIsToCome(t *testing.T) {
	p := newPlatform(t)
	got := p.sirocco(t, "", "get", "web")
	if got.code != 0 || !regexp.MustCompile(`(?m)^deadline   \d{4}-\d\d-\d\dT[\d:.]+Z \(in 58m\)$`).MatchString(got.out) || strings.Contains(got.out, "eviction") {
		t.Errorf("%+v", got)
	}
	p.evictAt = time.Now().Add(90*time.Minute + time.Second)
	want := "eviction   " + p.evictAt.UTC().Format("2006-01-02T15:04:05.000Z") + " (in 1h): its node is to be emptied\n"
	if got := p.sirocco(t, "", "get", "web"); got.code != 0 || !strings.Contains(got.out, want) {
		t.Errorf("want %sgot %+v", want, got)
	}
	// What has ended awaits nothing.
	p.gone = &siroccov1.End{Cause: siroccov1.Cause_CAUSE_EVICTED}
	if got := p.sirocco(t, "", "get", "web"); strings.Contains(got.out, "eviction") || strings.Contains(got.out, "deadline") {
		t.Errorf("%+v", got)
	}
}

func TestJSON(t *testing.T) {
	p := newPlatform(t)
	for _, args := range []string{"ls", "get web", "ps " + id, "tunnel ls " + id, "node ls", "pool ls", "quota ls", "image ls", "token " + id, "version", "rm " + id} {
		got := p.sirocco(t, "", append([]string{"--json"}, strings.Fields(args)...)...)
		if got.code != 0 || !json.Valid([]byte(got.out)) {
			t.Errorf("%s: %+v", args, got)
		}
	}
	got := p.sirocco(t, "", "--json", "events")
	for line := range strings.Lines(got.out) {
		if !json.Valid([]byte(line)) {
			t.Errorf("an event is not one line of JSON: %q", line)
		}
	}
	got = p.sirocco(t, "", "--json", "run", "--image", "full", "--", "true")
	var e struct {
		Error struct {
			Code, Scope string
			Retry       float64 `json:"retry_after_seconds"`
		}
	}
	if err := json.Unmarshal([]byte(got.err), &e); err != nil || e.Error.Code != "no_capacity" || e.Error.Scope != "region" || e.Error.Retry != 2 || got.code != 107 {
		t.Errorf("got %+v, %v", got, err)
	}
	var list []struct{ State, ID string }
	if err := json.Unmarshal([]byte(p.sirocco(t, "", "ls", "--json").out), &list); err != nil || list[0].State != "STATE_RUNNING" || list[0].ID != id {
		t.Errorf("got %+v, %v", list, err)
	}
}

func TestNothingAnswers(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	api := "http://" + l.Addr().String()
	began := time.Now()
	got := run(t, map[string]string{cli.EnvAPI: api}, "", "ls")
	if got.code != 11 || got.err != "sirocco: nothing answers at "+api+"\n  is `sirocco up` running? Another address goes in --api or SIROCCO_API.\n" {
		t.Errorf("got %+v", got)
	}
	if time.Since(began) > 5*time.Second {
		t.Error("that took too long")
	}
}

func TestWrongKey(t *testing.T) {
	p := newPlatform(t)
	got := run(t, map[string]string{cli.EnvAPI: p.url, cli.EnvAPIKey: "sk_other"}, "", "ls")
	if got.code != 10 || !strings.Contains(got.err, "SIROCCO_API_KEY") {
		t.Errorf("got %+v", got)
	}
}

func TestConfigFile(t *testing.T) {
	p := newPlatform(t)
	file := filepath.Join(t.TempDir(), "a", "config.json")
	if err := (cli.Config{API: p.url, Key: key}).Save(file); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("want 0600, got %v, %v", info, err)
	}
	// One that others could read is replaced by one that they can't.
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := (cli.Config{API: p.url, Key: key}).Save(file); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("want 0600 again, got %v, %v", info, err)
	}
	if got := run(t, map[string]string{"SIROCCO_CONFIG": file}, "", "ls", "-q"); got.out != id+"\n" {
		t.Errorf("the file is not used: %+v", got)
	}
	// The environment wins over the file, a flag over both.
	env := map[string]string{"SIROCCO_CONFIG": file, cli.EnvAPIKey: "sk_wrong"}
	if got := run(t, env, "", "ls"); got.code != 10 {
		t.Errorf("got %+v", got)
	}
	if got := run(t, env, "", "ls", "-q", "--api-key", key); got.code != 0 {
		t.Errorf("got %+v", got)
	}
	if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := run(t, map[string]string{"SIROCCO_CONFIG": file}, "", "ls"); got.code == 0 || !strings.Contains(got.err, "mend or remove") {
		t.Errorf("got %+v", got)
	}
}

func TestCopy(t *testing.T) {
	p := newPlatform(t)
	dir := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(filepath.Join(dir, "tree", "below"), 0o755))
	must(os.WriteFile(filepath.Join(dir, "tree", "a"), []byte("A"), 0o600))
	must(os.WriteFile(filepath.Join(dir, "tree", "below", "b"), []byte("B"), 0o600))
	must(os.Symlink("a", filepath.Join(dir, "tree", "link")))
	got := p.sirocco(t, "", "cp", filepath.Join(dir, "tree"), id+":/srv")
	if got.code != 0 || !strings.Contains(got.err, "link is left out") {
		t.Fatalf("%+v", got)
	}
	if string(p.files["/srv/a"]) != "A" || string(p.files["/srv/below/b"]) != "B" || len(p.files) != 2 {
		t.Fatalf("got %q", p.files)
	}
	out := filepath.Join(dir, "out")
	if got := p.sirocco(t, "", "cp", id+":/srv", out); got.code != 0 {
		t.Fatalf("%+v", got)
	}
	raw, err := os.ReadFile(filepath.Join(out, "below", "b"))
	if err != nil || string(raw) != "B" {
		t.Fatalf("got %q, %v", raw, err)
	}
	if got := p.sirocco(t, "from a pipe", "cp", "-", id+":/tmp/p"); got.code != 0 || string(p.files["/tmp/p"]) != "from a pipe" {
		t.Fatalf("%+v", got)
	}
	if got := p.sirocco(t, "", "cp", id+":/tmp/p", "-"); got.out != "from a pipe" {
		t.Fatalf("%+v", got)
	}
	if got := p.sirocco(t, "", "cp", id+":/missing", out); got.code != 3 {
		t.Errorf("%+v", got)
	}
	if got := p.sirocco(t, "", "cp", "a", "b"); got.code != 2 {
		t.Errorf("%+v", got)
	}
}

func TestBench(t *testing.T) {
	p := newPlatform(t)
	type times []struct {
		Name     string
		N        int
		P50, P99 float64
	}
	for _, args := range []string{"tti --mode sequential -n 5", "tti --mode staggered --stagger 1ms -n 5", "tti --mode burst -n 5 --cold", "churn --rate 100 --duration 50ms --live 5"} {
		dir := t.TempDir()
		got := p.sirocco(t, "", append([]string{"bench", "--json", "--floor", "0", "--data", dir, "--out", dir}, strings.Fields(args)...)...)
		var r struct {
			Name  string
			Times times
			Notes []string
		}
		if err := json.Unmarshal([]byte(got.out), &r); err != nil || got.code != 0 || len(r.Times) != 3+2*strings.Count(args, "burst") {
			t.Errorf("%s: %+v, %v", args, got, err)
			continue
		}
		for _, d := range r.Times {
			n := 5
			if strings.HasPrefix(d.Name, "one by one") {
				n = 10
			}
			if d.N != n || d.P50 <= 0 || d.P99 < d.P50 {
				t.Errorf("%s: %+v", args, d)
			}
		}
		for _, file := range []string{".json", "-latency.svg", "-distribution.svg"} {
			if _, err := os.Stat(filepath.Join(dir, r.Name+file)); err != nil {
				t.Errorf("%s: %v", args, err)
			}
		}
		if !strings.Contains(strings.Join(r.Notes, "\n"), "invariants and host resources were not checked") {
			t.Errorf("%s: of a platform that is not here: %q", args, r.Notes)
		}
	}
	// Five of each, of churn the five that live to begin with, and ten before and after a
	// burst.
	if len(p.terminated) != 45 {
		t.Errorf("%d of 45 sandboxes were ended", len(p.terminated))
	}
	for _, args := range []string{"tti --mode wild", "churn --rate 0", "density -n 0", "tunnel --connections 0", "floor -n 0"} {
		if got := p.sirocco(t, "", append([]string{"bench"}, strings.Fields(args)...)...); got.code != 2 {
			t.Errorf("%s: %+v", args, got)
		}
	}
	got := p.sirocco(t, "", "bench", "tti", "-n", "2", "--image", "full", "--floor", "0", "--data", t.TempDir())
	if got.code != 1 || !strings.Contains(got.out, "failed: 2 with no_capacity") {
		t.Errorf("%+v", got)
	}
}

func TestEveryCommandHasHelp(t *testing.T) {
	got := run(t, nil, "", "--help")
	for _, command := range []string{"up", "down", "run", "exec", "attach", "ls", "get", "logs", "events", "rm", "extend", "tag", "cp", "ps", "token", "tunnel", "node", "image", "key", "doctor", "bench", "version", "completion"} {
		if !strings.Contains(got.out, "\n  "+command+" ") {
			t.Errorf("--help does not list %s", command)
		}
		if sub := run(t, nil, "", command, "--help"); sub.code != 0 || !strings.Contains(sub.out, "Usage:") {
			t.Errorf("%s --help: %+v", command, sub)
		}
	}
}
