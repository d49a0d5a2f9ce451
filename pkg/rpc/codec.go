package rpc

import (
	"strings"

	"connectrpc.com/connect"
	"connectrpc.com/vanguard"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// strictJSON is JSON as the contract has it: names as in the proto files, and
// a field that a message does not have is refused. (Connect's own codec drops
// such fields, so that a typing error would go unnoticed.)
//
// It takes the place of both of Connect's JSON codecs: the second is for
// content types that name the character set.
type strictJSON struct{ name string }

const (
	jsonName     = "json"
	jsonNameUTF8 = "json; charset=utf-8"
)

var _ connect.Codec = strictJSON{}

// Name implements connect.Codec.
func (c strictJSON) Name() string { return c.name }

// Marshal implements connect.Codec.
func (strictJSON) Marshal(m any) ([]byte, error) {
	pm, ok := m.(proto.Message)
	if !ok {
		return nil, fault.New(fault.Internal, "%T is no message", m)
	}
	return jsonOut.Marshal(pm)
}

// Unmarshal implements connect.Codec. An empty body is the empty message.
func (strictJSON) Unmarshal(data []byte, m any) error {
	pm, ok := m.(proto.Message)
	if !ok {
		return fault.New(fault.Internal, "%T is no message", m)
	}
	if len(data) == 0 {
		return nil
	}
	if err := protojson.Unmarshal(data, pm); err != nil {
		return fault.Unreadable(data, pm, err)
	}
	return nil
}

var jsonOut = protojson.MarshalOptions{UseProtoNames: true}

// MarshalJSON writes a message as the contract has it, for what is served
// beside RPC. Its only error is text that is not UTF-8.
func MarshalJSON(m proto.Message) ([]byte, error) { return jsonOut.Marshal(m) }

// restJSON is strictJSON for REST. What it can't read is the caller's mistake:
// without a code, the transcoder would take it for the server's.
type restJSON struct{ *vanguard.JSONCodec }

var _ vanguard.RESTCodec = restJSON{}

func newRESTJSON(res vanguard.TypeResolver) vanguard.Codec {
	codec := vanguard.NewJSONCodec(res)
	codec.MarshalOptions = protojson.MarshalOptions{UseProtoNames: true, Resolver: res}
	codec.UnmarshalOptions = protojson.UnmarshalOptions{Resolver: res}
	return restJSON{codec}
}

// Unmarshal implements vanguard.Codec.
func (c restJSON) Unmarshal(data []byte, m proto.Message) error {
	if err := c.JSONCodec.Unmarshal(data, m); err != nil {
		return fault.Connect(fault.Unreadable(data, m, err))
	}
	return nil
}

// UnmarshalField implements vanguard.RESTCodec.
func (c restJSON) UnmarshalField(data []byte, m proto.Message, field protoreflect.FieldDescriptor) error {
	err := c.JSONCodec.UnmarshalField(data, m, field)
	if err == nil {
		return nil
	}
	f := fault.Invalid(string(field.Name()), "%w", err)
	if field.Message() != nil && field.Cardinality() != protoreflect.Repeated {
		f = fault.Unreadable(data, m.ProtoReflect().Get(field).Message().Interface(), err)
		f.Field = strings.TrimSuffix(string(field.Name())+"."+f.Field, ".")
	}
	return fault.Connect(f)
}
