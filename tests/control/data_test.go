package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/link"
	"github.com/sirocco-run/sirocco/pkg/subject"
	"github.com/sirocco-run/sirocco/pkg/token"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/sirocco-run/sirocco/proto/gen/sirocco/v1/siroccov1connect"
	"github.com/sirocco-run/sirocco/services/node-agent/agent"
	"github.com/sirocco-run/sirocco/tests/harness"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"google.golang.org/genproto/googleapis/api/httpbody"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
)

// node is a node with one sandbox, and what its relay needs to speak with it.
type node struct {
	t        *testing.T
	id       string
	token    string
	dial     func(context.Context) (net.Conn, error)
	h1, h2   *http.Client
	exporter *tracetest.InMemoryExporter
}

func startNode(t *testing.T) *node {
	t.Helper()
	n := &node{t: t, exporter: tracetest.NewInMemoryExporter()}
	r := harness.Start(t)
	r.Tracer = sdktrace.NewTracerProvider(sdktrace.WithSyncer(n.exporter))
	address := fmt.Sprintf("127.0.0.1:%d", harness.FreePort(t))
	r.Scheduler("s1")
	r.SimNode("n1", nil, func(c *agent.Config) { c.Listen = address })
	command(t, r, subject.VerbCreate, "k", &siroccov1.CreateSandboxRequest{Command: []string{"sleep", "infinity"}})
	n.id = idOf(t, r, "k")
	await(t, r, n.id, "running", running)
	key, err := r.Keys.TokenKey()
	if err != nil {
		t.Fatal(err)
	}
	if n.token, err = token.Sign(key, token.Claims{Tenant: "acme", Sandbox: n.id, Expires: time.Now().Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	keys, err := r.Keys.ClientTLS()
	if err != nil {
		t.Fatal(err)
	}
	dialer := link.NewDialer(keys, r.Log)
	t.Cleanup(dialer.Close)
	n.dial = func(ctx context.Context) (net.Conn, error) {
		return dialer.Open(ctx, address, link.Header{Kind: link.KindData})
	}
	client := func(h2 bool) *http.Client {
		tr := &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return n.dial(ctx) },
			Protocols:   &http.Protocols{},
		}
		tr.Protocols.SetHTTP1(!h2)
		tr.Protocols.SetUnencryptedHTTP2(h2)
		t.Cleanup(tr.CloseIdleConnections)
		return &http.Client{Transport: tr, Timeout: 30 * time.Second}
	}
	n.h1, n.h2 = client(false), client(true)
	return n
}

