package agent

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strings"

	"github.com/sirocco-run/sirocco/pkg/link"
	"github.com/sirocco-run/sirocco/proto/gen/sirocco/v1/siroccov1connect"
)

// machineKey finds the machine of a stream of the data services in the context of its
// calls.
type machineKey struct{}

// streamContext is http.Server.ConnContext.
func streamContext(ctx context.Context, c net.Conn) context.Context {
	if t, ok := c.(*trackedConn); ok && t.machine != nil {
		return context.WithValue(ctx, machineKey{}, t.machine)
	}
	return ctx
}

// counted makes calls of the data services known to moves. A call that comes when the
// door is shut is not made; what one would answer that the sandbox left behind is not
// told, because it is not the sandbox that says so.
func counted(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m, _ := r.Context().Value(machineKey{}).(*machine)
		if m == nil {
			next.ServeHTTP(w, r)
			return
		}
		end, ok := m.beginCall(waits(r))
		if !ok {
			w.Header().Set(link.HeaderLeaving, "true")
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		defer end()
		a := &answer{ResponseWriter: w, m: m}
		next.ServeHTTP(a, r)
		if a.dropped {
			panic(http.ErrAbortHandler) // the relay asks again where the sandbox is
		}
	})
}

// beginCall joins a call, which a move waits for or not; false if the door is shut.
func (m *machine) beginCall(waits bool) (end func(), ok bool) {
	t := &m.traffic
	t.mu.Lock()
	defer t.mu.Unlock()
	if m.closed() {
		return nil, false
	}
	if !waits {
		return func() {}, true
	}
	t.calls++
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.calls--
		t.ease()
	}, true
}

// waits says whether a move waits for a call. It does not for those that may take as
// long as a process does: who makes them takes them up again.
func waits(r *http.Request) bool {
	switch r.URL.Path {
	case siroccov1connect.ExecServiceAttachProcedure, siroccov1connect.ExecServiceReadOutputProcedure,
		siroccov1connect.ExecServiceWaitProcedure, siroccov1connect.ExecServiceStdinProcedure,
		siroccov1connect.FileServiceWatchProcedure, siroccov1connect.LogServiceReadProcedure:
		return false
	}
	// REST: of an exec or the logs, whatever is only read.
	rest, is := strings.CutPrefix(r.URL.Path, "/v1/sandboxes/")
	if !is {
		return true
	}
	_, what, _ := strings.Cut(rest, "/")
	return strings.HasPrefix(what, "files") || r.Method != http.MethodGet && !strings.HasSuffix(what, "/stdin")
}

// answer drops what is answered for a sandbox that has left.
type answer struct {
	http.ResponseWriter
	m       *machine
	dropped bool
}

var errLeft = errors.New("the sandbox has left")

// WriteHeader sends the head.
func (a *answer) WriteHeader(status int) {
	if a.dropped = a.dropped || a.m.departed(); !a.dropped {
		a.ResponseWriter.WriteHeader(status)
	}
}

// Write sends a part of the body.
func (a *answer) Write(b []byte) (int, error) {
	if a.dropped = a.dropped || a.m.departed(); a.dropped {
		return 0, errLeft
	}
	return a.ResponseWriter.Write(b)
}

// Flush is for streams; they look for it.
func (a *answer) Flush() {
	if !a.dropped {
		_ = http.NewResponseController(a.ResponseWriter).Flush()
	}
}

// Unwrap is for http.ResponseController.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }
