package localhost_test

import (
	"testing"

	"github.com/sirocco-run/sirocco/sdk/go/localhost"
)

func TestAddress(t *testing.T) {
	for address, want := range map[string]string{
		"data.sandbox.localhost:7443":  "127.0.0.1:7443",
		"data.sandbox.localhost.:7443": "127.0.0.1:7443",
		"DATA.Sandbox.LocalHost:7443":  "127.0.0.1:7443",
		"localhost:7443":               "localhost:7443",
		"notlocalhost:7443":            "notlocalhost:7443",
		"x.localhost.example:7443":     "x.localhost.example:7443",
		"x.localhost":                  "x.localhost",
		"[::1]:80":                     "[::1]:80",
	} {
		if got := localhost.Address(address); got != want {
			t.Errorf("%s leads to %s, not %s", address, got, want)
		}
	}
}
