package chaos

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	sirocco "github.com/sirocco-run/sirocco/sdk/go"
	"google.golang.org/protobuf/types/known/durationpb"
)

// veteran is a sandbox that must live through everything.
type veteran struct {
	*sirocco.Sandbox
	// epoch that it was last seen at.
	epoch uint64
	// roams: it is moved, and may be on a move that its caller no longer waits for.
	roams bool
	// uptime of its own process, to tell it from a second one.
	pid string
}

// enlist makes a veteran: a web server behind a tunnel, and a process whose
// output grows.
func enlist(t *testing.T, c *sirocco.Client) *veteran {
	t.Helper()
	s, err := c.Create(t.Context(), &siroccov1.CreateSandboxRequest{
		Command: []string{"sh", "-c", "echo born >/tmp/born; mkdir /tmp/www; echo $$ >/tmp/www/pid; exec httpd -f -p 8000 -h /tmp/www"},
		Ports:   []*siroccov1.Port{{Port: 8000}}, Readiness: &siroccov1.Probe{TcpPort: 8000}, MaxLifetime: durationpb.New(time.Hour),
	})
	if err != nil {
		t.Fatal(err)
	}
	if s.Record.GetState() != siroccov1.State_STATE_RUNNING {
		t.Fatalf("%v %v", s.Record.GetState(), s.Record.GetEnd())
	}
	if _, err := s.Start(t.Context(), sirocco.Command{ID: "long", Args: []string{"sh", "-c", "echo started; exec sleep 100000"}}); err != nil {
		t.Fatal(err)
	}
	return &veteran{Sandbox: s, epoch: s.Record.GetPlacement().GetEpoch()}
}

// serves says why an exec or a request to the sandbox fails; "" if both work.
func (v *veteran) serves(ctx context.Context, web *http.Client) string {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var out bytes.Buffer
	end, err := v.Run(ctx, sirocco.Command{Args: []string{"cat", "/tmp/born"}, Stdout: &out})
	if err != nil || end.GetExitCode() != 0 || out.String() != "born\n" {
		return fmt.Sprintf("%s: exec: %v, %v, %q", v.ID, end, err, out.String())
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, v.Record.GetTunnels()[0].GetUrl()+"pid", nil)
	if err != nil {
		return err.Error()
	}
	resp, err := web.Do(req)
	if err != nil {
		return fmt.Sprintf("%s: tunnel: %v", v.ID, err)
	}
	defer func() { _ = resp.Body.Close() }()
	var body bytes.Buffer
	_, _ = body.ReadFrom(resp.Body)
	if pid := strings.TrimSpace(body.String()); resp.StatusCode != 200 || pid == "" || v.pid != "" && pid != v.pid {
		return fmt.Sprintf("%s: tunnel: %s, %q", v.ID, resp.Status, body.String())
	}
	v.pid = strings.TrimSpace(body.String())
	return ""
}

// same says what has changed of the sandbox; "" if it is the one of before, or the one
// that it has become by moves.
func (v *veteran) same(ctx context.Context, c *sirocco.Client) string {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	sb, err := c.Get(ctx, v.ID)
	if v.roams {
		v.epoch = max(v.epoch, sb.GetPlacement().GetEpoch())
	}
	switch {
	case err != nil:
		return fmt.Sprintf("%s: %v", v.ID, err)
	case sb.GetState() != siroccov1.State_STATE_RUNNING || sb.GetPlacement().GetEpoch() != v.epoch:
		return fmt.Sprintf("%s is %v at epoch %d, was running at %d: %v", v.ID, sb.GetState(), sb.GetPlacement().GetEpoch(), v.epoch, sb.GetEnd())
	}
	x, err := v.Process("long").Wait(ctx, 0)
	if err != nil || x.GetEnd() != nil || x.GetStdoutBytes() != 8 {
		return fmt.Sprintf("%s: its process: %v, %v", v.ID, x, err)
	}
	return ""
}

// webClient asks tunnels with a new connection each time.
func webClient(t *testing.T, ca string) *http.Client {
	t.Helper()
	raw, err := os.ReadFile(ca)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(raw)
	return &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12},
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			_, port, err := net.SplitHostPort(address)
			if err != nil {
				return nil, err
			}
			var d net.Dialer
			return d.DialContext(ctx, network, net.JoinHostPort("127.0.0.1", port))
		},
	}}
}
