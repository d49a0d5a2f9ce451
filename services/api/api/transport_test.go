package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/nats-io/nats.go"
	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/subject"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// transport is one way to call the api. call fills resp, or returns a fault.
type transport struct {
	name string
	call func(ctx context.Context, procedure string, req, resp proto.Message) error
}

// rest are the methods and paths of the calls that tests make over REST; the
// path's {id} is taken from the request.
var rest = map[string]struct {
	method, path, idField string
	body                  bool
}{
	"SandboxService/Create":       {"POST", "/v1/sandboxes", "", true},
	"SandboxService/Get":          {"GET", "/v1/sandboxes/{}", "id", false},
	"SandboxService/Terminate":    {"DELETE", "/v1/sandboxes/{}", "id", false},
	"SandboxService/Extend":       {"POST", "/v1/sandboxes/{}/extend", "id", true},
	"SandboxService/SetTags":      {"PUT", "/v1/sandboxes/{}/tags", "id", true},
	"SandboxService/CreateToken":  {"POST", "/v1/sandboxes/{}/token", "id", true},
	"SandboxService/List":         {"GET", "/v1/sandboxes", "", false},
	"TunnelService/Open":          {"POST", "/v1/sandboxes/{}/tunnels", "sandbox_id", true},
	"TunnelService/Close":         {"DELETE", "/v1/sandboxes/{}/tunnels/8000", "sandbox_id", false},
	"TunnelService/List":          {"GET", "/v1/sandboxes/{}/tunnels", "sandbox_id", false},
	"NodeService/List":            {"GET", "/v1/nodes", "", false},
	"NodeService/Cordon":          {"POST", "/v1/nodes/{}/cordon", "name", true},
	"NodeService/Drain":           {"POST", "/v1/nodes/{}/drain", "name", true},
	"NodeService/GetDrain":        {"GET", "/v1/nodes/{}/drain", "name", false},
	"RegionService/Evacuate":      {"POST", "/v1/regions/{}/evacuate", "region", true},
	"RegionService/GetEvacuation": {"GET", "/v1/regions/{}/evacuation", "region", false},
	"PoolService/List":            {"GET", "/v1/pools", "", false},
	"PoolService/Set":             {"PUT", "/v1/pools/{}", "name", true},
	"PoolService/Remove":          {"DELETE", "/v1/pools/{}", "name", false},
	"QuotaService/List":           {"GET", "/v1/quotas", "", false},
	"QuotaService/Set":            {"PUT", "/v1/quotas/{}", "tenant", true},
	"QuotaService/Remove":         {"DELETE", "/v1/quotas/{}", "tenant", false},
	"ImageService/List":           {"GET", "/v1/images", "", false},
	"ImageService/Remove":         {"DELETE", "/v1/images/{}", "name", false},
}

// asks are the subjects of the calls over the bus.
var asks = map[string][2]string{
	"SandboxService/Create": {"sandbox", "create"}, "SandboxService/Get": {"sandbox", "get"}, "SandboxService/List": {"sandbox", "list"},
	"SandboxService/Terminate": {"sandbox", "terminate"}, "SandboxService/Extend": {"sandbox", "extend"},
	"SandboxService/SetTags": {"sandbox", "set-tags"}, "SandboxService/CreateToken": {"sandbox", "create-token"},
	"TunnelService/Open": {"tunnel", "open"}, "TunnelService/Close": {"tunnel", "close"}, "TunnelService/List": {"tunnel", "list"},
	"NodeService/List": {"node", "list"}, "NodeService/Cordon": {"node", "cordon"}, "NodeService/Drain": {"node", "drain"},
	"NodeService/GetDrain": {"node", "get-drain"}, "RegionService/Evacuate": {"region", "evacuate"}, "RegionService/GetEvacuation": {"region", "get-evacuation"},
	"QuotaService/List": {"quota", "list"}, "QuotaService/Set": {"quota", "set"}, "QuotaService/Remove": {"quota", "remove"},
	"PoolService/List": {"pool", "list"}, "PoolService/Set": {"pool", "set"}, "PoolService/Remove": {"pool", "remove"},
	"ImageService/List": {"image", "list"}, "ImageService/Remove": {"image", "remove"},
}

// transports are all the ways in, for a tenant with a key.
func (r *region) transports(tenant, key string) []transport {
	h2c := &http.Transport{Protocols: &http.Protocols{}}
	h2c.Protocols.SetUnencryptedHTTP2(true)
	r.t.Cleanup(h2c.CloseIdleConnections)
	plain := &http.Transport{}
	r.t.Cleanup(plain.CloseIdleConnections)
	rpc := func(client *http.Client, asJSON bool, opts ...connect.ClientOption) func(context.Context, string, proto.Message, proto.Message) error {
		return func(ctx context.Context, procedure string, req, resp proto.Message) error {
			return callRPC(ctx, client, r.url, procedure, key, asJSON, req, resp, opts...)
		}
	}
	return []transport{
		{"grpc", rpc(&http.Client{Transport: h2c}, false, connect.WithGRPC())},
		{"connect", rpc(&http.Client{Transport: plain}, false)},
		{"connect-json", rpc(&http.Client{Transport: plain}, true)},
		{"rest", func(ctx context.Context, procedure string, req, resp proto.Message) error {
			return r.callREST(ctx, &http.Client{Transport: plain}, procedure, key, req, resp)
		}},
		{"rest-h2c", func(ctx context.Context, procedure string, req, resp proto.Message) error {
			return r.callREST(ctx, &http.Client{Transport: h2c}, procedure, key, req, resp)
		}},
		{"bus", func(ctx context.Context, procedure string, req, resp proto.Message) error {
			a := asks[procedure]
			return bus.Ask(ctx, r.nc, subject.API(tenant, a[0], a[1]), req, resp)
		}},
		{"bus-json", func(ctx context.Context, procedure string, req, resp proto.Message) error {
			a := asks[procedure]
			body, err := protojson.Marshal(req)
			if err != nil {
				return err
			}
			return r.askJSON(ctx, subject.API(tenant, a[0], a[1]), body, resp)
		}},
	}
}

