package relay

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/link"
	"github.com/sirocco-run/sirocco/pkg/token"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/types/known/durationpb"
)

// echoRPC answers messages with themselves, one by one.
func echoRPC() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/echo/Bidi", connect.NewBidiStreamHandler("/echo/Bidi", func(_ context.Context, s *connect.BidiStream[durationpb.Duration, durationpb.Duration]) error {
		s.ResponseTrailer().Set("Echo-Trailer", "end")
		for {
			m, err := s.Receive()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			if m.GetSeconds() < 0 {
				return fault.Connect(fault.New(fault.NotFound, "negative"))
			}
			if err := s.Send(m); err != nil {
				return err
			}
		}
	}))
	mux.Handle("/echo/Unary", connect.NewUnaryHandler("/echo/Unary", func(_ context.Context, r *connect.Request[durationpb.Duration]) (*connect.Response[durationpb.Duration], error) {
		return connect.NewResponse(r.Msg), nil
	}))
	mux.HandleFunc("/v1/sandboxes/{id}/files/content", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Saw-Authorization", r.Header.Get("Authorization"))
		_, _ = io.Copy(w, r.Body)
	})
	return mux
}

func bidi(t *testing.T, c *http.Client, base, bearer string, opts ...connect.ClientOption) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	s := connect.NewClient[durationpb.Duration, durationpb.Duration](c, base+"/echo/Bidi", opts...).CallBidiStream(ctx)
	if bearer != "" {
		s.RequestHeader().Set("Authorization", "Bearer "+bearer)
	}
	for i := range int64(5) {
		if err := s.Send(&durationpb.Duration{Seconds: i}); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		m, err := s.Receive() // before the next is sent: both directions flow
		if err != nil {
			return err
		}
		if m.GetSeconds() != i {
			t.Errorf("echo %d: %d", i, m.GetSeconds())
		}
	}
	_ = s.CloseRequest()
	if _, err := s.Receive(); !errors.Is(err, io.EOF) {
		return err
	}
	if got := s.ResponseTrailer().Get("Echo-Trailer"); got != "end" {
		t.Errorf("trailer %q", got)
	}
	return s.CloseResponse()
}

func TestGRPCToAnApp(t *testing.T) {
	g := newRig(t, Config{})
	a := g.agent()
	sb := g.app(a, echoRPC())
	if err := bidi(t, g.client(true), strings.TrimSuffix(g.url(sb, ""), "/"), "", connect.WithGRPC()); err != nil {
		t.Errorf("bidi: %v", err)
	}
	if h := a.lastHeader(); !h.Requests || !h.HTTP2 {
		t.Errorf("header of the stream: %+v", h)
	}
}

func (g *rig) token(tenant, id string, expires time.Time) string {
	g.t.Helper()
	key, err := g.keys.TokenKey()
	if err != nil {
		g.t.Fatal(err)
	}
	text, err := token.Sign(key, token.Claims{Tenant: tenant, Sandbox: id, Expires: expires})
	if err != nil {
		g.t.Fatal(err)
	}
	return text
}

