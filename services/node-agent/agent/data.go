package agent

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/guest"
	"github.com/sirocco-run/sirocco/pkg/link"
	"github.com/sirocco-run/sirocco/pkg/rpc"
	"github.com/sirocco-run/sirocco/pkg/runtime"
	"github.com/sirocco-run/sirocco/pkg/token"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/sirocco-run/sirocco/proto/gen/sirocco/v1/siroccov1connect"
	"go.opentelemetry.io/otel/metric"
)

// data serves what comes over the link: tunnels to ports of sandboxes, and the
// data services.
type data struct {
	agent  *Agent
	server *http.Server
	conns  *connListener
}

const (
	// uploadPause is how long an upload may bring nothing: what makes the file
	// may be slow.
	uploadPause = 5 * time.Minute
	// maxListing bounds the listing of a folder over REST, in bytes.
	maxListing = 256 << 20
)

func (a *Agent) newData() (*data, error) {
	contract, err := rpc.New(rpc.Config{Log: a.log, Tracer: a.env.Tracer, Meter: a.env.Meter, BodyTime: uploadPause})
	if err != nil {
		return nil, err
	}
	s := &services{agent: a}
	opts := contract.Options(0)
	routes, err := contract.Routes(
		rpc.NewService(siroccov1connect.NewExecServiceHandler(execService{s}, opts)),
		rpc.NewService(siroccov1connect.NewFileServiceHandler(fileService{s}, opts)).Answers(maxListing),
		rpc.NewService(siroccov1connect.NewLogServiceHandler(logService{s}, opts)),
	)
	if err != nil {
		return nil, err
	}
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	return &data{
		agent: a, conns: newConnListener(),
		server: &http.Server{
			Handler: counted(contract.Door(routes.Serve)), ConnContext: streamContext,
			Protocols: &protocols, ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: 64 << 10,
		},
	}, nil
}

// run serves the data services until ctx ends.
func (d *data) run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		sctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if d.server.Shutdown(sctx) != nil {
			_ = d.server.Close()
		}
	})
	defer stop()
	if err := d.server.Serve(d.conns); !errors.Is(err, http.ErrServerClosed) && ctx.Err() == nil {
		return err
	}
	return nil
}

// handle prepares one stream of a relay.
func (d *data) handle(ctx context.Context, h link.Header) (func(net.Conn), error) {
	if h.Kind != link.KindData {
		return d.tunnel(ctx, h)
	}
	// Without a machine there may still be what was kept of the sandbox's output.
	m := d.agent.find(h.Sandbox)
	switch {
	case m == nil || m.tenant != h.Tenant:
		m = nil
	case m.epoch != h.Epoch:
		return nil, link.NotHere(h.Sandbox, h.Epoch)
	case m.closed():
		return nil, link.Leaving(h.Sandbox)
	case m.fenced():
		return nil, m.errFenced()
	}
	return func(c net.Conn) { d.conns.serve(c, m) }, nil
}

// tunnel connects a stream with a port of a sandbox. The caller must know the
// epoch that runs here.
func (d *data) tunnel(ctx context.Context, h link.Header) (func(net.Conn), error) {
	m := d.agent.find(h.Sandbox)
	if m == nil || m.tenant != h.Tenant || m.epoch != h.Epoch {
		return nil, link.NotHere(h.Sandbox, h.Epoch)
	}
	home := m.home()
	if home == nil {
		return nil, errStarting()
	}
	if m.closed() {
		return nil, link.Leaving(h.Sandbox)
	}
	if m.fenced() {
		return nil, m.errFenced()
	}
	inside, err := home.sandbox.Dial(ctx, h.Port)
	switch {
	case errors.Is(err, runtime.ErrRefused):
		return nil, link.NothingListens(h.Port)
	case errors.Is(err, runtime.ErrNotFound):
		return nil, link.NotHere(h.Sandbox, h.Epoch)
	case err != nil:
		return nil, fault.New(fault.Unavailable, "the port can't be reached: %w", err)
	}
	return func(outside net.Conn) {
		m.splice(ctx, outside, inside, h)
	}, nil
}

// copyBuffers are shared by all tunnels; what one holds goes as one message.
var copyBuffers = sync.Pool{New: func() any { b := make([]byte, link.Piece); return &b }}

// splice copies in both directions until both have ended, passing on half
// closes, and counts the bytes as activity, and as requests if that is what the
// stream carries.
func (m *machine) splice(ctx context.Context, outside, inside net.Conn, h link.Header) {
	defer func() { _ = inside.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = inside.Close(); _ = outside.Close() })
	defer stop()
	f := m.join(h)
	defer f.leave()
	done := make(chan struct{})
	go func() {
		defer close(done)
		endHalf(inside, m.pump(ctx, inside, outside, inward, f.inward))
	}()
	err := m.pump(ctx, outside, inside, outward, func(b []byte) bool { f.outward(b); return true })
	f.end(ctx, outside, done)
	endHalf(outside, err)
	<-done
}

// errUnheard ends a stream whose last bytes were not let in.
var errUnheard = errors.New("the sandbox takes no requests now")

// pump copies what pass lets through, until either side ends: io.EOF if from has ended
// well.
func (m *machine) pump(ctx context.Context, to, from net.Conn, direction metric.AddOption, pass func([]byte) bool) error {
	buf, _ := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(buf)
	for {
		n, err := from.Read(*buf)
		if m.fenced() {
			return m.errFenced()
		}
		if n > 0 {
			if !pass((*buf)[:n]) {
				breakOff(from, link.BrokeUnheard)
				return errUnheard
			}
			m.active.touch(siroccov1.Activity_ACTIVITY_TUNNEL, time.Now())
			m.agent.metrics.transferred(ctx, direction, int64(n))
			if _, werr := to.Write((*buf)[:n]); werr != nil {
				_ = from.Close() // the reader is gone: the writer must learn of it
				return werr
			}
		}
		if err != nil {
			return err
		}
	}
}