// raw is a message that has been encoded already.
type raw struct{ body []byte }

type rawCodec struct{ name string }

func (c rawCodec) Name() string                  { return c.name }
func (c rawCodec) Marshal(m any) ([]byte, error) { return m.(*raw).body, nil }
func (c rawCodec) Unmarshal(b []byte, m any) error {
	if pm, ok := m.(proto.Message); ok { // the status of gRPC
		return proto.Unmarshal(b, pm)
	}
	m.(*raw).body = bytes.Clone(b)
	return nil
}

// callRPC calls a procedure with a message of any type.
func callRPC(ctx context.Context, client *http.Client, url, procedure, key string, asJSON bool, req, resp proto.Message, opts ...connect.ClientOption) error {
	encode, decode, name := proto.Marshal, proto.Unmarshal, "proto"
	if asJSON {
		encode, decode, name = protojson.Marshal, protojson.Unmarshal, "json"
	}
	body, err := encode(req)
	if err != nil {
		return err
	}
	r := connect.NewRequest(&raw{body})
	r.Header().Set("Authorization", "Bearer "+key)
	c := connect.NewClient[raw, raw](client, url+"/sirocco.v1."+procedure, append(opts, connect.WithCodec(rawCodec{name}))...)
	out, err := c.CallUnary(ctx, r)
	if err != nil {
		return fault.FromConnect(err)
	}
	return decode(out.Msg.body, resp)
}

func (r *region) askJSON(ctx context.Context, subj string, body []byte, resp proto.Message) error {
	msg := nats.NewMsg(subj)
	msg.Data = body
	answer, err := r.nc.RequestMsgWithContext(ctx, msg)
	if err != nil {
		return err
	}
	if answer.Header.Get(subject.HeaderErrorCode) != "" {
		d := &siroccov1.ErrorDetail{}
		if err := protojson.Unmarshal(answer.Data, d); err != nil {
			return fmt.Errorf("error answer %q: %w", answer.Data, err)
		}
		if d.GetCode() != answer.Header.Get(subject.HeaderErrorCode) {
			return fmt.Errorf("code %q in the header, %q in the body", answer.Header.Get(subject.HeaderErrorCode), d.GetCode())
		}
		return fault.FromDetail(d)
	}
	return protojson.Unmarshal(answer.Data, resp)
}

func (r *region) callREST(ctx context.Context, client *http.Client, procedure, key string, req, resp proto.Message) error {
	route := rest[procedure]
	path := route.path
	c := proto.Clone(req)
	if route.idField != "" {
		f := c.ProtoReflect().Descriptor().Fields().ByName(protoreflect.Name(route.idField))
		path = strings.Replace(path, "{}", c.ProtoReflect().Get(f).String(), 1)
		c.ProtoReflect().Clear(f)
	}
	var body io.Reader
	if route.body {
		text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(c)
		if err != nil {
			return err
		}
		body = bytes.NewReader(text)
	}
	hr, err := http.NewRequestWithContext(ctx, route.method, r.url+path, body)
	if err != nil {
		return err
	}
	if route.body {
		hr.Header.Set("Content-Type", "application/json")
	}
	hr.Header.Set("Authorization", "Bearer "+key)
	answer, err := client.Do(hr)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		return err
	}
	if answer.StatusCode != http.StatusOK {
		return restFault(answer.StatusCode, text)
	}
	return protojson.Unmarshal(text, resp)
}

// restFault reads a REST error and checks its shape.
func restFault(status int, body []byte) error {
	var shape struct {
		Code    int               `json:"code"`
		Message string            `json:"message"`
		Details []json.RawMessage `json:"details"`
	}
	if err := json.Unmarshal(body, &shape); err != nil || len(shape.Details) != 1 || shape.Code == 0 {
		return fmt.Errorf("HTTP %d with a strange body %q: %w", status, body, err)
	}
	var detail struct {
		Type       string `json:"@type"`
		Code       string `json:"code"`
		Message    string `json:"message"`
		Field      string `json:"field"`
		Scope      string `json:"scope"`
		RetryAfter string `json:"retry_after"`
		ErrorID    string `json:"error_id"`
	}
	if err := json.Unmarshal(shape.Details[0], &detail); err != nil || detail.Type != "type.googleapis.com/sirocco.v1.ErrorDetail" {
		return fmt.Errorf("HTTP %d with strange details %q: %w", status, body, err)
	}
	f := &fault.Fault{Code: fault.Code(detail.Code), Message: detail.Message, Field: detail.Field, Scope: detail.Scope, ErrorID: detail.ErrorID}
	if detail.RetryAfter != "" {
		f.RetryAfter, _ = time.ParseDuration(detail.RetryAfter)
	}
	return f
}

// do sends a REST request; resp is filled, or a fault returned.
func do(req *http.Request, resp proto.Message) error {
	answer, err := client.Do(req)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		return err
	}
	if answer.StatusCode != http.StatusOK {
		return restFault(answer.StatusCode, text)
	}
	return protojson.Unmarshal(text, resp)
}
