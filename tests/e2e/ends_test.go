package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	sirocco "github.com/sirocco-run/sirocco/sdk/go"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// want is the end that a sandbox must have come to.
type want struct {
	cause   siroccov1.Cause
	limit   string
	code    int32 // -1: none
	signal  string
	message string // a part of it
	// failed: it never ran.
	failed bool
}

func checkEnd(t *testing.T, s *sirocco.Sandbox, w want) *siroccov1.Sandbox {
	t.Helper()
	end := awaitEnd(t, s)
	sb, err := client(t).Get(t.Context(), s.ID)
	if err != nil {
		t.Fatal(err)
	}
	code := int32(-1)
	if end.ExitCode != nil {
		code = end.GetExitCode()
	}
	if end.GetCause() != w.cause || end.GetLimit() != w.limit || code != w.code || end.GetSignal() != w.signal || !strings.Contains(end.GetMessage(), w.message) || end.GetMessage() == "" {
		t.Errorf("%s: got %v; want %+v", s.ID, end, w)
	}
	state := siroccov1.State_STATE_STOPPED
	if w.failed {
		state = siroccov1.State_STATE_FAILED
	}
	if sb.GetState() != state {
		t.Errorf("%s: state %v, want %v", s.ID, sb.GetState(), state)
	}
	if end.GetAt().AsTime().IsZero() || end.GetAt().AsTime().After(time.Now().Add(time.Second)) {
		t.Errorf("%s: ended at %v", s.ID, end.GetAt().AsTime())
	}
	for i, h := range sb.GetHistory() {
		if i > 0 && (h.GetState() <= sb.GetHistory()[i-1].GetState() || h.GetAt().AsTime().Before(sb.GetHistory()[i-1].GetAt().AsTime())) {
			t.Errorf("%s: history %v", s.ID, sb.GetHistory())
		}
	}
	return sb
}

func TestEnds(t *testing.T) {
	t.Parallel()
	small := &siroccov1.Resources{MemoryLimitBytes: 64 << 20}
	shell := func(line string) []string { return []string{"sh", "-c", line} }
	for name, c := range map[string]struct {
		req  *siroccov1.CreateSandboxRequest
		want want
	}{
		"max_lifetime": {&siroccov1.CreateSandboxRequest{MaxLifetime: seconds(2)}, want{cause: siroccov1.Cause_CAUSE_MAX_LIFETIME, limit: "max_lifetime=2s", code: -1}},
		"idle": {&siroccov1.CreateSandboxRequest{Idle: &siroccov1.IdlePolicy{Timeout: seconds(1)}, Command: shell("sleep 1000")},
			want{cause: siroccov1.Cause_CAUSE_IDLE, limit: "idle.timeout=1s", code: -1}},
		"exited with 0":    {&siroccov1.CreateSandboxRequest{Command: shell("exit 0")}, want{cause: siroccov1.Cause_CAUSE_EXITED}},
		"exited with 3":    {&siroccov1.CreateSandboxRequest{Command: shell("exit 3")}, want{cause: siroccov1.Cause_CAUSE_EXITED, code: 3}},
		"exited with 137":  {&siroccov1.CreateSandboxRequest{Command: shell("exit 137")}, want{cause: siroccov1.Cause_CAUSE_EXITED, code: 137}},
		"ended by SIGKILL": {&siroccov1.CreateSandboxRequest{Command: shell("kill -9 $$")}, want{cause: siroccov1.Cause_CAUSE_EXITED, code: 137, signal: "SIGKILL"}},
		"ended by SIGTERM": {&siroccov1.CreateSandboxRequest{Command: shell("kill -TERM $$")}, want{cause: siroccov1.Cause_CAUSE_EXITED, code: 143, signal: "SIGTERM"}},
		"out of memory": {&siroccov1.CreateSandboxRequest{Image: visitorImage, Command: []string{"visitor", "eat"}, Resources: small},
			want{cause: siroccov1.Cause_CAUSE_OOM, limit: "memory_limit_bytes=67108864", code: 137, signal: "SIGKILL", message: "64 MiB"}},
		"out of memory in a child": {&siroccov1.CreateSandboxRequest{Image: visitorImage, Command: shell("visitor eat; sleep 1000"), Resources: small},
			want{cause: siroccov1.Cause_CAUSE_OOM, limit: "memory_limit_bytes=67108864", code: 137, signal: "SIGKILL"}},
		"no such image": {&siroccov1.CreateSandboxRequest{Image: registry.host() + "/tests/nothing:1"}, want{cause: siroccov1.Cause_CAUSE_IMAGE_ERROR, code: -1, failed: true}},
		"no such imported image": {&siroccov1.CreateSandboxRequest{Image: registry.host() + "/tests/visitor@sha256:" + strings.Repeat("0", 64)},
			want{cause: siroccov1.Cause_CAUSE_IMAGE_ERROR, code: -1, failed: true}},
		"probe that never passes": {&siroccov1.CreateSandboxRequest{Command: shell("sleep 1000"), Readiness: &siroccov1.Probe{TcpPort: 9, Timeout: seconds(1)}},
			want{cause: siroccov1.Cause_CAUSE_PROBE_FAILED, limit: "readiness.timeout=1s", code: -1, failed: true}},
		"probe command that fails": {&siroccov1.CreateSandboxRequest{Readiness: &siroccov1.Probe{Command: shell("exit 4"), Timeout: seconds(1)}},
			want{cause: siroccov1.Cause_CAUSE_PROBE_FAILED, limit: "readiness.timeout=1s", code: -1, message: "exited with 4", failed: true}},
		"command that ends before it is ready": {&siroccov1.CreateSandboxRequest{Command: shell("exit 9"), Readiness: &siroccov1.Probe{TcpPort: 9, Timeout: seconds(20)}},
			want{cause: siroccov1.Cause_CAUSE_EXITED, code: 9, failed: true}},
		"no such command":        {&siroccov1.CreateSandboxRequest{Command: []string{"no-such-program"}}, want{cause: siroccov1.Cause_CAUSE_START_ERROR, code: 127, message: "no-such-program", failed: true}},
		"no such user":           {&siroccov1.CreateSandboxRequest{Command: []string{"sh"}, User: "nobody-here"}, want{cause: siroccov1.Cause_CAUSE_START_ERROR, code: 126, message: "nobody-here", failed: true}},
		"no such folder":         {&siroccov1.CreateSandboxRequest{Command: []string{"sh"}, Workdir: "/no/such"}, want{cause: siroccov1.Cause_CAUSE_START_ERROR, code: 126, message: "/no/such", failed: true}},
		"not executable":         {&siroccov1.CreateSandboxRequest{Command: []string{"/etc/passwd"}}, want{cause: siroccov1.Cause_CAUSE_START_ERROR, code: 126, message: "/etc/passwd is not executable", failed: true}},
		"folder of another user": {&siroccov1.CreateSandboxRequest{Command: []string{"sh"}, User: "1234", Workdir: "/root"}, want{cause: siroccov1.Cause_CAUSE_START_ERROR, code: 126, message: "may not enter /root", failed: true}},
		"no capacity": {&siroccov1.CreateSandboxRequest{Resources: &siroccov1.Resources{MemoryRequestBytes: 250 << 30, MemoryLimitBytes: 250 << 30}},
			want{cause: siroccov1.Cause_CAUSE_NO_CAPACITY, limit: "node", code: -1, message: "memory on 1", failed: true}},
		"no such region": {&siroccov1.CreateSandboxRequest{Regions: []string{"mars"}}, want{cause: siroccov1.Cause_CAUSE_NO_CAPACITY, limit: "region", code: -1, failed: true}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c.req.Wait = siroccov1.Wait_WAIT_ACCEPTED
			checkEnd(t, accept(t, c.req), c.want)
		})
	}
}

