package api_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/sirocco-run/sirocco/pkg/apikey"
	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/rpc"
	"github.com/sirocco-run/sirocco/pkg/sandboxid"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/sirocco-run/sirocco/services/api/api"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Bad input gets the same typed error, whatever the way in, and makes nothing.
func TestBadInputIsRefusedEverywhere(t *testing.T) {
	r := start(t, api.Config{})
	create := func(change func(*siroccov1.CreateSandboxRequest)) *siroccov1.CreateSandboxRequest {
		req := &siroccov1.CreateSandboxRequest{Command: []string{"true"}}
		change(req)
		return req
	}
	const made = "SandboxService/Create"
	missing := sandboxid.New()
	cases := map[string]struct {
		procedure string
		req       proto.Message
		code      fault.Code
		field     string
	}{
		"negative memory": {made, create(func(r *siroccov1.CreateSandboxRequest) { r.Resources = &siroccov1.Resources{MemoryLimitBytes: -1} }), fault.InvalidArgument, "resources.memory_limit_bytes"},
		"long env": {made, create(func(r *siroccov1.CreateSandboxRequest) {
			r.Env = map[string]string{"A": strings.Repeat("x", 300<<10)}
		}), fault.InvalidArgument, "env"},
		"a name with dots":    {made, create(func(r *siroccov1.CreateSandboxRequest) { r.Name = "a.b" }), fault.InvalidArgument, "name"},
		"a path with ..":      {made, create(func(r *siroccov1.CreateSandboxRequest) { r.Workdir = "/a/../b" }), fault.InvalidArgument, "workdir"},
		"port 70000":          {made, create(func(r *siroccov1.CreateSandboxRequest) { r.Ports = []*siroccov1.Port{{Port: 80}, {Port: 70000}} }), fault.InvalidArgument, "ports[1].port"},
		"a key with dots":     {made, create(func(r *siroccov1.CreateSandboxRequest) { r.IdempotencyKey = "a.b" }), fault.InvalidArgument, "idempotency_key"},
		"a day and a second":  {made, create(func(r *siroccov1.CreateSandboxRequest) { r.MaxLifetime = durationpb.New(24*time.Hour + time.Second) }), fault.InvalidArgument, "max_lifetime"},
		"an unknown wait":     {made, create(func(r *siroccov1.CreateSandboxRequest) { r.Wait = 99 }), fault.InvalidArgument, "wait"},
		"a deadline gone by":  {made, create(func(r *siroccov1.CreateSandboxRequest) { r.StartDeadline = timestamppb.New(time.Unix(1, 0)) }), fault.Deadline, ""},
		"get: no such id":     {"SandboxService/Get", &siroccov1.GetSandboxRequest{Id: missing}, fault.NotFound, ""},
		"get: no such name":   {"SandboxService/Get", &siroccov1.GetSandboxRequest{Id: "nobody"}, fault.NotFound, ""},
		"get: odd id":         {"SandboxService/Get", &siroccov1.GetSandboxRequest{Id: "*"}, fault.NotFound, ""},
		"extend: backwards":   {"SandboxService/Extend", &siroccov1.ExtendSandboxRequest{Id: missing, By: durationpb.New(-time.Second)}, fault.InvalidArgument, "by"},
		"tags: bad key":       {"SandboxService/SetTags", &siroccov1.SetTagsRequest{Id: missing, Tags: map[string]string{"=": ""}}, fault.InvalidArgument, "tags"},
		"token: for a week":   {"SandboxService/CreateToken", &siroccov1.CreateTokenRequest{Id: missing, Ttl: durationpb.New(7 * 24 * time.Hour)}, fault.InvalidArgument, "ttl"},
		"tunnel: own port":    {"TunnelService/Open", &siroccov1.OpenTunnelRequest{SandboxId: missing, Port: &siroccov1.Port{Port: 49983}}, fault.InvalidArgument, "port.port"},
		"tunnel: no port":     {"TunnelService/Open", &siroccov1.OpenTunnelRequest{SandboxId: missing}, fault.InvalidArgument, "port.port"},
		"tunnel: no sandbox":  {"TunnelService/Close", &siroccov1.CloseTunnelRequest{SandboxId: missing, Port: 8000}, fault.NotFound, ""},
		"terminate: nothing":  {"SandboxService/Terminate", &siroccov1.TerminateSandboxRequest{Id: missing}, fault.NotFound, ""},
		"nodes: not for you":  {"NodeService/List", &siroccov1.ListNodesRequest{}, fault.PermissionDenied, ""},
		"cordon: not for you": {"NodeService/Cordon", &siroccov1.CordonNodeRequest{Name: "n1"}, fault.PermissionDenied, ""},
		"drain: not for you":  {"NodeService/Drain", &siroccov1.DrainNodeRequest{Name: "n1"}, fault.PermissionDenied, ""},
		"quotas: not for you": {"QuotaService/List", &siroccov1.ListQuotasRequest{}, fault.PermissionDenied, ""},
		"pools: not for you":  {"PoolService/List", &siroccov1.ListPoolsRequest{}, fault.PermissionDenied, ""},
		"set: not for you":    {"PoolService/Set", &siroccov1.SetPoolRequest{Name: "web"}, fault.PermissionDenied, ""},
		"unset: not for you":  {"PoolService/Remove", &siroccov1.RemovePoolRequest{Name: "web"}, fault.PermissionDenied, ""},
		"images: not for you": {"ImageService/Remove", &siroccov1.RemoveImageRequest{Name: "app"}, fault.PermissionDenied, ""},
	}
	for _, tr := range r.transports("acme", r.key("acme", apikey.RoleTenant)) {
		for name, c := range cases {
			if c.code == fault.PermissionDenied && strings.HasPrefix(tr.name, "bus") {
				continue // on the bus, permissions of the bus decide: package busauth
			}
			err := tr.call(t.Context(), c.procedure, c.req, &siroccov1.CreateSandboxResponse{})
			f := fault.From(err)
			if f == nil || f.Code != c.code || f.Field != c.field || f.Message == "" {
				t.Errorf("%s over %s: %v; want %s (%s)", name, tr.name, err, c.code, c.field)
			}
		}
	}
	r.mustBeEmpty()
}

