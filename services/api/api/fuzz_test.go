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
	"github.com/sirocco-run/sirocco/pkg/rpc"
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
			err = fault.CheckUnknown(req.ProtoReflect())
		}
		if err == nil {
			_, err = admission.Normalize(req, admission.DefaultLimits())
		}
		if err == nil {
			return
		}
		got := rpc.FaultOf(err)
		if got.Code != fault.InvalidArgument || !utf8.ValidString(rpc.BadRequest(got.Message).Message) {
			t.Errorf("%q: %v", body, err)
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