func TestDataServices(t *testing.T) {
	g := newRig(t, Config{StartWait: 5 * time.Second})
	a := g.agent()
	a.data = echoRPC()
	base := "https://" + g.front.DataHost()
	sb := g.accept()
	good := g.token("acme", sb.GetId(), time.Now().Add(time.Hour))
	c := g.client(true)

	// Held while it starts.
	done := make(chan error, 1)
	go func() { done <- bidi(t, c, base, good, connect.WithGRPC()) }()
	g.heldAre(1)
	sb = g.placed(sb, a)
	if err := <-done; err != nil {
		t.Fatalf("gRPC, held: %v", err)
	}
	if h := a.lastHeader(); h.Kind != link.KindData || h.Sandbox != sb.GetId() || h.Tenant != "acme" || h.Epoch != 1 {
		t.Errorf("header %+v", h)
	}
	if err := bidi(t, c, base, good); err != nil {
		t.Errorf("Connect: %v", err)
	}
	url := base + "/v1/sandboxes/" + sb.GetId() + "/files/content"
	for _, h2 := range []bool{false, true} {
		payload := bytes.Repeat([]byte("x"), 3<<20)
		req, _ := http.NewRequestWithContext(t.Context(), "PUT", url, bytes.NewReader(payload))
		req.Header.Set("Authorization", "Bearer "+good)
		resp, body := do(t, g.client(h2), req)
		if resp.StatusCode != 200 || body != string(payload) || resp.Header.Get("Saw-Authorization") != "Bearer "+good {
			t.Errorf("REST: %d, %d bytes, the agent saw %q", resp.StatusCode, len(body), resp.Header.Get("Saw-Authorization"))
		}
	}

	// The node of a sandbox that has ended is still asked: it keeps the last
	// output of the command. One that never had a node has nobody to ask.
	ran := g.known(g.step(g.placed(g.accept(), a), lifecycle.Finish{Epoch: 1, End: &siroccov1.End{Cause: siroccov1.Cause_CAUSE_IDLE}}))
	asked := connect.NewRequest(&durationpb.Duration{})
	asked.Header().Set("Authorization", "Bearer "+g.token("acme", ran.GetId(), time.Now().Add(time.Hour)))
	if _, err := connect.NewClient[durationpb.Duration, durationpb.Duration](c, base+"/echo/Unary").CallUnary(t.Context(), asked); err != nil {
		t.Errorf("the node of a sandbox that has ended: %v", err)
	}
	gone := g.known(g.step(g.accept(), lifecycle.Stop{Cause: siroccov1.Cause_CAUSE_USER}))
	refusals := map[string]struct {
		token string
		code  fault.Code
	}{
		"no token":        {"", fault.Unauthenticated},
		"garbage":         {"x.y.z", fault.Unauthenticated},
		"expired":         {g.token("acme", sb.GetId(), time.Now().Add(-time.Hour)), fault.Unauthenticated},
		"no sandbox":      {g.token("acme", "", time.Now().Add(time.Hour)), fault.Unauthenticated},
		"another tenant":  {g.token("other", sb.GetId(), time.Now().Add(time.Hour)), fault.NotFound},
		"unknown sandbox": {g.token("acme", oldID, time.Now().Add(time.Hour)), fault.NotFound},
		"ended":           {g.token("acme", gone.GetId(), time.Now().Add(time.Hour)), fault.FailedPrecondition},
	}
	for name, row := range refusals {
		t.Run(name, func(t *testing.T) {
			for kind, opts := range map[string][]connect.ClientOption{"connect": nil, "grpc": {connect.WithGRPC()}, "grpc-web": {connect.WithGRPCWeb()}} {
				req := connect.NewRequest(&durationpb.Duration{})
				if row.token != "" {
					req.Header().Set("Authorization", "Bearer "+row.token)
				}
				_, err := connect.NewClient[durationpb.Duration, durationpb.Duration](c, base+"/echo/Unary", opts...).CallUnary(t.Context(), req)
				if got := fault.CodeOf(fault.FromConnect(err)); got != row.code {
					t.Errorf("%s: %v, want %s", kind, err, row.code)
				}
			}
			resp, body := get(t, c, url, "Authorization", "Bearer "+row.token)
			var st struct {
				Message string
				Details []struct {
					Type string `json:"@type"`
					Code string
				}
			}
			if err := json.Unmarshal([]byte(body), &st); err != nil || resp.StatusCode != row.code.HTTPStatus() || len(st.Details) != 1 || st.Details[0].Code != string(row.code) || st.Message == "" {
				t.Errorf("REST: %d %q, %v", resp.StatusCode, body, err)
			}
			if resp.Header.Get(HeaderError) == "" {
				t.Error("no " + HeaderError)
			}
		})
	}
	a.stop()
	req := connect.NewRequest(&durationpb.Duration{})
	req.Header().Set("Authorization", "Bearer "+good)
	_, err := connect.NewClient[durationpb.Duration, durationpb.Duration](c, base+"/echo/Unary").CallUnary(t.Context(), req)
	if got := fault.CodeOf(fault.FromConnect(err)); got != fault.Unavailable {
		t.Errorf("agent away: %v", err)
	}
}

// One TLS connection for many names (as browsers do with a wildcard
// certificate) is routed by each request's host, not by its server name.
func TestHostDecidesNotServerName(t *testing.T) {
	g := newRig(t, Config{})
	a := g.agent()
	one := g.app(a, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "one") }))
	two := g.app(a, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "two") }))
	c := g.client(true)
	c.Transport.(*http.Transport).TLSClientConfig = &tls.Config{RootCAs: g.roots, ServerName: g.front.Host(8000, one.GetId())}
	for _, row := range []struct {
		sb   *siroccov1.Sandbox
		want string
	}{{one, "one"}, {two, "two"}} {
		if _, body := get(t, c, g.url(row.sb, "/")); body != row.want {
			t.Errorf("%q, want %q", body, row.want)
		}
	}
}
