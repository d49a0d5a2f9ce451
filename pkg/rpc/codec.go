package rpc

import (
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
	return protojson.Unmarshal(data, pm)
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
	return unreadable(c.JSONCodec.Unmarshal(data, m))
}

// UnmarshalField implements vanguard.RESTCodec.
func (c restJSON) UnmarshalField(data []byte, m proto.Message, field protoreflect.FieldDescriptor) error {
	return unreadable(c.JSONCodec.UnmarshalField(data, m, field))
}

func unreadable(err error) error {
	if err == nil {
		return nil
	}
	return connect.NewError(connect.CodeInvalidArgument, err)
}

// CheckUnknown refuses a message that holds, anywhere, a field that this
// version does not have: what it asked for would be left out in silence. The
// error is an InvalidArgument fault.
func CheckUnknown(m protoreflect.Message) error {
	if len(m.GetUnknown()) > 0 {
		return fault.New(fault.InvalidArgument, "it holds fields that %s does not have", m.Descriptor().Name())
	}
	var err error
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.IsMap():
			if fd.MapValue().Message() != nil {
				v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
					err = CheckUnknown(v.Message())
					return err == nil
				})
			}
		case fd.Message() == nil:
		case fd.IsList():
			for i := 0; i < v.List().Len() && err == nil; i++ {
				err = CheckUnknown(v.List().Get(i).Message())
			}
		default:
			err = CheckUnknown(v.Message())
		}
		return err == nil
	})
	return err
}
