package scheduler

import (
	"errors"
	"testing"

	"github.com/sirocco-run/sirocco/pkg/admission"
	"github.com/sirocco-run/sirocco/pkg/fault"
)

// What is published is refused as what is asked is, with the field.
func TestPublishedRequests(t *testing.T) {
	t.Parallel()
	s := &Scheduler{cfg: Config{Limits: admission.DefaultLimits()}}
	for body, field := range map[string]string{
		`{"idempotency_key":"k2"}`: "idempotency_key", `{"ports":[{"port":-1}]}`: "ports[0].port",
		`{"comand":[]}`: "comand", "\xfa\x3f\x01x": "1023", "\x32\x03\xfa\x3f\x00": "resources.1023",
	} {
		_, err := s.request(command{key: "k1", body: []byte(body)})
		var f *fault.Fault
		if !errors.As(err, &f) || f.Code != fault.InvalidArgument || f.Field != field {
			t.Errorf("%q: %v; want the field %q", body, err, field)
		}
	}
	for _, body := range []string{"", `{"idempotency_key":"k1"}`} {
		if _, err := s.request(command{key: "k1", body: []byte(body)}); err != nil {
			t.Errorf("%q: %v", body, err)
		}
	}
}
