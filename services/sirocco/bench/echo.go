package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"
	sirocco "github.com/sirocco-run/sirocco/sdk/go"
)

const (
	// echoPort is where the echo server listens in a sandbox.
	echoPort = 8001
	// echoPath is where this program is put there.
	echoPath = "/tmp/sirocco"
	// dials is how many WebSockets are being opened at a time.
	dials = 32
	// dialTimeout bounds each.
	dialTimeout = 30 * time.Second
)

// ServeEcho answers each WebSocket message at an address with the same, until ctx
// ends.
func ServeEcho(ctx context.Context, address string) error {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", address)
	if err != nil {
		return err
	}
	server := &http.Server{ReadHeaderTimeout: dialTimeout, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
		if err != nil {
			return
		}
		defer func() { _ = c.CloseNow() }()
		for {
			kind, message, err := c.Read(r.Context())
			if err != nil || c.Write(r.Context(), kind, message) != nil {
				return
			}
		}
	})}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// startEcho puts this program into a sandbox, starts its echo server and returns
// the address of its tunnel.
func startEcho(ctx context.Context, s *sirocco.Sandbox) (string, error) {
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		return "", fmt.Errorf("start the echo server: %w", err)
	}
	defer self.Close()
	if _, err := s.WriteFile(ctx, echoPath, self, sirocco.WriteOptions{Mode: 0o755}); err != nil {
		return "", fmt.Errorf("put the echo server into the sandbox: %w", err)
	}
	if _, err := s.Start(ctx, sirocco.Command{Args: []string{echoPath, "bench", "serve", fmt.Sprintf(":%d", echoPort)}}); err != nil {
		return "", fmt.Errorf("start the echo server: %w", err)
	}
	for _, t := range s.Record.GetTunnels() {
		if t.GetPort() == echoPort {
			return "wss" + strings.TrimPrefix(t.GetUrl(), "https"), nil
		}
	}
	return "", errors.New("start the echo server: its port is not published")
}

// echoes are open WebSockets.
type echoes struct {
	mu  sync.Mutex
	all []*websocket.Conn
}

func (e *echoes) count() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.all)
}

func (e *echoes) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, c := range e.all {
		_ = c.CloseNow()
	}
}

// openEchoes opens the WebSockets and asks each for an echo. It always returns
// those that are open.
func (m *tunnelRun) openEchoes(ctx context.Context, url string) (*echoes, error) {
	e := &echoes{}
	client := httpClient(0, m.Tunnels.tls, dialTCP)
	// The server has just been started.
	if err := m.dialUntil(ctx, e, client, url); err != nil {
		return e, err
	}
	each(ctx, m.cfg.WebSockets-1, dials, func(int) {
		if !m.failures.Add(e.dial(ctx, client, url)) {
			m.Progress.Say("tunnel: %d of %d WebSockets open", e.count(), m.cfg.WebSockets)
		}
	})
	return e, ctx.Err()
}

func (m *tunnelRun) dialUntil(ctx context.Context, e *echoes, client *http.Client, url string) error {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	for {
		err := e.dial(ctx, client, url)
		if err == nil || !until(ctx, time.Now().Add(50*time.Millisecond)) {
			return err
		}
	}
}

func (e *echoes) dial(ctx context.Context, client *http.Client, url string) error {
	dctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	c, resp, err := websocket.Dial(dctx, url, &websocket.DialOptions{HTTPClient: client})
	if err != nil {
		return fmt.Errorf("open a WebSocket: %w", err)
	}
	if resp.Body != nil {
		defer resp.Body.Close()
	}
	if err := echoOnce(dctx, c); err != nil {
		_ = c.CloseNow()
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, c)
	return nil
}

func echoOnce(ctx context.Context, c *websocket.Conn) error {
	if err := c.Write(ctx, websocket.MessageText, []byte("ping")); err != nil {
		return fmt.Errorf("ask a WebSocket: %w", err)
	}
	_, got, err := c.Read(ctx)
	if err != nil {
		return fmt.Errorf("ask a WebSocket: %w", err)
	}
	if string(got) != "ping" {
		return fmt.Errorf("a WebSocket echoed %q", got)
	}
	return nil
}

// ask asks each for an echo once more.
func (e *echoes) ask(ctx context.Context) error {
	e.mu.Lock()
	all := e.all
	e.mu.Unlock()
	var failures Failures
	each(ctx, len(all), dials, func(i int) {
		actx, cancel := context.WithTimeout(ctx, dialTimeout)
		defer cancel()
		failures.Add(echoOnce(actx, all[i]))
	})
	if _, example := failures.ByCode(); example != "" {
		return fmt.Errorf("%d WebSockets did not answer after idling: %s", failures.Count(), example)
	}
	return nil
}