func TestEndByItsUser(t *testing.T) {
	t.Parallel()
	s := create(t, nil)
	sb, err := s.Terminate(t.Context(), "enough of it")
	if err != nil || sb.GetEnd().GetCause() != siroccov1.Cause_CAUSE_USER {
		t.Fatalf("got %v, %v", sb.GetEnd(), err)
	}
	checkEnd(t, s, want{cause: siroccov1.Cause_CAUSE_USER, code: -1, message: "enough of it"})
	if again, err := s.Terminate(t.Context(), "once more"); err != nil || again.GetEnd().GetMessage() != "enough of it" {
		t.Errorf("ending it twice: %v, %v", again.GetEnd(), err)
	}
	_, err = s.Start(t.Context(), sirocco.Command{Args: []string{"true"}})
	wantCode(t, "exec after the end", err, sirocco.FailedPrecondition)
	_, err = s.Extend(t.Context(), time.Minute)
	wantCode(t, "extend after the end", err, sirocco.FailedPrecondition)
}

// Nothing is started for a client that has stopped caring.
func TestStartDeadline(t *testing.T) {
	t.Parallel()
	s := accept(t, &siroccov1.CreateSandboxRequest{
		Wait: siroccov1.Wait_WAIT_ACCEPTED, Regions: []string{"mars"}, StartDeadline: timestamppb.New(time.Now().Add(500 * time.Millisecond)),
	})
	if end := awaitEnd(t, s); end.GetCause() != siroccov1.Cause_CAUSE_DEADLINE || end.GetAt().AsTime().After(time.Now()) {
		t.Errorf("got %v", end)
	}
	_, err := client(t).Create(t.Context(), &siroccov1.CreateSandboxRequest{StartDeadline: timestamppb.New(time.Now().Add(-time.Second))})
	wantCode(t, "a deadline that has passed", err, sirocco.Deadline)
}