// rest makes a request of REST.
func (n *node) rest(method, path, bearer string, body io.Reader) (status int, answer []byte) {
	n.t.Helper()
	req, err := http.NewRequestWithContext(n.t.Context(), method, "http://data/v1/sandboxes/"+n.id+path, body)
	if err != nil {
		n.t.Fatal(err)
	}
	if bearer != "" {
		req.Header.Set("Authorization", "Bearer "+bearer)
	}
	resp, err := n.h1.Do(req)
	if err != nil {
		n.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if answer, err = io.ReadAll(resp.Body); err != nil {
		n.t.Fatal(err)
	}
	return resp.StatusCode, answer
}

// restFault reads an error of REST, which has one shape.
func restFault(body []byte) error {
	var got struct {
		Details []struct{ Code, Field, Message string }
	}
	if err := json.Unmarshal(body, &got); err != nil || len(got.Details) != 1 {
		return fmt.Errorf("strange body %q: %w", body, err)
	}
	return &fault.Fault{Code: fault.Code(got.Details[0].Code), Field: got.Details[0].Field, Message: got.Details[0].Message}
}

// rpcs are the protocols besides REST.
func (n *node) rpcs() map[string]func(ctx context.Context, bearer, procedure string, body []byte) error {
	call := func(c *http.Client, opts ...connect.ClientOption) func(context.Context, string, string, []byte) error {
		return func(ctx context.Context, bearer, procedure string, body []byte) error {
			msg := &emptypb.Empty{} // any message: what it does not know it keeps
			if err := proto.Unmarshal(body, msg); err != nil {
				return err
			}
			req := connect.NewRequest(msg)
			req.Header().Set("Authorization", "Bearer "+bearer)
			_, err := connect.NewClient[emptypb.Empty, emptypb.Empty](c, "http://data"+procedure, opts...).CallUnary(ctx, req)
			return fault.FromConnect(err)
		}
	}
	return map[string]func(context.Context, string, string, []byte) error{
		"connect": call(n.h1), "connect over h2": call(n.h2), "grpc": call(n.h2, connect.WithGRPC()),
	}
}

func check(t *testing.T, what string, err error, code fault.Code, field string) {
	t.Helper()
	var f *fault.Fault
	if !errors.As(err, &f) || f.Code != code || f.Field != field || f.Message == "" {
		t.Errorf("%s: %v; want %s (%s)", what, err, code, field)
	}
}

func TestDataErrorsAreTypedInEveryProtocol(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	const stat, start = siroccov1connect.FileServiceStatProcedure, siroccov1connect.ExecServiceStartProcedure
	body := func(m proto.Message) []byte {
		raw, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	good := body(&siroccov1.StatFileRequest{SandboxId: n.id, Path: "/"})
	cases := map[string]struct {
		token, procedure string
		body             []byte
		method, path     string
		json             string
		code             fault.Code
		field            string
		jsonField        string
	}{
		"unknown field":  {n.token, start, append(body(&siroccov1.StartExecRequest{SandboxId: n.id, Command: []string{"true"}}), 0xfa, 0x3f, 1, 'x'), "POST", "/execs", `{"command":["true"],"colour":"red"}`, fault.InvalidArgument, "1023", "colour"},
		"no JSON":        {n.token, start, append(body(&siroccov1.StartExecRequest{SandboxId: n.id}), 0xfa, 0x3f, 1, 'x'), "POST", "/execs", `{"command":[`, fault.InvalidArgument, "1023", ""},
		"wrong token":    {"x.y.z", stat, good, "GET", "/files/stat?path=%2F", "", fault.Unauthenticated, "", ""},
		"path with ..":   {n.token, stat, body(&siroccov1.StatFileRequest{SandboxId: n.id, Path: "/a/../b"}), "GET", "/files/stat?path=%2Fa%2F..%2Fb", "", fault.InvalidArgument, "path", "path"},
		"no such file":   {n.token, stat, body(&siroccov1.StatFileRequest{SandboxId: n.id, Path: "/no"}), "GET", "/files/stat?path=%2Fno", "", fault.NotFound, "", ""},
		"no command":     {n.token, start, body(&siroccov1.StartExecRequest{SandboxId: n.id}), "POST", "/execs", `{}`, fault.InvalidArgument, "command", "command"},
		"no such call":   {n.token, "/sirocco.v1.FileService/Steal", nil, "GET", "/nothing", "", fault.NotFound, "", ""},
		"stream, .. in":  {"", "", nil, "GET", "/files/content?path=%2F..%2Fx", "", fault.InvalidArgument, "", "path"},
		"stream, no one": {"", "", nil, "GET", "/files/content?path=%2Fno", "", fault.NotFound, "", ""},
	}
	for name, c := range cases {
		if c.procedure != "" {
			for protocol, call := range n.rpcs() {
				check(t, name+" over "+protocol, call(t.Context(), c.token, c.procedure, c.body), c.code, c.field)
			}
		}
		bearer := c.token
		if bearer == "" {
			bearer = n.token
		}
		var in io.Reader
		if c.json != "" {
			in = strings.NewReader(c.json)
		}
		status, answer := n.rest(c.method, c.path, bearer, in)
		if status != c.code.HTTPStatus() {
			t.Errorf("%s over REST: status %d", name, status)
		}
		check(t, name+" over REST", restFault(answer), c.code, c.jsonField)
	}
	// A call that streams, too.
	for protocol, c := range map[string]siroccov1connect.FileServiceClient{
		"connect": siroccov1connect.NewFileServiceClient(n.h1, "http://data"), "grpc": siroccov1connect.NewFileServiceClient(n.h2, "http://data", connect.WithGRPC()),
	} {
		for bearer, want := range map[string]fault.Code{"x.y.z": fault.Unauthenticated, n.token: fault.NotFound} {
			req := connect.NewRequest(&siroccov1.ReadFileRequest{SandboxId: n.id, Path: "/no"})
			req.Header().Set("Authorization", "Bearer "+bearer)
			stream, err := c.Read(t.Context(), req)
			if err == nil {
				for stream.Receive() {
				}
				err = stream.Err()
			}
			check(t, "read over "+protocol, fault.FromConnect(err), want, "")
		}
	}
	if status, answer := n.rest("GET", "/execs", n.token, nil); status != http.StatusOK || strings.Contains(string(answer), "true") {
		t.Errorf("something was started: %d %s", status, answer)
	}
	var spans []string
	for _, s := range n.exporter.GetSpans() {
		spans = append(spans, s.Name)
	}
	if !slices.Contains(spans, "sirocco.v1.FileService/Stat") || !slices.Contains(spans, "sirocco.v1.FileService/Read") {
		t.Errorf("spans %v", spans)
	}
}

// Uploads and downloads that are larger than any message, and one that breaks
// off, of which nothing stays.
func TestDataStreams(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	const content = "/files/content?path=%2Ftmp%2F"
	if status, answer := n.rest("POST", "/files/dir", n.token, strings.NewReader(`{"path":"/tmp"}`)); status != http.StatusOK {
		t.Fatalf("make a folder: %d %s", status, answer)
	}
	big := bytes.Repeat([]byte("0123456789abcdef"), 10<<16)
	if status, answer := n.rest("PUT", content+"big&mode=384", n.token, bytes.NewReader(big)); status != http.StatusOK {
		t.Fatalf("upload: %d %s", status, answer)
	}
	if status, got := n.rest("GET", content+"big", n.token, nil); status != http.StatusOK || !bytes.Equal(got, big) {
		t.Errorf("download: %d, %d bytes", status, len(got))
	}
	if status, got := n.rest("PUT", content+"empty", n.token, nil); status != http.StatusOK {
		t.Errorf("empty upload: %d %s", status, got)
	}
	if status, got := n.rest("GET", content+"empty", n.token, nil); status != http.StatusOK || len(got) != 0 {
		t.Errorf("empty download: %d %q", status, got)
	}
	if status, answer := n.rest("POST", "/execs", n.token, strings.NewReader(`{"exec_id":"one","command":["echo","hello"]}`)); status != http.StatusOK {
		t.Fatalf("exec: %d %s", status, answer)
	}
	if status, got := n.rest("GET", "/execs/one/output?follow=true", n.token, nil); status != http.StatusOK || string(got) != "hello\n" {
		t.Errorf("output: %d %q", status, got)
	}
	if status, got := n.rest("GET", "/logs", n.token, nil); status != http.StatusOK || len(got) != 0 {
		t.Errorf("logs: %d %q", status, got)
	}
	n.startAndAttach()
	n.breakOffREST(content + "half")
	n.breakOffRPC("/tmp/half")
	harness.Eventually(t, 10*time.Second, func() string {
		status, answer := n.rest("GET", "/files?path=%2Ftmp", n.token, nil)
		if status != http.StatusOK || strings.Contains(string(answer), "half") || strings.Count(string(answer), `"path"`) != 2 {
			return fmt.Sprintf("after uploads that broke off: %d %s", status, answer)
		}
		return ""
	})
}

// startAndAttach starts a process and reads it in one call; made again, the call
// finds the process; one that contradicts itself is refused.
func (n *node) startAndAttach() {
	n.t.Helper()
	c := siroccov1connect.NewExecServiceClient(n.h2, "http://data")
	attach := func(req *siroccov1.AttachExecRequest) (string, error) {
		r := connect.NewRequest(req)
		r.Header().Set("Authorization", "Bearer "+n.token)
		stream, err := c.Attach(n.t.Context(), r)
		if err != nil {
			return "", err
		}
		defer func() { _ = stream.Close() }()
		var out []byte
		for stream.Receive() {
			out = append(out, stream.Msg().GetStdout().GetData()...)
		}
		return string(out), stream.Err()
	}
	start := &siroccov1.StartExecRequest{SandboxId: n.id, ExecId: "both", Command: []string{"echo", "hello"}}
	for range 2 {
		if out, err := attach(&siroccov1.AttachExecRequest{Start: start}); err != nil || out != "hello\n" {
			n.t.Errorf("start and attach: %q, %v", out, err)
		}
	}
	for field, req := range map[string]*siroccov1.AttachExecRequest{
		"start.exec_id":    {SandboxId: n.id, ExecId: "other", Start: start},
		"start.sandbox_id": {SandboxId: n.id, Start: &siroccov1.StartExecRequest{SandboxId: "sb-x", ExecId: "a", Command: []string{"true"}}},
		"command":          {SandboxId: n.id, Start: &siroccov1.StartExecRequest{ExecId: "a"}},
	} {
		if _, err := attach(req); connect.CodeOf(err) != connect.CodeInvalidArgument {
			n.t.Errorf("%s: %v", field, err)
		}
	}
}

// breakOffREST begins uploads and closes the connection in the middle.
func (n *node) breakOffREST(path string) {
	n.t.Helper()
	for _, head := range []string{"Content-Length: 100000", "Transfer-Encoding: chunked"} {
		conn, err := n.dial(n.t.Context())
		if err != nil {
			n.t.Fatal(err)
		}
		_, err = fmt.Fprintf(conn, "PUT /v1/sandboxes/%s%s HTTP/1.1\r\nHost: data\r\nAuthorization: Bearer %s\r\n%s\r\n\r\n4\r\nhalf\r\n", url.PathEscape(n.id), path, n.token, head)
		if err != nil {
			n.t.Fatal(err)
		}
		half, ok := conn.(interface{ CloseWrite() error })
		if !ok || half.CloseWrite() != nil {
			n.t.Fatal("the stream can't be half closed")
		}
		answer, err := io.ReadAll(conn)
		_ = conn.Close()
		if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 400") || !strings.Contains(string(answer), `"invalid_argument"`) {
			n.t.Errorf("%s: %q, %v", head, answer, err)
		}
	}
}

// breakOffRPC begins uploads and cancels them.
func (n *node) breakOffRPC(path string) {
	n.t.Helper()
	for protocol, c := range map[string]siroccov1connect.FileServiceClient{
		"connect": siroccov1connect.NewFileServiceClient(n.h2, "http://data"), "grpc": siroccov1connect.NewFileServiceClient(n.h2, "http://data", connect.WithGRPC()),
	} {
		ctx, cancel := context.WithCancel(n.t.Context())
		up := c.Write(ctx)
		up.RequestHeader().Set("Authorization", "Bearer "+n.token)
		if err := up.Send(&siroccov1.WriteFileRequest{SandboxId: n.id, Path: path, Body: &httpbody.HttpBody{Data: []byte("half")}}); err != nil {
			n.t.Errorf("%s: %v", protocol, err)
		}
		cancel()
		if _, err := up.CloseAndReceive(); err == nil {
			n.t.Errorf("%s: half a file was taken", protocol)
		}
	}
}
