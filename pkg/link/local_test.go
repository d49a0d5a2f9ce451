package link

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/sirocco-run/sirocco/pkg/fault"
	"golang.org/x/sys/unix"
)

// shortDir is a folder whose sockets' paths are not too long, however long the
// test's name is.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "link")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return filepath.Join(dir, "l")
}

func listenLocal(t testing.TB, dir string) net.Listener {
	t.Helper()
	local, err := ListenLocal(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = local.Close() })
	return local
}

// serveBoth runs an agent's end at an address and on a local socket. The stop
// functions end one each.
func serveBoth(t testing.TB, cfg *tls.Config, handle Handler) (address, socket string, stopTLS, stopLocal func()) {
	t.Helper()
	address, stopTLS = serve(t, cfg, "127.0.0.1:0", handle)
	local := listenLocal(t, shortDir(t))
	return address, local.Addr().String(), stopTLS, serveOn(t, local, cfg, handle)
}

// isLocal says whether a stream goes by a local socket.
func isLocal(c *Conn) bool { return c.Session().LocalAddr().Network() == "unix" }

func wantEcho(t testing.TB, c *Conn, local bool) {
	t.Helper()
	if isLocal(c) != local {
		t.Errorf("the stream goes by the local socket: %v, want %v", isLocal(c), local)
	}
	payload := bytes.Repeat([]byte("0123456789"), 50<<10) // more than a window
	go func() { _, _ = c.Write(payload); _ = c.CloseWrite() }()
	if body, err := io.ReadAll(c); err != nil || !bytes.Equal(body, payload) {
		t.Errorf("read %d bytes, %v", len(body), err)
	}
}

func TestLocalSocketIsPreferred(t *testing.T) {
	server, client := keys(t)
	address, socket, _, _ := serveBoth(t, server, echo)
	d := dialer(t, client)
	before := open(t, d, address, Header{Kind: KindPort})
	d.Local(address, socket)
	wantEcho(t, open(t, d, address, Header{Kind: KindPort}), true)
	wantEcho(t, before, false) // it stays where it is, and whole
	_ = before.Close()
	d.Local(address, "")
	c := open(t, d, address, Header{Kind: KindPort}) // either connection is good
	wantEcho(t, c, isLocal(c))
}

// Once nothing uses the connections that were there before the socket, they go.
func TestOutdatedConnectionsAreClosed(t *testing.T) {
	server, client := keys(t)
	address, socket, _, _ := serveBoth(t, server, echo)
	d := dialer(t, client)
	before := open(t, d, address, Header{Kind: KindPort})
	d.Local(address, socket)
	open(t, d, address, Header{Kind: KindPort})
	if before.Session().IsClosed() {
		t.Fatal("a connection with a stream was closed")
	}
	wantEcho(t, before, false)
	_ = before.Close()
	for before.Session().NumStreams() > 0 { // the peer's end is on its way
		open(t, d, address, Header{Kind: KindPort})
	}
	open(t, d, address, Header{Kind: KindPort})
	if !before.Session().IsClosed() {
		t.Error("the connection by TLS is kept for nothing")
	}
}

func TestMutualTLSWhereTheSocketIsNoUse(t *testing.T) {
	server, client := keys(t)
	address, _ := serve(t, server, "127.0.0.1:0", echo)
	plain := func(answer func(net.Conn)) string {
		listener, err := net.Listen("unix", shortDir(t))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = listener.Close() })
		go func() {
			for {
				c, err := listener.Accept()
				if err != nil {
					return
				}
				answer(c)
			}
		}()
		return listener.Addr().String()
	}
	stale := listenLocal(t, shortDir(t))
	stale.(*net.UnixListener).SetUnlinkOnClose(false)
	_ = stale.Close()
	for name, socket := range map[string]string{
		"missing":       filepath.Join(t.TempDir(), "none"),
		"left behind":   stale.Addr().String(),
		"refusing":      plain(func(c net.Conn) { _ = c.Close() }),
		"another thing": plain(func(c net.Conn) { _, _ = c.Write([]byte("220 ready")); _ = c.Close() }),
		"silent":        plain(func(c net.Conn) { t.Cleanup(func() { _ = c.Close() }) }),
		"too long":      "/" + strings.Repeat("x", 200),
	} {
		t.Run(name, func(t *testing.T) {
			d := dialer(t, client)
			d.Local(address, socket)
			wantEcho(t, open(t, d, address, Header{Kind: KindPort}), false)
		})
	}
}

// What an agent refuses it refuses by either way, and a stream for another epoch
// never gets to a sandbox.
func TestHeadersAreCheckedAlike(t *testing.T) {
	server, client := keys(t)
	address, socket, _, _ := serveBoth(t, server, func(ctx context.Context, h Header) (func(net.Conn), error) {
		if h.Epoch != 7 {
			return nil, NotHere(h.Sandbox, h.Epoch)
		}
		return echo(ctx, h)
	})
	for _, local := range []bool{false, true} {
		d := dialer(t, client)
		if local {
			d.Local(address, socket)
		}
		if _, err := d.Open(t.Context(), address, Header{Kind: KindPort, Sandbox: "sb-1", Epoch: 6}); !IsNotHere(err) {
			t.Errorf("local %v: an old epoch: %v", local, err)
		}
		if _, err := d.Open(t.Context(), address, Header{Kind: "odd", Epoch: 7}); fault.CodeOf(err) != fault.Internal {
			t.Errorf("local %v: an unknown kind: %v", local, err)
		}
		wantEcho(t, open(t, d, address, Header{Kind: KindPort, Sandbox: "sb-1", Epoch: 7}), local)
	}
}