// The kernel kills a child at the limit, the sandbox's command is another.
func TestOutOfMemoryInAnExec(t *testing.T) {
	t.Parallel()
	s := create(t, &siroccov1.CreateSandboxRequest{Image: visitorImage, Resources: &siroccov1.Resources{MemoryLimitBytes: 64 << 20}})
	if _, err := s.Start(t.Context(), sirocco.Command{Args: []string{"visitor", "eat"}}); err != nil {
		t.Fatal(err)
	}
	checkEnd(t, s, want{cause: siroccov1.Cause_CAUSE_OOM, limit: "memory_limit_bytes=67108864", code: 137, signal: "SIGKILL"})
}

func TestBrokenArchive(t *testing.T) {
	t.Parallel()
	ref, err := registry.push("tests/broken:1", brokenImage(t))
	if err != nil {
		t.Fatal(err)
	}
	checkEnd(t, accept(t, &siroccov1.CreateSandboxRequest{Image: ref, Wait: siroccov1.Wait_WAIT_ACCEPTED}), want{cause: siroccov1.Cause_CAUSE_IMAGE_ERROR, code: -1, failed: true})
	// Whoever waits is told so.
	_, err = client(t).Create(t.Context(), &siroccov1.CreateSandboxRequest{Image: registry.host() + "/tests/not-there:1"})
	wantCode(t, "create from an image that is not there", err, sirocco.ImageNotFound)
}

// An exec that runs and a tunnel that is used keep a sandbox from being idle, if
// they count.
func TestWhatCountsAsActivity(t *testing.T) {
	t.Parallel()
	const timeout = 1500 * time.Millisecond
	request := func(activity ...siroccov1.Activity) *siroccov1.CreateSandboxRequest {
		return &siroccov1.CreateSandboxRequest{
			Image: visitorImage, Command: []string{"visitor", "http", "8000"}, Ports: []*siroccov1.Port{{Port: 8000}},
			Idle: &siroccov1.IdlePolicy{Timeout: seconds(timeout.Seconds()), Activity: activity},
		}
	}
	// Each keeps one kind of activity up for three timeouts.
	exec := func(t *testing.T, s *sirocco.Sandbox) {
		_, err := s.Run(t.Context(), sirocco.Command{Args: []string{"sleep", fmt.Sprint(3 * timeout.Seconds())}})
		if sb, gerr := client(t).Get(t.Context(), s.ID); gerr != nil || err == nil && sb.GetEnd() != nil {
			t.Errorf("%v, %v, %v", sb, gerr, err)
		}
	}
	tunnel := func(t *testing.T, s *sirocco.Sandbox) {
		c := httpClient(t)
		stop := time.After(3 * timeout)
		tick := time.NewTicker(timeout / 5)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				resp, err := c.Get(s.Record.GetTunnels()[0].GetUrl() + "hello")
				if err != nil {
					t.Fatal(err)
				}
				_ = resp.Body.Close()
			}
		}
	}
	for name, c := range map[string]struct {
		activity []siroccov1.Activity
		do       func(*testing.T, *sirocco.Sandbox)
		keeps    bool
	}{
		"exec counts":          {[]siroccov1.Activity{siroccov1.Activity_ACTIVITY_EXEC}, exec, true},
		"exec does not count":  {[]siroccov1.Activity{siroccov1.Activity_ACTIVITY_TUNNEL}, exec, false},
		"tunnel counts":        {[]siroccov1.Activity{siroccov1.Activity_ACTIVITY_TUNNEL}, tunnel, true},
		"tunnel doesn't count": {[]siroccov1.Activity{siroccov1.Activity_ACTIVITY_EXEC}, tunnel, false},
		"both count by default": {nil, func(t *testing.T, s *sirocco.Sandbox) {
			exec(t, s)
			tunnel(t, s)
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := create(t, request(c.activity...))
			began := time.Now()
			c.do(t, s)
			end := awaitEnd(t, s)
			lived := end.GetAt().AsTime().Sub(began)
			if end.GetCause() != siroccov1.Cause_CAUSE_IDLE || (lived > 3*timeout-timeout/4) != c.keeps {
				t.Errorf("after %v: %v", lived, end)
			}
		})
	}
}

func TestExtendAndDeadline(t *testing.T) {
	t.Parallel()
	s := create(t, &siroccov1.CreateSandboxRequest{MaxLifetime: seconds(60)})
	sb, err := s.Extend(t.Context(), 2*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	deadline := sb.GetDesired().GetDeadline().AsTime()
	end := awaitEnd(t, s)
	if late := end.GetAt().AsTime().Sub(deadline); end.GetCause() != siroccov1.Cause_CAUSE_MAX_LIFETIME || late < 0 || late > 5*time.Second {
		t.Errorf("ended %v after its deadline: %v", late, end)
	}
	_, err = create(t, nil).Extend(t.Context(), 25*time.Hour)
	wantCode(t, "extend past 24 h", err, sirocco.InvalidArgument)
}
