package api_test

import (
	"testing"

	"github.com/sirocco-run/sirocco/pkg/apikey"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/sirocco-run/sirocco/services/api/api"
)

// BenchmarkCreate is a create until running, with a scheduler and a node that
// take no time of their own.
func BenchmarkCreate(b *testing.B) {
	r := start(b, api.Config{})
	for _, tr := range r.transports("acme", r.key("acme", apikey.RoleTenant)) {
		b.Run(tr.name, func(b *testing.B) {
			for b.Loop() {
				if err := tr.call(b.Context(), "SandboxService/Create", &siroccov1.CreateSandboxRequest{}, &siroccov1.CreateSandboxResponse{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkGet is the least that a request costs.
func BenchmarkGet(b *testing.B) {
	r := start(b, api.Config{})
	all := r.transports("acme", r.key("acme", apikey.RoleTenant))
	resp := &siroccov1.CreateSandboxResponse{}
	if err := all[0].call(b.Context(), "SandboxService/Create", &siroccov1.CreateSandboxRequest{}, resp); err != nil {
		b.Fatal(err)
	}
	for _, tr := range all {
		b.Run(tr.name, func(b *testing.B) {
			for b.Loop() {
				if err := tr.call(b.Context(), "SandboxService/Get", &siroccov1.GetSandboxRequest{Id: resp.GetSandbox().GetId()}, &siroccov1.Sandbox{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
