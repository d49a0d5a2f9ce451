package rpc

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/url"
	"strings"

	"connectrpc.com/connect"
	"github.com/sirocco-run/sirocco/pkg/fault"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// connectError is an error as the Connect protocol writes it.
type connectError struct {
	Code    connect.Code `json:"code"`
	Message string       `json:"message"`
	Details []struct {
		Type  string `json:"type"`
		Value string `json:"value"`
	} `json:"details"`
}

// ReadConnectError reads the body of an error of the Connect protocol; nil if it
// is none.
func ReadConnectError(body []byte) *fault.Fault {
	var e connectError
	if json.Unmarshal(body, &e) != nil || e.Code == 0 {
		return nil
	}
	for _, d := range e.Details {
		raw, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(d.Value, "="))
		if err != nil || d.Type != string((&siroccov1.ErrorDetail{}).ProtoReflect().Descriptor().FullName()) {
			continue
		}
		detail := &siroccov1.ErrorDetail{}
		if proto.Unmarshal(raw, detail) == nil {
			return fault.FromDetail(detail)
		}
	}
	return FaultOf(connect.NewError(e.Code, errors.New(e.Message)))
}

// percentEncode is the encoding of grpc-message: printable ASCII without "%"
// stays.
func percentEncode(s string) string {
	const hex = "0123456789ABCDEF"
	var out strings.Builder
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '%' {
			out.Write([]byte{'%', hex[c>>4], hex[c&15]})
		} else {
			out.WriteByte(c)
		}
	}
	return out.String()
}

func percentDecode(s string) string {
	if out, err := url.PathUnescape(s); err == nil {
		return out
	}
	return s
}

// readError reads the JSON of an error that an RPC library has written; nil if
// it is none.
func readError(body []byte) *fault.Fault {
	stat := &spb.Status{}
	if protojson.Unmarshal(body, stat) == nil {
		for _, any := range stat.GetDetails() {
			detail := &siroccov1.ErrorDetail{}
			if any.UnmarshalTo(detail) == nil {
				return fault.FromDetail(detail)
			}
		}
		code := connect.Code(stat.GetCode()) //nolint:gosec // few codes
		if code == connect.CodeInternal || code == connect.CodeUnknown {
			// What a handler fails with has a detail: this the transcoder found
			// wrong with a parameter or a body.
			code = connect.CodeInvalidArgument
		}
		return FaultOf(connect.NewError(code, errors.New(stat.GetMessage())))
	}
	return ReadConnectError(body)
}

// statusOf is a fault as google.rpc.Status, which gRPC and REST carry.
func statusOf(f *fault.Fault) *spb.Status {
	stat := &spb.Status{Code: int32(connect.CodeOf(fault.Connect(f))), Message: f.Message} //nolint:gosec // few codes
	if any, err := anypb.New(f.Detail()); err == nil {
		stat.Details = []*anypb.Any{any}
	}
	return stat
}

func statusJSON(f *fault.Fault) []byte {
	body, err := jsonOut.Marshal(statusOf(f))
	if err != nil {
		return []byte(`{"code":13,"message":"an internal fault"}`) // only for text that is not UTF-8
	}
	return append(body, '\n')
}
