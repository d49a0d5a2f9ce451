package rpc_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
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
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"google.golang.org/genproto/googleapis/api/httpbody"
)

// files answers reads with pieces that come over a channel, and writes with the
// digest of what came.
type files struct {
	siroccov1connect.UnimplementedFileServiceHandler
	pieces chan []byte
	fail   error
	got    chan error
}

func (f *files) Read(_ context.Context, _ *connect.Request[siroccov1.ReadFileRequest], out *connect.ServerStream[httpbody.HttpBody]) error {
	kind := "text/plain"
	for p := range f.pieces {
		if err := out.Send(&httpbody.HttpBody{ContentType: kind, Data: p}); err != nil {
			return err
		}
		kind = ""
	}
	return f.fail
}

func (f *files) Write(_ context.Context, in *connect.ClientStream[siroccov1.WriteFileRequest]) (*connect.Response[siroccov1.FileInfo], error) {
	sum, size, path := sha256.New(), int64(0), ""
	for in.Receive() {
		if p := in.Msg().GetPath(); p != "" {
			path = p
		}
		sum.Write(in.Msg().GetBody().GetData())
		size += int64(len(in.Msg().GetBody().GetData()))
	}
	f.got <- in.Err()
	if err := in.Err(); err != nil {
		return nil, err
	}
	return connect.NewResponse(&siroccov1.FileInfo{Path: path, Size: size, Target: fmt.Sprintf("%x", sum.Sum(nil))}), nil
}

func serve(t *testing.T, f *files) (url string, spans *tracetest.SpanRecorder) {
	t.Helper()
	spans = tracetest.NewSpanRecorder()
	c, err := rpc.New(rpc.Config{
		Log: slog.New(slog.DiscardHandler), Meter: metricnoop.NewMeterProvider(),
		Tracer: sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans)),
	})
	if err != nil {
		t.Fatal(err)
	}
	routes, err := c.Routes(rpc.NewService(siroccov1connect.NewFileServiceHandler(f, c.Options(0))))
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(c.Door(routes.Serve))
	t.Cleanup(s.Close)
	return s.URL + "/v1/sandboxes/sb-x/files/content", spans
}

func request(t *testing.T, method, url string, body io.Reader) (*http.Response, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	return (&http.Client{Timeout: 20 * time.Second}).Do(req)
}

// Far more than one message goes up and down, and a piece is seen at once.
func TestRESTStreams(t *testing.T) {
	t.Parallel()
	f := &files{pieces: make(chan []byte), got: make(chan error, 1)}
	url, spans := serve(t, f)
	big := bytes.Repeat([]byte("0123456789abcdef"), 6*rpc.MaxMessageBytes/16)
	resp, err := request(t, http.MethodPut, url+"?path=/big", io.MultiReader(bytes.NewReader(big)))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if want := fmt.Sprintf("%x", sha256.Sum256(big)); err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(string(answer), want) || !strings.Contains(string(answer), "/big") {
		t.Errorf("upload: %s %s, %v", resp.Status, answer, err)
	}

	go func() { f.pieces <- []byte("first") }()
	down, err := request(t, http.MethodGet, url+"?path=/x", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer down.Body.Close()
	head := make([]byte, 5)
	if _, err := io.ReadFull(down.Body, head); err != nil || string(head) != "first" || down.Header.Get("Content-Type") != "text/plain" {
		t.Errorf("first piece: %q, %v, %v", head, err, down.Header)
	}
	for name := range down.Header {
		if strings.HasPrefix(name, "Grpc") || name == "Trailer" {
			t.Errorf("header %s", name)
		}
	}
	go func() {
		f.pieces <- big
		close(f.pieces)
	}()
	rest, err := io.ReadAll(down.Body)
	if err != nil || !bytes.Equal(rest, big) || len(down.Trailer) != 0 {
		t.Errorf("the rest: %d bytes, %v, trailers %v", len(rest), err, down.Trailer)
	}
	empty, err := request(t, http.MethodGet, url+"?path=/x", nil) // no more pieces
	if err != nil {
		t.Fatal(err)
	}
	defer empty.Body.Close()
	if body, err := io.ReadAll(empty.Body); err != nil || len(body) != 0 || empty.StatusCode != http.StatusOK || empty.Header.Get("Content-Type") != "application/octet-stream" {
		t.Errorf("nothing: %q, %v, %v", body, err, empty.Header)
	}
	if len(spans.Ended()) != 3 {
		t.Errorf("%d spans", len(spans.Ended()))
	}
}

// A download that fails in the middle does not look whole; one that fails
// before has a typed error.
func TestBrokenDownload(t *testing.T) {
	t.Parallel()
	f := &files{pieces: make(chan []byte, 1), fail: fault.New(fault.NotFound, "no such file")}
	url, _ := serve(t, f)
	f.pieces <- []byte("half")
	close(f.pieces)
	resp, err := request(t, http.MethodGet, url+"?path=/x", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err == nil {
		t.Errorf("half of a file looks whole: %q", body)
	}
	resp, err = request(t, http.MethodGet, url+"?path=/x", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusNotFound || !strings.Contains(string(body), `"not_found"`) {
		t.Errorf("%s: %s, %v", resp.Status, body, err)
	}
}

// An upload that breaks off ends with an error, never as if it were whole.
func TestBrokenUpload(t *testing.T) {
	t.Parallel()
	f := &files{got: make(chan error, 1)}
	url, _ := serve(t, f)
	for _, head := range []string{"Content-Length: 1000\r\n\r\nhalf", "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"} {
		conn, err := net.Dial("tcp", strings.Split(strings.TrimPrefix(url, "http://"), "/")[0])
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Fprintf(conn, "PUT /v1/sandboxes/sb-x/files/content?path=/x HTTP/1.1\r\nHost: x\r\n%s", head); err != nil {
			t.Fatal(err)
		}
		half, ok := conn.(*net.TCPConn)
		if !ok || half.CloseWrite() != nil {
			t.Fatal("the connection can't be half closed")
		}
		answer, err := io.ReadAll(conn)
		_ = conn.Close()
		if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 400") || !strings.Contains(string(answer), `"invalid_argument"`) {
			t.Errorf("%q, %v", answer, err)
		}
		if err := <-f.got; fault.CodeOf(err) != fault.InvalidArgument || !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("the handler got %v", err)
		}
	}
	// What can't be read makes no upload, either.
	resp, err := request(t, http.MethodPut, url+"?colour=red", strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := <-f.got; err == nil || resp.StatusCode != http.StatusBadRequest {
		t.Errorf("unknown parameter: %s, the handler got %v", resp.Status, err)
	}
}

// JSON is as strict over Connect when its content type names the character set.
func TestStrictJSONWithCharset(t *testing.T) {
	t.Parallel()
	url, _ := serve(t, &files{})
	url, _, _ = strings.Cut(url, "/v1/")
	for _, kind := range []string{"application/json", "application/json; charset=utf-8", "application/json;charset=UTF-8"} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url+siroccov1connect.FileServiceStatProcedure, strings.NewReader(`{"colour":"red"}`))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", kind)
		resp, err := (&http.Client{Timeout: 20 * time.Second}).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if f := rpc.ReadConnectError(body); err != nil || resp.StatusCode != http.StatusBadRequest || f == nil || f.Code != fault.InvalidArgument || f.Field != "colour" {
			t.Errorf("%s: %s %s, %v", kind, resp.Status, body, err)
		}
	}
}
