package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/tests/platform"
)

// cli runs the command line, which must exit with code.
func cli(t *testing.T, code int, args ...string) string {
	t.Helper()
	out, errs, got := up.CLI(t.Context(), nil, args...)
	if got != code {
		t.Fatalf("sirocco %s: exit code %d, want %d: %s%s", strings.Join(args, " "), got, code, out, errs)
	}
	return out
}

var idForm = regexp.MustCompile(`sb-[a-z0-9]{26}`)

// bin/sirocco run -- sh -c 'echo hello from $(uname -n)'
func TestRunPrintsHello(t *testing.T) {
	t.Parallel()
	out := cli(t, 0, "run", "--", "sh", "-c", "echo hello from $(uname -n)")
	id := idForm.FindString(out)
	if out != "hello from "+id+"\n" {
		t.Fatalf("got %q", out)
	}
	// Nothing of it is left.
	s, err := client(t).Open(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	awaitEnd(t, s)
	cli(t, 42, "run", "--", "sh", "-c", "exit 42")
}

// bin/sirocco run --image host --detach --port 8000 -- …, curl, exec -it, ls,
// events -f, rm.
func TestAPersonsSession(t *testing.T) {
	t.Parallel()
	// Where this machine has no python3, the platform's own server stands in.
	serve := []string{"run", "--image", "host", "--detach", "--port", "8000", "--", "python3", "-m", "http.server", "8000"}
	if exec.Command("/usr/bin/python3", "--version").Run() != nil {
		serve = []string{"run", "--detach", "--port", "8000", "--", "httpd", "-f", "-p", "8000", "-h", "/etc"}
	}
	lines := strings.Fields(cli(t, 0, serve...))
	if len(lines) != 2 || !idForm.MatchString(lines[0]) || !strings.HasPrefix(lines[1], "https://8000-"+lines[0]+".sandbox.localhost:") {
		t.Fatalf("it prints %q", lines)
	}
	id, address := lines[0], lines[1]
	t.Cleanup(func() { up.CLI(context.Background(), nil, "rm", id) })

	if status, body := get(t, httpClient(t), address); status != 200 || !strings.Contains(body, "Directory listing") {
		t.Errorf("%d %s", status, body)
	}
	if curl, err := exec.LookPath("curl"); err == nil {
		u, _ := url.Parse(address)
		out, err := exec.CommandContext(t.Context(), curl, "-sS", "--cacert", up.CA, "--resolve", u.Host+":127.0.0.1", address).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "Directory listing") {
			t.Errorf("curl: %v: %s", err, out)
		}
	}
	if out := cli(t, 0, "ls"); !strings.Contains(out, id) {
		t.Errorf("ls: %s", out)
	}
	if out := cli(t, 5, "exec", id, "--", "sh", "-c", "exit 5"); out != "" {
		t.Errorf("exec: %q", out)
	}
	terminal(t, id)

	// events -f shows the end.
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	follow := up.Command(ctx, "--json", "events", "-f", "--from", "1", id)
	var shown lockedBuffer
	follow.Stdout = &shown
	if err := follow.Start(); err != nil {
		t.Fatal(err)
	}
	if out := cli(t, 0, "rm", id); out != "" && !strings.Contains(out, id) {
		t.Errorf("rm: %q", out)
	}
	platform.Eventually(t, 15*time.Second, func() string {
		if text := strings.ToLower(shown.String()); !strings.Contains(text, "state_accepted") || !strings.Contains(text, "state_stopped") {
			return "events: " + text
		}
		return ""
	})
	stop()
	_ = follow.Wait()
	if out := cli(t, 0, "ls"); strings.Contains(out, id) {
		t.Errorf("ls after rm: %s", out)
	}
	cli(t, 103, "exec", "sb-"+strings.Repeat("a", 26), "--", "true")
}

// terminal types into `sirocco exec -it`.
func terminal(t *testing.T, id string) {
	t.Helper()
	cmd := up.Command(t.Context(), "exec", "-it", id, "--", "sh")
	f, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 40, Cols: 100})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	var out lockedBuffer
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		_, _ = io.Copy(&out, f)
	}()
	if _, err := io.WriteString(f, "echo the answer is $((6*7)); exit 3\n"); err != nil {
		t.Fatal(err)
	}
	<-copied
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 3 || !strings.Contains(out.String(), "the answer is 42") {
		t.Errorf("%v: %q", err, out.String())
	}
}

// busClient is the stock client, without credentials: the tenant "default".
func busClient(t *testing.T) (*nats.Conn, jetstream.JetStream) {
	t.Helper()
	nc, err := nats.Connect(up.Bus)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return nc, js
}

// record is what a bus client reads of a record in JSON.
type record struct {
	ID    string `json:"id"`
	State string `json:"state"`
	End   struct {
		Cause    string `json:"cause"`
		ExitCode int    `json:"exitCode"`
	} `json:"end"`
}