func (r *region) mustBeEmpty() {
	r.t.Helper()
	for _, stream := range []string{"KV_sirocco-sandboxes", "SIROCCO_CMD", "KV_sirocco-names", "KV_sirocco-ports"} {
		s, err := r.js.Stream(context.Background(), stream)
		if err != nil {
			r.t.Fatal(err)
		}
		if n := s.CachedInfo().State.Msgs; n != 0 {
			r.t.Errorf("%s holds %d messages after refusals only", stream, n)
			if msg, err := s.GetMsg(context.Background(), s.CachedInfo().State.FirstSeq); err == nil {
				r.t.Logf("the first: %s %q", msg.Subject, msg.Data)
			}
		}
	}
}

// What HTTP allows a client to get wrong.
func TestBadRequestsOverHTTP(t *testing.T) {
	r := start(t, api.Config{})
	key := r.key("acme", apikey.RoleTenant)
	operator := r.key("ops", apikey.RoleOperator)
	type header = map[string]string
	jsonBody := header{"Content-Type": "application/json"}
	big := `{"env":{"A":"` + strings.Repeat("x", 2<<20) + `"}}`
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	_, _ = z.Write([]byte(`{"env":{"A":"`))
	_, _ = io.Copy(z, io.LimitReader(zeros{}, 64<<20))
	_ = z.Close()
	const rpc = "/sirocco.v1.SandboxService/Create"
	cases := []struct {
		name, method, path string
		header             header
		body               string
		status             int
		code               fault.Code
		field              string
	}{
		{"unknown field", "POST", "/v1/sandboxes", jsonBody, `{"comand":["x"]}`, 400, fault.InvalidArgument, "comand"},
		{"unknown inner field", "POST", "/v1/sandboxes", jsonBody, `{"resources":{"ram":1}}`, 400, fault.InvalidArgument, "resources.ram"},
		{"no JSON", "POST", "/v1/sandboxes", jsonBody, `{"command":`, 400, fault.InvalidArgument, ""},
		{"no body", "POST", "/v1/sandboxes", jsonBody, "", 400, fault.InvalidArgument, ""},
		{"a list", "POST", "/v1/sandboxes", jsonBody, `[]`, 400, fault.InvalidArgument, ""},
		{"a field twice", "POST", "/v1/sandboxes", jsonBody, `{"name":"a","name":"b"}`, 400, fault.InvalidArgument, "name"},
		{"invalid UTF-8", "POST", "/v1/sandboxes", jsonBody, "{\"name\":\"\xff\"}", 400, fault.InvalidArgument, "name"},
		{"wrong type", "POST", "/v1/sandboxes", jsonBody, `{"name":7}`, 400, fault.InvalidArgument, "name"},
		{"negative port", "POST", "/v1/sandboxes", jsonBody, `{"ports":[{"port":80},{"port":-1}]}`, 400, fault.InvalidArgument, "ports[1].port"},
		{"negative port over Connect", "POST", rpc, jsonBody, `{"ports":[{"port":80},{"port":-1}]}`, 400, fault.InvalidArgument, "ports[1].port"},
		{"overflow", "POST", "/v1/sandboxes", jsonBody, `{"resources":{"memoryLimitBytes":"99999999999999999999"}}`, 400, fault.InvalidArgument, "resources.memory_limit_bytes"},
		{"unknown mode", "POST", rpc, jsonBody, `{"network":{"mode":"NETWORK_MODE_MAGIC"}}`, 400, fault.InvalidArgument, "network.mode"},
		{"deep", "POST", "/v1/sandboxes", jsonBody, strings.Repeat(`{"resources":`, 100000), 400, fault.InvalidArgument, ""},
		{"2 MB env", "POST", "/v1/sandboxes", jsonBody, big, 400, fault.InvalidArgument, ""},
		{"2 MB env over Connect", "POST", rpc, jsonBody, big, 400, fault.InvalidArgument, ""},
		{"a bomb", "POST", "/v1/sandboxes", header{"Content-Type": "application/json", "Content-Encoding": "gzip"}, bomb.String(), 400, fault.InvalidArgument, ""},
		{"a bomb over Connect", "POST", rpc, header{"Content-Type": "application/json", "Content-Encoding": "gzip"}, bomb.String(), 400, fault.InvalidArgument, ""},
		{"wrong content type", "POST", "/v1/sandboxes", header{"Content-Type": "text/plain"}, `{}`, 415, fault.InvalidArgument, ""},
		{"a form", "POST", "/v1/sandboxes", header{"Content-Type": "application/x-www-form-urlencoded"}, `image=base`, 415, fault.InvalidArgument, ""},
		{"no content type", "POST", "/v1/sandboxes", nil, `image=base`, 400, fault.InvalidArgument, ""},
		{"curl -d", "POST", "/v1/sandboxes", header{"Content-Type": "application/x-www-form-urlencoded"}, `{"comand":["x"]}`, 400, fault.InvalidArgument, "comand"},
		{"JSON without a content type", "POST", "/v1/sandboxes", nil, `{"comand":["x"]}`, 400, fault.InvalidArgument, "comand"},
		{"a form without a key", "POST", "/v1/sandboxes", header{"Authorization": "", "Content-Type": "application/x-www-form-urlencoded"}, `{}`, 401, fault.Unauthenticated, ""},
		{"wrong content type over Connect", "POST", rpc, header{"Content-Type": "application/xml"}, `{}`, 400, fault.InvalidArgument, ""},
		{"wrong method", "PATCH", "/v1/sandboxes", jsonBody, `{}`, 405, fault.InvalidArgument, ""},
		{"wrong method over Connect", "PUT", rpc, jsonBody, `{}`, 405, fault.InvalidArgument, ""},
		{"no such path", "GET", "/v1/nothing", nil, "", 404, fault.NotFound, ""},
		{"no such path at all", "GET", "/nothing", nil, "", 404, fault.NotFound, ""},
		{"no such call", "POST", "/sirocco.v1.SandboxService/Destroy", jsonBody, `{}`, 404, fault.NotFound, ""},
		{"no such service", "POST", "/sirocco.v1.RootService/Get", jsonBody, `{}`, 404, fault.NotFound, ""},
		{"unknown parameter", "GET", "/v1/sandboxes?colour=red", nil, "", 400, fault.InvalidArgument, "colour"},
		{"bad page", "GET", "/v1/sandboxes?page_size=-1", nil, "", 400, fault.InvalidArgument, "page_size"},
		{"big page", "GET", "/v1/sandboxes?page_size=1001", nil, "", 400, fault.InvalidArgument, "page_size"},
		{"bad token", "GET", "/v1/sandboxes?page_token=x", nil, "", 400, fault.InvalidArgument, "page_token"},
		{"bad state", "GET", "/v1/sandboxes?states=STATE_ASLEEP", nil, "", 400, fault.InvalidArgument, "states"},
		{"a parameter that is no text", "GET", "/v1/sandboxes?name=%ff", nil, "", 400, fault.InvalidArgument, "name"},
		{"bad tag", "GET", "/v1/sandboxes?tags=x", nil, "", 400, fault.InvalidArgument, "tags"},
		{"two keys", "POST", "/v1/sandboxes", header{"Content-Type": "application/json", "Idempotency-Key": "a"}, `{"idempotency_key":"b"}`, 400, fault.InvalidArgument, "idempotency_key"},
		{"events: bad from", "GET", "/v1/events?from=x", nil, "", 400, fault.InvalidArgument, "from"},
		{"events: unknown parameter", "GET", "/v1/events?since=1", nil, "", 400, fault.InvalidArgument, "since"},
		{"events: bad id", "GET", "/v1/events", header{"Last-Event-ID": "x"}, "", 400, fault.InvalidArgument, "Last-Event-ID"},
		{"events: no such sandbox", "GET", "/v1/events?id=" + sandboxid.New(), nil, "", 404, fault.NotFound, ""},
		{"events: post", "POST", "/v1/events", jsonBody, "{}", 405, fault.InvalidArgument, ""},
		{"exec over Connect", "POST", "/sirocco.v1.ExecService/Start", jsonBody, `{}`, 400, fault.FailedPrecondition, ""},
		{"gRPC-Web", "POST", rpc, header{"Content-Type": "application/grpc-web+proto"}, "", 200, "", ""},
		{"no key", "GET", "/v1/sandboxes", header{"Authorization": ""}, "", 401, fault.Unauthenticated, ""},
		{"a wrong key", "GET", "/v1/sandboxes", header{"Authorization": "Bearer sk_" + strings.Repeat("A", 43)}, "", 401, fault.Unauthenticated, ""},
		{"another scheme", "GET", "/v1/sandboxes", header{"Authorization": "Basic " + key}, "", 401, fault.Unauthenticated, ""},
		{"no key over Connect", "POST", rpc, header{"Authorization": "", "Content-Type": "application/json"}, "{}", 401, fault.Unauthenticated, ""},
		{"no key for events", "GET", "/v1/events", header{"Authorization": ""}, "", 401, fault.Unauthenticated, ""},
		{"drain: no such node", "POST", "/v1/nodes/n9/drain", header{"Authorization": "Bearer " + operator, "Content-Type": "application/json"}, "{}", 404, fault.NotFound, ""},
		{"import: no archive", "POST", "/v1/images/app", header{"Authorization": "Bearer " + operator, "Content-Type": "application/x-tar"}, "hello", 400, fault.InvalidArgument, "body"},
		{"import: empty", "POST", "/v1/images/app", header{"Authorization": "Bearer " + operator, "Content-Type": "application/x-tar"}, "", 400, fault.InvalidArgument, "body"},
		{"import: bad name", "POST", "/v1/images/base", header{"Authorization": "Bearer " + operator, "Content-Type": "application/x-tar"}, "", 400, fault.InvalidArgument, "name"},
		{"import: tenant", "POST", "/v1/images/app", header{"Content-Type": "application/x-tar"}, "x", 403, fault.PermissionDenied, ""},
		{"remove: built in", "DELETE", "/v1/images/base", header{"Authorization": "Bearer " + operator}, "", 412, fault.FailedPrecondition, ""},
		{"remove: no such image", "DELETE", "/v1/images/app", header{"Authorization": "Bearer " + operator}, "", 404, fault.ImageNotFound, ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), c.method, r.url+c.path, strings.NewReader(c.body))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Authorization", "Bearer "+key)
			for k, v := range c.header {
				if v == "" {
					req.Header.Del(k)
				} else {
					req.Header.Set(k, v)
				}
			}
			resp, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != c.status {
				t.Errorf("status %d; want %d: %s", resp.StatusCode, c.status, body)
			}
			if c.code == "" {
				if resp.Header.Get("Grpc-Status") != "3" || resp.Header.Get("Grpc-Status-Details-Bin") == "" {
					t.Errorf("headers %v", resp.Header)
				}
				return
			}
			f := anyFault(c.path, resp.StatusCode, body)
			if f == nil || f.Code != c.code || f.Field != c.field || f.Message == "" {
				t.Errorf("%v; want %s (%s)", f, c.code, c.field)
			}
			if len(c.body) > 10<<10 && c.name != "deep" && !strings.Contains(f.Message, "1048576") {
				t.Errorf("%v does not tell the limit", f)
			}
		})
	}
	r.mustBeEmpty()
}

