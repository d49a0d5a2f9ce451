package rpc_test

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/rpc"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/sirocco-run/sirocco/proto/gen/sirocco/v1/siroccov1connect"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	tracenoop "go.opentelemetry.io/otel/trace/noop"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"
)

// serveSandboxes serves calls that are never reached.
func serveSandboxes(t *testing.T) (url string, client *http.Client, log *bytes.Buffer) {
	t.Helper()
	log = &bytes.Buffer{}
	c, err := rpc.New(rpc.Config{Log: slog.New(slog.NewTextHandler(log, nil)), Meter: metricnoop.NewMeterProvider(), Tracer: tracenoop.NewTracerProvider()})
	if err != nil {
		t.Fatal(err)
	}
	routes, err := c.Routes(rpc.NewService(siroccov1connect.NewSandboxServiceHandler(siroccov1connect.UnimplementedSandboxServiceHandler{}, c.Options(0))))
	if err != nil {
		t.Fatal(err)
	}
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	s := httptest.NewUnstartedServer(c.Door(routes.Serve))
	s.Config.Protocols = &protocols
	s.Start()
	t.Cleanup(s.Close)
	var h2 http.Protocols
	h2.SetUnencryptedHTTP2(true)
	return s.URL, &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{Protocols: &h2}}, log
}

// What the library finds wrong with a message before any interceptor is the
// caller's mistake over gRPC too, with its detail, and no line in the log.
func TestBadMessagesOverGRPC(t *testing.T) {
	t.Parallel()
	url, client, log := serveSandboxes(t)
	for name, c := range map[string]struct{ kind, body, field string }{
		"ends in the message":  {"", "\x00\x00\x00\x00\x10\x0a", ""},
		"ends in the envelope": {"", "\x00\x00\x00", ""},
		"packed, unsaid":       {"", "\x01\x00\x00\x00\x01x", ""},
		"nothing":              {"", "", ""},
		"two messages":         {"", "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", ""},
		"no protobuf":          {"", "\x00\x00\x00\x00\x01\xff", ""},
		"unknown field":        {"", "\x00\x00\x00\x00\x04\xfa\x3f\x01x", "1023"},
		"JSON, bad value":      {"+json", frame(`{"ports":[{"port":-1}]}`), "ports[0].port"},
		"JSON, unknown field":  {"+json", frame(`{"resources":{"ram":1}}`), "resources.ram"},
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url+siroccov1connect.SandboxServiceCreateProcedure, strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/grpc"+c.kind)
		req.Header.Set("TE", "trailers")
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		raw, err := connect.DecodeBinaryHeader(resp.Trailer.Get("Grpc-Status-Details-Bin"))
		status, detail := &spb.Status{}, &siroccov1.ErrorDetail{}
		if err != nil || proto.Unmarshal(raw, status) != nil || len(status.GetDetails()) != 1 || status.GetDetails()[0].UnmarshalTo(detail) != nil {
			t.Errorf("%s: trailers %v, %v", name, resp.Trailer, err)
			continue
		}
		if resp.Trailer.Get("Grpc-Status") != "3" || detail.GetCode() != string(fault.InvalidArgument) || detail.GetField() != c.field || strings.Contains(detail.GetMessage(), "invalid_argument") {
			t.Errorf("%s: status %s, %v; want the field %q", name, resp.Trailer.Get("Grpc-Status"), detail, c.field)
		}
	}
	if log.Len() > 0 {
		t.Errorf("logged: %s", log)
	}
}

func frame(body string) string { return "\x00\x00\x00\x00" + string(rune(len(body))) + body }

// An error over REST has no trailers: those of the gRPC behind it tell of
// another.
func TestErrorsOverRESTHaveNoTrailers(t *testing.T) {
	t.Parallel()
	url, _, log := serveSandboxes(t)
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	_, _ = z.Write([]byte(`{"comand":["x"]}`))
	_ = z.Close()
	post := func(encoding string) string {
		return "POST /v1/sandboxes HTTP/1.1\r\nContent-Type: application/json\r\nContent-Encoding: " + encoding + "\r\n"
	}
	for _, c := range []struct{ request, body, status, want string }{
		{post("gzip"), "{}", "400", "can't be unpacked"},
		{post("gzip"), packed.String(), "400", `"field":"comand"`},
		{post("br"), "{}", "415", `"field":"Content-Encoding"`},
		{"GET /v1/sandboxes?states=BOGUS HTTP/1.1\r\n", "", "400", `"field":"states"`},
		{"GET /v1/sandboxes?bogus=1 HTTP/1.1\r\n", "", "400", `"field":"bogus"`},
		{"GET /v1/sandboxes?name=%ff HTTP/1.1\r\n", "", "400", `"field":"name"`},
		{"GET /v1/sandboxes?pageSize=1e99 HTTP/1.1\r\n", "", "400", `"field":"page_size"`},
	} {
		conn, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := fmt.Fprintf(conn, "%sHost: x\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", c.request, len(c.body), c.body); err != nil {
			t.Fatal(err)
		}
		answer, err := io.ReadAll(conn)
		_ = conn.Close()
		if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 "+c.status) || !strings.Contains(strings.ReplaceAll(string(answer), `": "`, `":"`), c.want) {
			t.Errorf("%q: %q, %v", c.request, answer, err)
		}
		for _, no := range []string{"Grpc-", "Trailer", "zero messages"} {
			if strings.Contains(string(answer), no) {
				t.Errorf("%q: %q in %q", c.request, no, answer)
			}
		}
	}
	if log.Len() > 0 {
		t.Errorf("logged: %s", log)
	}
}