// nats req sirocco.api.default.sandbox.create '{"command":["echo","hi"]}'
func TestBusAsk(t *testing.T) {
	t.Parallel()
	nc, _ := busClient(t)
	msg, err := nc.Request("sirocco.api.default.sandbox.create", []byte(`{"command":["echo","hi"]}`), 30*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	var answer struct {
		Sandbox record `json:"sandbox"`
		Token   struct {
			Token string `json:"token"`
		} `json:"token"`
	}
	if err := json.Unmarshal(msg.Data, &answer); err != nil || !idForm.MatchString(answer.Sandbox.ID) || answer.Token.Token == "" {
		t.Fatalf("got %s, %v", msg.Data, err)
	}
	s, err := client(t).Open(t.Context(), answer.Sandbox.ID)
	if err != nil {
		t.Fatal(err)
	}
	if end := awaitEnd(t, s); end.GetExitCode() != 0 {
		t.Errorf("got %v", end)
	}
	logs, err := s.Logs(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = logs.Close() }()
	if raw, err := io.ReadAll(logs); err != nil || string(raw) != "hi\n" {
		t.Errorf("logs: %q, %v", raw, err)
	}
	for subject, want := range map[string]string{
		"sirocco.api.default.sandbox.get {\"id\":\"nothing\"}":                                          "not_found",
		"sirocco.api.default.sandbox.create {\"resources\":{\"memory_limit_bytes\":-1}}":                "invalid_argument",
		"sirocco.api.default.sandbox.create {\"colour\":\"red\"}":                                       "invalid_argument",
		"sirocco.api.default.sandbox.create \xff\xfe":                                                   "invalid_argument",
		"sirocco.api.default.sandbox.terminate {\"id\":\"sb-" + strings.Repeat("a", 26) + "\"}":         "not_found",
		"sirocco.api.default.sandbox.create {\"name\":\"a.b\"}":                                         "invalid_argument",
		"sirocco.api.default.sandbox.create {\"env\":{\"A\":\"" + strings.Repeat("x", 600<<10) + "\"}}": "invalid_argument",
	} {
		name, body, _ := strings.Cut(subject, " ")
		msg, err := nc.Request(name, []byte(body), 10*time.Second)
		if err != nil || msg.Header.Get("Nats-Service-Error-Code") != want {
			t.Errorf("%.60s: %v, %v", subject, msg, err)
		}
	}
}

// nats pub --jetstream sirocco.cmd.default.sandbox.create.my-key-1 '{"command":["…"]}'
// nats sub 'sirocco.evt.default.>'
func TestBusPublishAndFollow(t *testing.T) {
	t.Parallel()
	nc, js := busClient(t)
	events, err := nc.SubscribeSync("sirocco.evt.default.>")
	if err != nil {
		t.Fatal(err)
	}
	key := fmt.Sprint("my-key-", time.Now().UnixNano())
	ack, err := js.Publish(t.Context(), "sirocco.cmd.default.sandbox.create."+key, []byte(
		// An odd size has no warm one: this one is started.
		`{"command":["sh","-c","exit 4"],"tags":{"by":"`+key+`"},"resources":{"memory_limit_bytes":"187654144"}}`))
	if err != nil || ack.Stream != "SIROCCO_CMD" {
		t.Fatalf("%v, %v", ack, err)
	}
	var id string
	seen := map[string]bool{}
	deadline := time.Now().Add(30 * time.Second)
	for !seen["stopped"] {
		msg, err := events.NextMsg(time.Until(deadline))
		if err != nil {
			t.Fatalf("%v; seen: %v", err, seen)
		}
		var fact map[string]any
		if err := json.Unmarshal([]byte(msg.Header.Get("Sirocco-Fact")), &fact); err != nil {
			t.Fatalf("the fact %q: %v", msg.Header.Get("Sirocco-Fact"), err)
		}
		found := idForm.FindString(msg.Subject)
		if id == "" && bytes.Contains(msg.Data, []byte(key)) {
			id = found
		}
		if found == id && id != "" {
			seen[msg.Header.Get("Sirocco-Event")] = true
		}
	}
	for _, state := range []string{"accepted", "placed", "starting", "running", "stopped"} {
		if !seen[state] {
			t.Errorf("no event %q: %v", state, seen)
		}
	}
	// The same key again is the same sandbox, also through the other door.
	s, err := client(t).Open(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if end := awaitEnd(t, s); end.GetExitCode() != 4 {
		t.Errorf("got %v", end)
	}
	req := s.Record.GetSpec()
	req.IdempotencyKey = key
	again, err := client(t).Create(t.Context(), req)
	if err != nil || again.ID != id || !again.Existed {
		t.Errorf("the same key over HTTP: %v, %v", again, err)
	}
	// What cannot be understood is an event and a dead letter, not silence.
	if _, err := js.Publish(t.Context(), "sirocco.cmd.default.sandbox.create."+key+"-bad", []byte(`{"comand":["x"]}`)); err != nil {
		t.Fatal(err)
	}
	for {
		msg, err := events.NextMsg(10 * time.Second)
		if err != nil {
			t.Fatalf("no event of the refused command: %v", err)
		}
		if msg.Subject == "sirocco.evt.default.command."+key+"-bad" && msg.Header.Get("Sirocco-Event") == "rejected" {
			break
		}
	}
}

// The events over HTTP as server-sent events, replayed from the first.
func TestEventsOverHTTP(t *testing.T) {
	t.Parallel()
	s := create(t, nil)
	if _, err := s.Terminate(t.Context(), "replay"); err != nil {
		t.Fatal(err)
	}
	resp := rest(t, "GET", "/v1/events?from=1&id="+s.ID, "", up.Key)
	defer func() { _ = resp.Body.Close() }()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if strings.Contains(lines.Text(), s.ID) && strings.Contains(lines.Text(), "STATE_STOPPED") {
			return
		}
	}
	t.Error("the end was not replayed")
}