// A body of JSON makes a sandbox whatever plain clients call it; what is no JSON
// is told how to become some.
func TestBodiesWithoutTheirContentType(t *testing.T) {
	r := start(t, api.Config{})
	key := r.key("acme", apikey.RoleTenant)
	for kind, want := range map[string]int{
		"": 200, "application/x-www-form-urlencoded": 200, "Application/X-WWW-Form-URLEncoded; charset=UTF-8": 200, "application/json": 200,
		"text/plain": 415, "multipart/form-data; boundary=x": 415, "application/xml": 415,
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.url+"/v1/sandboxes", strings.NewReader(`{"command":["true"]}`))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+key)
		if kind != "" {
			req.Header.Set("Content-Type", kind)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil || resp.StatusCode != want {
			t.Errorf("%q: %s %s, %v; want %d", kind, resp.Status, body, err, want)
		}
		if want == 415 && !strings.Contains(string(body), "send JSON, with the header Content-Type: application/json") {
			t.Errorf("%q: %s", kind, body)
		}
	}
}

// anyFault reads the body of an error of REST or Connect.
func anyFault(path string, status int, body []byte) *fault.Fault {
	if strings.HasPrefix(path, "/sirocco.v1.") {
		if f := rpc.ReadConnectError(body); f != nil {
			return f
		}
	}
	return fault.From(restFault(status, body))
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}

