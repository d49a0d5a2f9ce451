package agent

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/sirocco-run/sirocco/pkg/link"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/sirocco-run/sirocco/proto/gen/sirocco/v1/siroccov1connect"
)

func TestCallsOfTheDataServices(t *testing.T) {
	x := newCrossing(t, func(net.Conn) {})
	finish := make(chan struct{})
	server := httptest.NewUnstartedServer(counted(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).Flush()
		<-finish
		_, _ = io.WriteString(w, "done")
	})))
	server.Config.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		return streamContext(ctx, &trackedConn{Conn: c, machine: x.machine})
	}
	server.Start()
	t.Cleanup(server.Close)
	call := func(path string) *http.Response {
		t.Helper()
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL+path, nil)
		resp, err := server.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = resp.Body.Close() })
		return resp
	}
	x.is(siroccov1.State_STATE_MIGRATING)
	attached := call(siroccov1connect.ExecServiceAttachProcedure)
	x.underWay(0)
	short := call(siroccov1connect.ExecServiceStartProcedure)
	x.underWay(1)
	done := make(chan int, 1)
	go func() { done <- x.quiet(t.Context(), 20*time.Second) }()
	finish <- struct{}{}
	finish <- struct{}{}
	if n := <-done; n != 0 {
		t.Fatalf("%d under way", n)
	}
	for _, resp := range []*http.Response{attached, short} {
		if body, err := io.ReadAll(resp.Body); string(body) != "done" || err != nil {
			t.Errorf("%q, %v", body, err)
		}
	}
	if resp := call(siroccov1connect.ExecServiceAttachProcedure); resp.Header.Get(link.HeaderLeaving) == "" || resp.StatusCode != 503 {
		t.Errorf("with the door shut: %v", resp)
	}
	x.is(siroccov1.State_STATE_RUNNING)
	attached = call(siroccov1connect.ExecServiceAttachProcedure)
	x.is(siroccov1.State_STATE_MIGRATING)
	close(x.gone) // what is here of it is destroyed
	close(finish)
	if body, err := io.ReadAll(attached.Body); err == nil {
		t.Errorf("what the sandbox left behind has answered %q", body)
	}
}

func TestWhichCallsAMoveWaitsFor(t *testing.T) {
	for call, want := range map[string]bool{
		"POST " + siroccov1connect.ExecServiceStartProcedure:  true,
		"POST " + siroccov1connect.ExecServiceAttachProcedure: false,
		"POST " + siroccov1connect.ExecServiceWaitProcedure:   false,
		"POST " + siroccov1connect.FileServiceWriteProcedure:  true,
		"POST " + siroccov1connect.FileServiceReadProcedure:   true,
		"POST " + siroccov1connect.FileServiceWatchProcedure:  false,
		"POST " + siroccov1connect.LogServiceReadProcedure:    false,
		"POST /v1/sandboxes/sb-x/execs":                       true,
		"GET /v1/sandboxes/sb-x/execs/e":                      false,
		"GET /v1/sandboxes/sb-x/execs/e/output":               false,
		"POST /v1/sandboxes/sb-x/execs/e/stdin":               false,
		"POST /v1/sandboxes/sb-x/execs/e/signal":              true,
		"GET /v1/sandboxes/sb-x/files/content":                true,
		"PUT /v1/sandboxes/sb-x/files/content":                true,
		"GET /v1/sandboxes/sb-x/logs":                         false,
	} {
		method, path, _ := strings.Cut(call, " ")
		if got := waits(httptest.NewRequest(method, path, nil)); got != want {
			t.Errorf("%s: %t", call, got)
		}
	}
}