// The next agent replaces what the last one left, also one that was killed; a
// relay that knows the old path goes by TLS until it hears of the new one.
func TestLocalSocketAfterARestart(t *testing.T) {
	server, client := keys(t)
	address, _ := serve(t, server, "127.0.0.1:0", echo)
	dir := shortDir(t)
	first := listenLocal(t, dir)
	first.(*net.UnixListener).SetUnlinkOnClose(false) // as if it were killed
	stop := serveOn(t, first, server, echo)
	d := dialer(t, client)
	d.Local(address, first.Addr().String())
	wantEcho(t, open(t, d, address, Header{Kind: KindPort}), true)
	stop()
	second := listenLocal(t, dir)
	serveOn(t, second, server, echo)
	if files, err := os.ReadDir(dir); err != nil || len(files) != 1 {
		t.Errorf("%d sockets are in the folder, %v", len(files), err)
	}
	wantEcho(t, open(t, d, address, Header{Kind: KindPort}), false)
	d.Local(address, second.Addr().String())
	wantEcho(t, open(t, d, address, Header{Kind: KindPort}), true)
}

func TestOnlyTheOwnUserIsLetIn(t *testing.T) {
	own := ownUser()
	local := listenLocal(t, shortDir(t))
	path := local.Addr().String()
	for name, at := range map[string]os.FileMode{filepath.Dir(path): 0o700 | os.ModeDir, path: 0o600 | os.ModeSocket} {
		if info, err := os.Lstat(name); err != nil || info.Mode() != at {
			t.Errorf("%s has the mode %v, %v; want %v", name, info.Mode(), err, at)
		}
	}
	refused := make(chan error, 1)
	accept := func(want uint32) {
		c, err := local.Accept()
		if err == nil {
			c, err = admit(t.Context(), c.(*net.UnixConn), want)
		}
		if err == nil {
			_ = c.Close()
		}
		refused <- err
	}
	// The agent expects another user than the one who comes.
	go accept(own + 1)
	if c, err := dialLocal(t.Context(), path, own); err == nil {
		_ = c.Close()
		t.Error("the dialer takes it that it was let in")
	}
	if err := <-refused; err == nil || !strings.Contains(err.Error(), "the peer is user") {
		t.Errorf("the agent let another user in: %v", err)
	}
	// The relay expects another user than the one who listens.
	go accept(own)
	if c, err := dialLocal(t.Context(), path, own+1); err == nil {
		_ = c.Close()
		t.Error("the dialer believes another user")
	}
	<-refused // it was welcome, and has left
}

func TestALongPathIsNotOffered(t *testing.T) {
	deep := filepath.Join(t.TempDir(), strings.Repeat("x", 100))
	if _, err := ListenLocal(deep); !errors.Is(err, ErrLongPath) {
		t.Errorf("listen: %v", err)
	}
	if _, err := os.Stat(deep); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("something was made: %v", err)
	}
}

// A process of another user is refused by its user, even where folder and socket
// are open to it.
func TestAnotherUserIsRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test becomes another user: run it as root")
	}
	local := listenLocal(t, shortDir(t))
	path := local.Addr().String()
	for _, p := range []string{filepath.Dir(filepath.Dir(path)), filepath.Dir(path), path} {
		if err := os.Chmod(p, 0o777); err != nil { //nolint:gosec // that is the point
			t.Fatal(err)
		}
	}
	entered := make(chan struct{}, 1)
	server, _ := keys(t)
	serveOn(t, local, server, func(context.Context, Header) (func(net.Conn), error) {
		entered <- struct{}{}
		return func(net.Conn) {}, nil
	})
	said := make(chan error, 1)
	go func() {
		// The thread has the other user, and ends with this goroutine.
		runtime.LockOSThread()
		const nobody = 65534
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, nobody, nobody, nobody); errno != 0 {
			said <- fmt.Errorf("become another user: %w", errno)
			return
		}
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			said <- err
			return
		}
		defer func() { _ = unix.Close(fd) }()
		if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
			said <- fmt.Errorf("the socket should let it connect: %w", err)
			return
		}
		n, err := unix.Read(fd, make([]byte, 1))
		if n > 0 {
			err = errors.New("it was let in")
		}
		if errors.Is(err, unix.ECONNRESET) {
			err = nil
		}
		said <- err
	}()
	if err := <-said; err != nil {
		t.Error(err)
	}
	if len(entered) != 0 {
		t.Error("a stream of another user came through")
	}
}

// A welcome that does not come is not waited for longer than the context says.
func TestWelcomeEndsWithContext(t *testing.T) {
	local := listenLocal(t, shortDir(t))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if c, err := dialLocal(ctx, local.Addr().String(), ownUser()); err == nil {
		_ = c.Close()
		t.Error("nobody has said welcome")
	}
}
