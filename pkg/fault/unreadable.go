package fault

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

const (
	// maxUnreadable bounds, in bytes, what is told of a body: protojson repeats a
	// bad value whole, and gRPC carries the text in a header.
	maxUnreadable = 500
	// maxKey is the longest name of the caller's own that becomes part of a field.
	maxKey = 100
)

// jsonPosition is how protojson says where it stopped: the line, and the column
// in runes. It has no error type for it.
var jsonPosition = regexp.MustCompile(`\(line (\d+):(\d+)\): `)

// Unreadable makes the fault of a body that could not be read into m, with err
// as the reason. The field is what stands in the JSON where protojson stopped;
// there is none if the body is no JSON at all. Of protobuf only the field of
// CheckUnknown is known, if err is from bus.Decode and says that.
func Unreadable(body []byte, m proto.Message, err error) *Fault {
	text := err.Error()
	var f *Fault
	if errors.As(err, &f) {
		text = f.Message
		if unknown := unknownIn(m.ProtoReflect()); f.Cause == nil && unknown != nil {
			return unknown
		}
	}
	out := &Fault{Code: InvalidArgument, Cause: err}
	if at := jsonPosition.FindStringSubmatch(text); at != nil && json.Valid(body) {
		offset := offsetOf(body, at[1], at[2])
		find := finder{dec: json.NewDecoder(bytes.NewReader(body)), offset: int64(offset)}
		find.dec.UseNumber() // so that no number is an error here
		if find.value(nil, m.ProtoReflect().Descriptor()) {
			out.Field = find.field()
			if find.fd != nil {
				// Its other name is nowhere else in the contract.
				text = strings.Replace(text, " field "+find.fd.JSONName()+": ", " field "+string(find.fd.Name())+": ", 1)
			}
		}
	}
	text = strings.ToValidUTF8(text, "�")
	if len(text) > maxUnreadable {
		text = strings.ToValidUTF8(text[:maxUnreadable], "") + "…"
	}
	out.Message = text
	return out
}

// offsetOf is the inverse of how protojson makes a position.
func offsetOf(body []byte, line, column string) int {
	lines, _ := strconv.Atoi(line)
	runes, _ := strconv.Atoi(column)
	offset := 0
	for ; lines > 1; lines-- {
		offset += bytes.IndexByte(body[offset:], '\n') + 1
	}
	for ; runes > 1 && offset < len(body); runes-- {
		_, size := utf8.DecodeRune(body[offset:])
		offset += size
	}
	return offset
}

// finder walks through JSON to the token at an offset, and remembers its way.
type finder struct {
	dec    *json.Decoder
	offset int64
	path   []step
	fd     protoreflect.FieldDescriptor // of what was found, if it has one
}

// step is one part of a path: the name of a member, or the index of an element.
type step struct {
	name  string
	index int
}

// value reads one value, of a field or (fd is nil) the whole body, and says
// whether the offset is in it; its path is then what remains.
func (f *finder) value(fd protoreflect.FieldDescriptor, md protoreflect.MessageDescriptor) bool {
	token, err := f.dec.Token()
	if err != nil {
		return f.lost()
	}
	if f.reached(fd) {
		return true
	}
	switch token {
	case json.Delim('['):
		for i := 0; f.dec.More(); i++ {
			f.path = append(f.path, step{index: i})
			if f.value(fd, md) {
				return true
			}
			f.path = f.path[:len(f.path)-1]
		}
	case json.Delim('{'):
		for f.dec.More() {
			if f.member(fd, md) {
				return true
			}
		}
	default:
		return false
	}
	if _, err = f.dec.Token(); err != nil { // the closing one
		return f.lost()
	}
	return f.reached(fd)
}

// member reads a name and its value.
func (f *finder) member(fd protoreflect.FieldDescriptor, md protoreflect.MessageDescriptor) bool {
	token, err := f.dec.Token()
	key, ok := token.(string)
	if err != nil || !ok {
		return f.lost()
	}
	var next protoreflect.FieldDescriptor
	switch {
	case fd != nil && fd.IsMap():
		next = fd.MapValue()
	case md != nil:
		if next = md.Fields().ByJSONName(key); next == nil {
			next = md.Fields().ByTextName(key)
		}
		if next != nil {
			key = string(next.Name())
		}
	}
	if len(key) > maxKey || strings.ContainsRune(key, utf8.RuneError) {
		if f.reached(nil) {
			return true // what it is in must do
		}
		key = "…"
	}
	f.path = append(f.path, step{name: key, index: -1})
	if f.reached(next) {
		return true
	}
	var inner protoreflect.MessageDescriptor
	if next != nil && !next.IsMap() {
		inner = next.Message()
	}
	if f.value(next, inner) {
		return true
	}
	f.path = f.path[:len(f.path)-1]
	return false
}

// reached says whether the offset is in what was read last.
func (f *finder) reached(fd protoreflect.FieldDescriptor) bool {
	if f.dec.InputOffset() <= f.offset {
		return false
	}
	f.fd = fd
	return true
}

// lost ends the walk without a field. It can't be: the JSON is valid.
func (f *finder) lost() bool {
	f.path = nil
	return true
}

func (f *finder) field() string {
	var out strings.Builder
	for i, s := range f.path {
		switch {
		case s.index >= 0:
			fmt.Fprintf(&out, "[%d]", s.index)
		case i > 0:
			out.WriteString("." + s.name)
		default:
			out.WriteString(s.name)
		}
	}
	return out.String()
}

// CheckUnknown refuses a message that holds, anywhere, a field that this
// version does not have: what it asked for would be left out in silence. The
// error is an InvalidArgument fault; its field ends with the number, which is all
// that protobuf knows of such a field.
func CheckUnknown(m protoreflect.Message) error {
	if f := unknownIn(m); f != nil {
		return f
	}
	return nil
}

// unknownIn builds the path from its end, so that it costs nothing where all is
// well.
func unknownIn(m protoreflect.Message) (found *Fault) {
	if raw := m.GetUnknown(); len(raw) > 0 {
		number, _, _ := protowire.ConsumeTag(raw)
		return Invalid(strconv.Itoa(int(number)), "%s has no field %d", m.Descriptor().Name(), number)
	}
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		part := string(fd.Name())
		switch {
		case fd.IsMap():
			if fd.MapValue().Message() == nil {
				return true
			}
			v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
				if found = unknownIn(v.Message()); found != nil {
					part += "." + k.String()
				}
				return found == nil
			})
		case fd.Message() == nil:
		case fd.IsList():
			for i := 0; i < v.List().Len() && found == nil; i++ {
				if found = unknownIn(v.List().Get(i).Message()); found != nil {
					part += fmt.Sprintf("[%d]", i)
				}
			}
		default:
			found = unknownIn(v.Message())
		}
		if found != nil {
			found.Field = part + "." + found.Field
		}
		return found == nil
	})
	return found
}
