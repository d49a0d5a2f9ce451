package fault

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"unicode/utf8"

	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

func TestUnreadableNamesTheField(t *testing.T) {
	t.Parallel()
	for body, want := range map[string]string{
		`{"comand":["x"]}`:                             "comand",
		`{"resources":{"ram":1}}`:                      "resources.ram",
		`{"ports":[{"port":80},{"port":-1}]}`:          "ports[1].port",
		"{\n \"name\":\"ü\",\n\t\"env\":{\"Ä\":[]}\n}": "env.Ä",
		`{"resources":{"memoryLimitBytes":"1e99"}}`:    "resources.memory_limit_bytes",
		`{"maxLifetime":"soon"}`:                       "max_lifetime",
		`{"network":{"mode":"NETWORK_MODE_MAGIC"}}`:    "network.mode",
		`{"resources":7}`:                              "resources",
		`{"command":"x"}`:                              "command",
		`{"command":["a",["b"]]}`:                      "command[1]",
		`{"ports":[null]}`:                             "ports[0]",
		`{"name":"a","name":"b"}`:                      "name",
		"{\"name\":\"\xff\"}":                          "name",
		"{\"tags\":{\"\xff\":\"\"}}":                   "tags",
		"{\"\xff\":1}":                                 "",
		`[]`:                                           "",
		`7`:                                            "",
		`{"command":`:                                  "",
		`{"name":"a"} {`:                               "",
		`{"` + strings.Repeat("x", 2000) + `":1}`:      "",
	} {
		m := &siroccov1.CreateSandboxRequest{}
		f := Unreadable([]byte(body), m, protojson.Unmarshal([]byte(body), m))
		if f.Code != InvalidArgument || f.Field != want || len(f.Message) > maxUnreadable+3 || !utf8.ValidString(f.Message) || strings.Contains(f.Message, "memoryLimitBytes") {
			t.Errorf("%s: %v; want the field %q", body, f, want)
		}
	}
}

func TestUnknownFieldsOfProtobufHaveANumber(t *testing.T) {
	t.Parallel()
	strange := &siroccov1.Port{Port: 80}
	strange.ProtoReflect().SetUnknown([]byte("\xfa\x3f\x01x"))
	inner := &siroccov1.CreateSandboxRequest{Ports: []*siroccov1.Port{{}, strange}}
	for want, m := range map[string]proto.Message{"1023": strange, "ports[1].1023": inner} {
		var f *Fault
		if err := CheckUnknown(m.ProtoReflect()); !errors.As(err, &f) || f.Code != InvalidArgument || f.Field != want {
			t.Errorf("%v; want the field %q", err, want)
		}
		if f := Unreadable(nil, m, Invalid("", "it holds fields that are not known")); f.Field != want {
			t.Errorf("of the bus: %v; want the field %q", f, want)
		}
	}
	if err := CheckUnknown((&siroccov1.CreateSandboxRequest{Env: map[string]string{"A": "b"}, Ports: []*siroccov1.Port{{}}}).ProtoReflect()); err != nil {
		t.Error(err)
	}
}

// FuzzUnreadable: whatever can't be read gets a fault that can be sent.
func FuzzUnreadable(f *testing.F) {
	for _, seed := range []string{"", `{"ports":[{"port":-1}]}`, "{\"env\":{\"\xff\":1}}", `{"a":{"b":[[{}]]}}`, "\n\n[", `{"name":1e999}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		m := &siroccov1.CreateSandboxRequest{}
		err := protojson.Unmarshal(body, m)
		if err == nil {
			return
		}
		got := Unreadable(body, m, err)
		if got.Code != InvalidArgument || !utf8.ValidString(got.Message) || !utf8.ValidString(got.Field) || got.Field != "" && !json.Valid(body) {
			t.Errorf("%q: %v", body, got)
		}
	})
}
