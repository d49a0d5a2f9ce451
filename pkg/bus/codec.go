package bus

import (
	"github.com/nats-io/nats.go"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/subject"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// IsJSON says whether a body is JSON: by its Content-Type or, without one,
// when it is empty or starts with "{". (No protobuf message here starts with
// that byte: it would be a group, which proto3 does not have.)
func IsJSON(h nats.Header, body []byte) bool {
	switch h.Get(subject.HeaderContentType) {
	case subject.ContentJSON:
		return true
	case subject.ContentProtobuf:
		return false
	}
	return len(body) == 0 || body[0] == '{'
}

// Decode reads a body into m. JSON with a field that m does not have is
// refused; an empty body is the empty message. The error is an
// InvalidArgument fault.
func Decode(h nats.Header, body []byte, m proto.Message) error {
	if IsJSON(h, body) {
		if len(body) == 0 {
			return nil
		}
		if err := protojson.Unmarshal(body, m); err != nil {
			return fault.New(fault.InvalidArgument, "the body is not the JSON of a %s: %w", m.ProtoReflect().Descriptor().Name(), err)
		}
		return nil
	}
	if err := proto.Unmarshal(body, m); err != nil {
		return fault.New(fault.InvalidArgument, "the body is not the protobuf of a %s: %w", m.ProtoReflect().Descriptor().Name(), err)
	}
	if unknown := m.ProtoReflect().GetUnknown(); len(unknown) > 0 {
		return fault.New(fault.InvalidArgument, "the body holds fields that %s does not have", m.ProtoReflect().Descriptor().Name())
	}
	return nil
}

// DecodeStrict is Decode for what clients send: fields that are not known are
// refused at any depth, in protobuf too. (Between services of two versions, a
// record may hold fields that only one of them knows.)
func DecodeStrict(h nats.Header, body []byte, m proto.Message) error {
	if err := Decode(h, body, m); err != nil {
		return err
	}
	return known(m.ProtoReflect())
}

// known refuses a message that holds fields it does not have, at any depth.
func known(m protoreflect.Message) error {
	if len(m.GetUnknown()) > 0 {
		return fault.New(fault.InvalidArgument, "the body holds fields that %s does not have", m.Descriptor().Name())
	}
	var err error
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.IsMap():
			if fd.MapValue().Message() == nil {
				return true
			}
			v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
				err = known(v.Message())
				return err == nil
			})
		case fd.Message() == nil:
		case fd.IsList():
			for i := 0; i < v.List().Len() && err == nil; i++ {
				err = known(v.List().Get(i).Message())
			}
		default:
			err = known(v.Message())
		}
		return err == nil
	})
	return err
}

// Encode writes m as JSON or protobuf and returns the matching Content-Type.
func Encode(m proto.Message, asJSON bool) (body []byte, contentType string, err error) {
	if asJSON {
		body, err = protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
		return body, subject.ContentJSON, err
	}
	body, err = proto.Marshal(m)
	return body, subject.ContentProtobuf, err
}