// A stream whose message ends early is the caller's mistake, not ours.
func TestTruncatedStream(t *testing.T) {
	r := start(t, api.Config{})
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.url+"/sirocco.v1.SandboxService/Watch", strings.NewReader("\x00\x00\x00\x00\xff{"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+r.key("acme", apikey.RoleTenant))
	req.Header.Set("Content-Type", "application/connect+json")
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || !strings.Contains(string(body), `"code":"invalid_argument"`) {
		t.Errorf("%q, %v", body, err)
	}
}

// A body that ends early gets an error, and the connection is not left hanging.
func TestTruncatedBody(t *testing.T) {
	r := start(t, api.Config{})
	key := r.key("acme", apikey.RoleTenant)
	for _, path := range []string{"/v1/sandboxes", "/sirocco.v1.SandboxService/Create"} {
		conn, err := net.Dial("tcp", strings.TrimPrefix(r.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		_, err = fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{\"command\":[", path, key)
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		_ = conn.SetReadDeadline(time.Now().Add(wait))
		answer, err := io.ReadAll(conn)
		conn.Close()
		if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 400") || !strings.Contains(string(answer), "invalid_argument") {
			t.Errorf("%s: %q, %v", path, answer, err)
		}
	}
	r.mustBeEmpty()
}

func TestBadBodiesOverTheBus(t *testing.T) {
	r := start(t, api.Config{})
	for body, field := range map[string]string{
		`{"comand":["x"]}`: "comand", `{"command":`: "", "\x01\x02\x03hello": "", "\xfa\x3f\x01x": "1023", "{\"name\":\"\xff\"}": "name",
		"\x32\x03\xfa\x3f\x00": "resources.1023", `{"ports":[{"port":-1}]}`: "ports[0].port",
	} {
		msg, err := r.nc.Request("sirocco.api.acme.sandbox.create", []byte(body), wait)
		if err != nil {
			t.Fatalf("%q: %v", body, err)
		}
		if code := msg.Header.Get("Nats-Service-Error-Code"); code != "invalid_argument" {
			t.Errorf("%q: code %q: %s", body, code, msg.Data)
		}
		detail := &siroccov1.ErrorDetail{}
		if bus.Decode(msg.Header, msg.Data, detail) != nil || detail.GetField() != field {
			t.Errorf("%q: %v; want the field %q", body, detail, field)
		}
	}
	r.mustBeEmpty()
}

// Where the data services are, for those who ask here.
func TestDataServicesAreElsewhere(t *testing.T) {
	r := start(t, api.Config{})
	still := &http.Client{Timeout: wait, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	for _, path := range []string{"/v1/sandboxes/sb-x/execs", "/v1/sandboxes/sb-x/execs/main/output?follow=true", "/v1/sandboxes/sb-x/files/content?path=%2Fa", "/v1/sandboxes/sb-x/logs"} {
		resp, err := still.Get(r.url + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusTemporaryRedirect || resp.Header.Get("Location") != "https://data.sandbox.localhost:7443"+path {
			t.Errorf("%s: %d to %q", path, resp.StatusCode, resp.Header.Get("Location"))
		}
	}
	for _, tr := range r.transports("acme", r.key("acme", apikey.RoleTenant))[:3] {
		err := tr.call(t.Context(), "ExecService/Start", &siroccov1.StartExecRequest{}, &siroccov1.Exec{})
		if fault.CodeOf(err) != fault.FailedPrecondition || !strings.Contains(err.Error(), "https://data.sandbox.localhost:7443") {
			t.Errorf("%s: %v", tr.name, err)
		}
	}
}

// An internal fault tells nothing but an id, which finds the log line.
func TestInternalFaultTellsNothing(t *testing.T) {
	r := start(t, api.Config{})
	ctx := t.Context()
	kv, err := r.js.KeyValue(ctx, "sirocco-idempotency")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kv.Put(ctx, "acme.broken", []byte("secret rubbish")); err != nil {
		t.Fatal(err)
	}
	for _, tr := range r.transports("acme", r.key("acme", apikey.RoleTenant)) {
		err := tr.call(ctx, "SandboxService/Create", &siroccov1.CreateSandboxRequest{IdempotencyKey: "broken"}, &siroccov1.CreateSandboxResponse{})
		f := fault.From(err)
		if f.Code != fault.Internal || f.ErrorID == "" || f.Message != "an internal fault" {
			t.Errorf("%s: %v", tr.name, err)
			continue
		}
		if !strings.Contains(r.logs.String(), f.ErrorID) {
			t.Errorf("%s: no log line holds %s", tr.name, f.ErrorID)
		}
	}
}
