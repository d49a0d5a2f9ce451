package api

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/url"
	"strings"

	"connectrpc.com/connect"
	"github.com/sirocco-run/sirocco/pkg/fault"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/proto"
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

// readConnectError reads the body of a Connect error; nil if it is none.
func readConnectError(body []byte) *fault.Fault {
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
	return faultOf(connect.NewError(e.Code, errors.New(e.Message)))
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
