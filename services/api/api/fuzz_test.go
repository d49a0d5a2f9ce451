package api

import (
	"net/http"
	"net/url"
	"testing"
	"unicode/utf8"

	"github.com/nats-io/nats.go"
	"github.com/sirocco-run/sirocco/pkg/admission"
	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/fault"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

// FuzzCreateBody: whatever comes as the body of a create ends in a request
// that is in bounds, or in an InvalidArgument fault that can be sent.
func FuzzCreateBody(f *testing.F) {
	for _, seed := range []string{"", "{}", `{"command":["a"],"ports":[{"port":70000}]}`, `{"name":"\ud800"}`, "\x0a\x04base", "\xfa\x3f\x01x", `{"max_lifetime":"1e9s"}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		req := &siroccov1.CreateSandboxRequest{}
		err := bus.Decode(nats.Header{}, body, req)
		if err == nil {
			err = checkUnknown(req.ProtoReflect())
		}
		if err == nil {
			_, err = admission.Normalize(req, admission.DefaultLimits())
		}
		if err == nil {
			return
		}
		got := faultOf(err)
		if got.Code != fault.InvalidArgument || !utf8.ValidString(badRequest(got.Message).Message) {
			t.Errorf("%q: %v", body, err)
		}
	})
}

// FuzzErrorBody: whatever an RPC library writes as an error is read as a fault
// or as none, and a fault is written so that it can be read again.
func FuzzErrorBody(f *testing.F) {
	f.Add([]byte(`{"code":3,"message":"x"}`))
	f.Add([]byte(`{"code":"not_found","message":"x","details":[{"type":"sirocco.v1.ErrorDetail","value":"CgE"}]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		got := readError(body)
		if got == nil {
			return
		}
		if again := readError(statusJSON(got)); again == nil || again.Code != got.Code && got.Code != fault.Internal {
			t.Errorf("%q: %v, then %v", body, got, again)
		}
		if percentDecode(percentEncode(got.Message)) != got.Message {
			t.Errorf("%q does not survive grpc-message", got.Message)
		}
	})
}

// FuzzEventsRequest: parameters of the event stream never crash it.
func FuzzEventsRequest(f *testing.F) {
	f.Add("from=1&id=x", "7")
	f.Fuzz(func(t *testing.T, query, last string) {
		r := &http.Request{URL: &url.URL{RawQuery: query}, Header: http.Header{"Last-Event-Id": {last}}}
		if _, err := eventsRequest(r); err != nil && fault.CodeOf(err) != fault.InvalidArgument {
			t.Errorf("%q: %v", query, err)
		}
	})
}
