package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/sirocco-run/sirocco/pkg/sandboxid"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	sirocco "github.com/sirocco-run/sirocco/sdk/go"
)

// web makes a sandbox with the visitor's HTTP server behind a tunnel that is
// ready, and returns it with the tunnel's URL without the last slash.
func web(t *testing.T, ports ...*siroccov1.Port) (*sirocco.Sandbox, string) {
	t.Helper()
	if len(ports) == 0 {
		ports = []*siroccov1.Port{{Port: 8000}}
	}
	s := create(t, &siroccov1.CreateSandboxRequest{
		Image: visitorImage, Command: []string{"visitor", "http", "8000"}, Ports: ports, Readiness: &siroccov1.Probe{TcpPort: 8000},
	})
	return s, strings.TrimSuffix(s.Record.GetTunnels()[0].GetUrl(), "/")
}

// fetch returns the status and the body of an answer.
func fetch(t *testing.T, c *http.Client, req *http.Request) (int, string, http.Header) {
	t.Helper()
	resp, err := c.Do(req.WithContext(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body), resp.Header
}

func get(t *testing.T, c *http.Client, address string) (int, string) {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, address, nil)
	if err != nil {
		t.Fatal(err)
	}
	status, body, _ := fetch(t, c, req)
	return status, body
}

func TestHTTPTunnel(t *testing.T) {
	t.Parallel()
	s, base := web(t)
	h2 := httpClient(t)
	h1 := &http.Client{Transport: &http.Transport{TLSClientConfig: trust(t), DialContext: dialRelay}, Timeout: time.Minute}
	t.Cleanup(h1.CloseIdleConnections)
	host := strings.TrimPrefix(base, "https://")
	if !strings.HasPrefix(host, "8000-"+s.ID+".sandbox.localhost:") {
		t.Errorf("the address is %s", base)
	}
	for name, c := range map[string]*http.Client{"HTTP/1.1": h1, "h2": h2} {
		t.Run(name, func(t *testing.T) {
			status, body := get(t, c, base+"/hello")
			if status != 200 || body != fmt.Sprintf("hello GET host=%s authorization=\"\"", host) {
				t.Errorf("%d %q", status, body)
			}
			resp, err := c.Get(base + "/proto")
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
			if want := map[string]int{"HTTP/1.1": 1, "h2": 2}[name]; resp.ProtoMajor != want {
				t.Errorf("the relay speaks %s", resp.Proto)
			}
			// A large body in both directions at once, without buffering.
			data := noise(30 << 20)
			resp, err = c.Post(base+"/echo", "application/octet-stream", bytes.NewReader(data))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = resp.Body.Close() }()
			sum := sha256.New()
			if n, err := io.Copy(sum, resp.Body); err != nil || n != int64(len(data)) || fmt.Sprintf("%x", sum.Sum(nil)) != fmt.Sprintf("%x", sha256.Sum256(data)) {
				t.Errorf("echo: %d bytes, %v", n, err)
			}
			if status, body := get(t, c, base+"/no-such-page"); status != 404 || !strings.Contains(body, "404 page not found") {
				t.Errorf("the app's own 404: %d %q", status, body)
			}
		})
	}
}

func TestServerSentEvents(t *testing.T) {
	t.Parallel()
	_, base := web(t)
	c := httpClient(t)
	resp, err := c.Get(base + "/events")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	lines := bufio.NewScanner(resp.Body)
	for n := 1; n <= 3; n++ {
		for lines.Scan() && lines.Text() == "" {
		}
		if lines.Text() != fmt.Sprint("data: ", n) {
			t.Fatalf("event %d: %q, %v", n, lines.Text(), lines.Err())
		}
		get(t, c, base+"/next") // only now may the next one come
	}
}

