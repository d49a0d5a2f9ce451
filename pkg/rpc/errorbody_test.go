package rpc

import (
	"testing"

	"github.com/sirocco-run/sirocco/pkg/fault"
)

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