// endHalf passes on how the direction to a connection has ended.
func endHalf(to net.Conn, err error) {
	if half, ok := to.(interface{ CloseWrite() error }); ok && errors.Is(err, io.EOF) {
		_ = half.CloseWrite()
	} else {
		_ = to.Close()
	}
}

// connListener hands streams to an http.Server as if it had accepted them.
type connListener struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newConnListener() *connListener {
	return &connListener{conns: make(chan net.Conn), done: make(chan struct{})}
}

// serve gives a stream to the server and returns when the server has closed it. m is
// the sandbox that its calls are about; nil if it is gone.
func (l *connListener) serve(c net.Conn, m *machine) {
	tracked := &trackedConn{Conn: c, machine: m, closed: make(chan struct{})}
	select {
	case l.conns <- tracked:
		<-tracked.closed
	case <-l.done:
		_ = c.Close()
	}
}

func (l *connListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *connListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *connListener) Addr() net.Addr { return &net.TCPAddr{} }

type trackedConn struct {
	net.Conn
	machine *machine
	once    sync.Once
	closed  chan struct{}
}

// Write lets nothing out of a sandbox that may run elsewhere.
func (c *trackedConn) Write(b []byte) (int, error) {
	if c.machine != nil && c.machine.fenced() {
		return 0, c.machine.errFenced()
	}
	return c.Conn.Write(b)
}

func (c *trackedConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() { close(c.closed) })
	return err
}

// services is what the data services share.
type services struct{ agent *Agent }

// admit checks the caller's token against the sandbox it names.
func (s *services) admit(h http.Header, sandboxID string) (token.Claims, error) {
	text, ok := strings.CutPrefix(h.Get("Authorization"), "Bearer ")
	if !ok {
		return token.Claims{}, fault.New(fault.Unauthenticated, "want the header Authorization: Bearer <token of the sandbox>")
	}
	claims, err := token.Check(s.agent.tokens, text, time.Now())
	if err != nil {
		return claims, err
	}
	if claims.Sandbox != sandboxID {
		return claims, fault.New(fault.PermissionDenied, "the token is for another sandbox")
	}
	return claims, nil
}

// open returns the sandbox that a call is about.
func (s *services) open(h http.Header, sandboxID string) (*machine, error) {
	claims, err := s.admit(h, sandboxID)
	if err != nil {
		return nil, err
	}
	m := s.agent.find(sandboxID)
	if m == nil || m.tenant != claims.Tenant {
		return nil, errEnded(sandboxID)
	}
	return m, nil
}

func errEnded(id string) error {
	return fault.New(fault.FailedPrecondition, "sandbox %s has ended, or has left this node", id)
}

// call does one thing with the supervisor of a sandbox. A connection that broke
// is made anew once: operations are safe to repeat unless the caller says not.
func call[T any](ctx context.Context, m *machine, do func(c *guest.Client) (T, error)) (T, error) {
	var out T
	for try := 0; ; try++ {
		client, err := m.guest(ctx)
		if err == nil {
			out, err = do(client)
		}
		if errors.Is(err, guest.ErrBroken) && try == 0 && ctx.Err() == nil && !m.over() {
			continue
		}
		return out, m.guestFault(ctx, err)
	}
}

// over says whether the sandbox has ended.
func (m *machine) over() bool {
	select {
	case <-m.gone:
		return true
	default:
	}
	home := m.home()
	return home != nil && home.dead()
}

// guestFault turns an error of the supervisor into one of the contract.
func (m *machine) guestFault(ctx context.Context, err error) error {
	var g *guest.Error
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.As(err, &g):
		f := &fault.Fault{Code: guestCode(g.Code), Message: g.Error(), Field: guestField(g.Code), Cause: err}
		if f.Field != "" && g.Text != "" {
			f.Message = g.Text
		}
		return f
	case m.departed():
		return link.Leaving(m.id)
	case m.over():
		return errEnded(m.id)
	case errors.Is(err, guest.ErrBroken), errors.Is(err, guest.ErrHandshake), errors.Is(err, runtime.ErrRefused), errors.Is(err, runtime.ErrNotFound):
		return &fault.Fault{Code: fault.Unavailable, Message: "the sandbox does not answer", RetryAfter: time.Second, Cause: err}
	}
	return err
}

// guestField is the field of a StartExec that the supervisor found bad. Clients
// tell by it and the code that a command is not there (invalid_argument), as a
// shell's 127 does, or may not be executed (permission_denied), as its 126 does.
func guestField(c guest.Code) string {
	switch c {
	case guest.CodeCommandNotFound, guest.CodeNotExecutable:
		return "command"
	case guest.CodeWorkdirMissing, guest.CodeWorkdirDenied:
		return "workdir"
	case guest.CodeUnknownUser:
		return "user"
	}
	return ""
}

func guestCode(c guest.Code) fault.Code {
	switch c {
	case guest.CodeNotFound:
		return fault.NotFound
	case guest.CodeExists:
		return fault.AlreadyExists
	case guest.CodePermission, guest.CodeNotExecutable, guest.CodeWorkdirDenied:
		return fault.PermissionDenied
	case guest.CodeNoSpace, guest.CodeNoResources, guest.CodeLimit:
		return fault.Quota
	case guest.CodeInvalid, guest.CodeCommandNotFound, guest.CodeWorkdirMissing, guest.CodeUnknownUser, guest.CodeUnsupported:
		return fault.InvalidArgument
	case guest.CodeInternal:
		return fault.Unavailable
	}
	return fault.FailedPrecondition
}