func TestWebSocket(t *testing.T) {
	t.Parallel()
	_, base := web(t)
	c := httpClient(t)
	c.Timeout = 0
	ws, _, err := websocket.Dial(t.Context(), base+"/ws", &websocket.DialOptions{HTTPClient: c})
	if err != nil {
		t.Fatal(err)
	}
	ws.SetReadLimit(8 << 20)
	for _, message := range [][]byte{[]byte("hello"), noise(4 << 20), {}} {
		if err := ws.Write(t.Context(), websocket.MessageBinary, message); err != nil {
			t.Fatal(err)
		}
		if _, got, err := ws.Read(t.Context()); err != nil || !bytes.Equal(got, message) {
			t.Fatalf("%d bytes came back as %d, %v", len(message), len(got), err)
		}
	}
	if err := ws.Close(websocket.StatusNormalClosure, ""); err != nil {
		t.Error(err)
	}
}

// dialTunnel connects to the address of a raw tunnel.
func dialTunnel(t *testing.T, address string) net.Conn {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	c, err := dialRelay(t.Context(), "tcp", u.Host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	return c
}

func TestRawTCPTunnel(t *testing.T) {
	t.Parallel()
	s := create(t, &siroccov1.CreateSandboxRequest{
		Image: visitorImage, Command: []string{"visitor", "tcp", "5432"}, Readiness: &siroccov1.Probe{TcpPort: 5432},
		Ports: []*siroccov1.Port{{Port: 5432, Protocol: siroccov1.Protocol_PROTOCOL_TCP}},
	})
	for range 3 {
		c := dialTunnel(t, s.Record.GetTunnels()[0].GetUrl())
		data := noise(2 << 20)
		go func() {
			_, _ = c.Write(data)
			_ = c.(*net.TCPConn).CloseWrite()
		}()
		// The end of what a client sends is passed on, and the answer after it.
		got, err := io.ReadAll(c)
		if err != nil || !bytes.Equal(got, append(data, "bye"...)) {
			t.Fatalf("%d bytes came back as %d, %v", len(data), len(got), err)
		}
	}
}

func TestTLSPassthrough(t *testing.T) {
	t.Parallel()
	s := create(t, &siroccov1.CreateSandboxRequest{
		Image: visitorImage, Command: []string{"visitor", "tls", "8443"}, Readiness: &siroccov1.Probe{TcpPort: 8443},
		Ports: []*siroccov1.Port{{Port: 8443, Protocol: siroccov1.Protocol_PROTOCOL_TLS_PASSTHROUGH}},
	})
	address := s.Record.GetTunnels()[0].GetUrl()
	host, _, _ := net.SplitHostPort(strings.TrimPrefix(address, "tls://"))
	c := tls.Client(dialTunnel(t, address), &tls.Config{ServerName: host, InsecureSkipVerify: true}) //nolint:gosec // it is looked at below
	if err := c.HandshakeContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	if name := c.ConnectionState().PeerCertificates[0].Subject.CommonName; name != "visitor" {
		t.Errorf("TLS ends at %q, not in the sandbox", name)
	}
	fmt.Fprintln(c, "hello")
	if got, err := io.ReadAll(c); err != nil || string(got) != "you said hello\n" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestTunnelToken(t *testing.T) {
	t.Parallel()
	s, base := web(t, &siroccov1.Port{Port: 8000, BearerToken: "open-sesame"})
	if !s.Record.GetTunnels()[0].GetAuthenticated() || strings.Contains(s.Record.String(), "sesame") {
		t.Errorf("the record shows %v", s.Record)
	}
	c := httpClient(t)
	for token, want := range map[string]int{"": 401, "Bearer wrong": 401, "Bearer open-sesame": 200, "Basic open-sesame": 401, "Bearer " + s.Record.GetSpec().GetPorts()[0].GetBearerToken(): 401} {
		req, _ := http.NewRequest(http.MethodGet, base+"/hello", nil)
		if token != "" {
			req.Header.Set("Authorization", token)
		}
		status, body, _ := fetch(t, c, req)
		if status != want || want == 200 && !strings.Contains(body, `authorization=""`) {
			t.Errorf("with %q: %d %s", token, status, body)
		}
	}
}

func TestErrorPages(t *testing.T) {
	t.Parallel()
	s, base := web(t, &siroccov1.Port{Port: 8000}, &siroccov1.Port{Port: 9000})
	c := httpClient(t)
	other := func(id string, port int) string {
		return strings.Replace(strings.Replace(base, s.ID, id, 1), "8000-", fmt.Sprint(port, "-"), 1)
	}
	// Within its grace a request to a port on which nothing listens yet is held.
	for name, want := range map[string]struct {
		url    string
		status int
		says   string
	}{
		// One that a relay may not have heard of yet is not denied at once.
		"no such sandbox":     {other("sb-06h08ptadhohrfkjmotnntmomk", 8000), 404, "no sandbox"},
		"perhaps a new one":   {other(sandboxid.New(), 8000), 503, "not heard of yet"},
		"not published":       {other(s.ID, 8001), 404, "8001"},
		"nothing listens":     {other(s.ID, 9000), 502, "9000"},
		"not a tunnel's name": {strings.Replace(base, "8000-", "x-", 1), 404, ""},
	} {
		req, _ := http.NewRequest(http.MethodGet, want.url, nil)
		status, body, h := fetch(t, c, req)
		if status != want.status || !strings.Contains(strings.ToLower(body), want.says) || h.Get("Sirocco-Error") == "" {
			t.Errorf("%s: %d %v %s", name, status, h, body)
		}
	}
	if _, err := s.Terminate(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	if status, body := get(t, c, base+"/hello"); status != 410 {
		t.Errorf("after the end: %d %s", status, body)
	}
	// One that never becomes ready within the time a request is held.
	starting := accept(t, &siroccov1.CreateSandboxRequest{
		Wait: siroccov1.Wait_WAIT_ACCEPTED, Ports: []*siroccov1.Port{{Port: 8000}}, Readiness: &siroccov1.Probe{TcpPort: 8000, Timeout: seconds(60)},
	})
	if status, body := get(t, c, other(starting.ID, 8000)+"/"); status != 503 {
		t.Errorf("while it starts: %d %s", status, body)
	}
}

// A request that comes before the sandbox runs is answered by the sandbox.
func TestRequestIsHeldWhileItStarts(t *testing.T) {
	t.Parallel()
	s := accept(t, &siroccov1.CreateSandboxRequest{
		Image: visitorImage, Command: []string{"sh", "-c", "sleep 1.5; exec visitor http 8000"}, Ports: []*siroccov1.Port{{Port: 8000}},
		Readiness: &siroccov1.Probe{TcpPort: 8000}, Wait: siroccov1.Wait_WAIT_ACCEPTED,
	})
	if status, body := get(t, httpClient(t), s.Record.GetTunnels()[0].GetUrl()+"hello"); status != 200 {
		t.Errorf("%d %s", status, body)
	}
}

func TestTunnelsComeAndGo(t *testing.T) {
	t.Parallel()
	s, _ := web(t)
	tunnel, err := s.OpenTunnel(t.Context(), &siroccov1.Port{Port: 8000})
	if err != nil {
		t.Fatal(err)
	}
	create(t, nil) // another one must not see the port
	if err := s.CloseTunnel(t.Context(), 8000); err != nil {
		t.Fatal(err)
	}
	c := httpClient(t)
	eventually(t, func() string {
		status, _ := get(t, c, tunnel.GetUrl()+"hello")
		return fmt.Sprint(status)
	}, "404")
	if left, err := s.Tunnels(t.Context()); err != nil || len(left) != 0 {
		t.Errorf("%v, %v", left, err)
	}
	if tunnel, err = s.OpenTunnel(t.Context(), &siroccov1.Port{Port: 8000, Protocol: siroccov1.Protocol_PROTOCOL_TCP}); err != nil {
		t.Fatal(err)
	}
	u, _ := url.Parse(tunnel.GetUrl())
	raw := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return dialRelay(ctx, network, u.Host)
	}}}
	defer raw.CloseIdleConnections()
	eventually(t, func() string {
		resp, err := raw.Get("http://" + u.Host + "/hello")
		if err != nil {
			return err.Error()
		}
		_ = resp.Body.Close()
		return resp.Status
	}, "200 OK")
}
