package guest

import (
	"context"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// wrote returns what a simulated exec has written so far.
func wrote(s *SimServer, id string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return string(s.execs[id].out[Stdout])
}

// TestSimMoves: what a simulated sandbox did before it was saved, its copy goes on with,
// later by as long as the move took; what was saved goes on, too.
func TestSimMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := NewSimServer([]byte("secret"))
		if err := source.configure(Setup{Hostname: "mine", Env: []string{"A=b\xff"}}); err != nil {
			t.Fatal(err)
		}
		for id, r := range map[string]StartRequest{
			"main":  {Command: []string{"sh", "-c", "echo one; sleep 10; echo two; exit 7"}},
			"late":  {Command: []string{"sleep", "infinity"}, Timeout: 20 * time.Second},
			"input": {Command: []string{"cat"}, Stdin: true},
			"env":   {Command: []string{"sh", "-c", "hostname; printenv A"}},
		} {
			r.ID = id
			if _, err := source.start(&r); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := source.stdin("input", 0, []byte("abc"), false); err != nil {
			t.Fatal(err)
		}
		if _, err := source.Save(); err == nil {
			t.Error("saved while it runs")
		}
		<-time.After(4 * time.Second)
		source.Pause()
		source.Pause()
		state, err := source.Save()
		if err != nil {
			t.Fatal(err)
		}
		// Nothing happens meanwhile, to none of them.
		<-time.After(time.Minute)
		copied, err := LoadSimServer([]byte("secret"), state)
		if err != nil {
			t.Fatal(err)
		}
		<-time.After(time.Minute)
		for name, s := range map[string]*SimServer{"copy": copied, "original": source} {
			s.Resume()
			s.Resume()
			resumed := time.Now()
			if got := wrote(s, "main"); got != "one\n" {
				t.Errorf("%s: main has written %q", name, got)
			}
			if got := wrote(s, "env"); got != "mine\nb\xff\n" {
				t.Errorf("%s: env has written %q", name, got)
			}
			if taken, err := s.stdin("input", 0, []byte("abcdef"), true); err != nil || taken != 6 {
				t.Errorf("%s: input: %d, %v", name, taken, err)
			}
			if got := wrote(s, "input"); got != "abcdef" {
				t.Errorf("%s: input has written %q", name, got)
			}
			<-time.After(time.Hour)
			for id, want := range map[string]End{
				"main": {Code: 7, At: resumed.Add(6 * time.Second)},
				"late": {Code: 124, Signal: "SIGKILL", TimedOut: true, At: resumed.Add(16 * time.Second)},
			} {
				if x := s.view(id); x == nil || x.End == nil || !x.End.At.Equal(want.At) || x.End.Code != want.Code || x.End.TimedOut != want.TimedOut {
					t.Errorf("%s: %s ended as %+v, want %+v", name, id, x.End, want)
				}
			}
			if got := wrote(s, "main"); got != "one\ntwo\n" {
				t.Errorf("%s: main has written %q", name, got)
			}
		}
		if _, err := LoadSimServer(nil, state[:len(state)/2]); err == nil {
			t.Error("half a state was loaded")
		}
	})
}

// TestSimPauseHoldsRequests: a paused one answers nobody, until it goes on or is gone.
func TestSimPauseHoldsRequests(t *testing.T) {
	for name, end := range map[string]func(*SimServer){"resume": (*SimServer).Resume, "kill": (*SimServer).Kill} {
		s := NewSimServer([]byte("secret"))
		served := make(chan error, 1)
		c, err := Dial(t.Context(), func(context.Context) (net.Conn, error) {
			client, server := net.Pipe()
			go func() { served <- s.Serve(server) }()
			return client, nil
		}, []byte("secret"))
		if err != nil {
			t.Fatal(err)
		}
		s.Pause()
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		if _, err := c.Ping(ctx); err == nil {
			t.Errorf("%s: a paused one answers", name)
		}
		cancel()
		end(s)
		if _, err := c.Ping(t.Context()); (err == nil) != (name == "resume") {
			t.Errorf("%s: ping: %v", name, err)
		}
		_ = c.Close()
		// Every handler has returned.
		<-served
	}
}
