package tunnel

import (
	"strings"
	"testing"

	"github.com/sirocco-run/sirocco/pkg/sandboxid"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"pgregory.net/rapid"
)

func TestHostRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := Front{Domain: rapid.SampledFrom([]string{"sandbox.localhost", "x.io", "Mixed.Example"}).Draw(t, "domain"), Port: rapid.Uint16().Draw(t, "public port")}
		port, id := rapid.Uint32Range(1, 65535).Draw(t, "port"), sandboxid.New()
		host := f.Host(port, id)
		for _, spelling := range []string{host, strings.ToUpper(host), host + ".", host + ":443", host + ".:7443"} {
			p, i, err := f.ParseHost(spelling)
			if err != nil || uint32(p) != port || i != id {
				t.Fatalf("%q: %d %q %v", spelling, p, i, err)
			}
		}
		for proto, prefix := range map[siroccov1.Protocol]string{0: "https://", 1: "https://", 3: "tls://"} {
			tn := f.Tunnel(id, &siroccov1.Port{Port: port, Protocol: proto}, 0)
			rest, ok := strings.CutPrefix(tn.GetUrl(), prefix)
			if p, i, err := f.ParseHost(strings.TrimSuffix(rest, "/")); !ok || err != nil || uint32(p) != port || i != id {
				t.Fatalf("%s: %d %q %v", tn.GetUrl(), p, i, err)
			}
			if PublicPort(tn) != 0 {
				t.Fatalf("%s has a public port", tn.GetUrl())
			}
		}
		public := rapid.Uint16Range(1, 65535).Draw(t, "tcp port")
		if got := PublicPort(f.Tunnel(id, &siroccov1.Port{Port: port, Protocol: siroccov1.Protocol_PROTOCOL_TCP}, public)); got != public {
			t.Fatalf("public port %d, want %d", got, public)
		}
	})
}

func TestParseHostRefuses(t *testing.T) {
	f, id := Front{Domain: "sandbox.localhost"}, sandboxid.New()
	for _, host := range []string{
		"", ".", "sandbox.localhost", id + ".sandbox.localhost", "0-" + id + ".sandbox.localhost", "070-" + id + ".sandbox.localhost",
		"65536-" + id + ".sandbox.localhost", "-1-" + id + ".sandbox.localhost", "+80-" + id + ".sandbox.localhost", "80-" + id + ".localhost",
		"80-" + id + ".evilsandbox.localhost", "x.80-" + id + ".sandbox.localhost", "80-" + id + "0.sandbox.localhost", "80_" + id + ".sandbox.localhost",
		"[::1]:443", "80-" + id + ".sandbox.localhost\x00", f.DataHost(),
	} {
		if p, i, err := f.ParseHost(host); err == nil {
			t.Errorf("%q: %d %q", host, p, i)
		}
	}
}

func FuzzParseHost(f *testing.F) {
	front := Front{Domain: "sandbox.localhost"}
	f.Add(front.Host(8000, sandboxid.New()))
	f.Add("[::1]:80")
	f.Add("80-sb-.sandbox.localhost:x")
	f.Fuzz(func(t *testing.T, host string) {
		port, id, err := front.ParseHost(host)
		if err != nil {
			return
		}
		if !sandboxid.Valid(id) || port == 0 {
			t.Fatalf("%q: %d %q", host, port, id)
		}
		if p, i, err := front.ParseHost(front.Host(uint32(port), id)); err != nil || p != port || i != id {
			t.Fatalf("%q does not round-trip", host)
		}
	})
}

func TestTokens(t *testing.T) {
	hash := HashToken("s3cret")
	if !CheckToken(hash, "s3cret") || HashToken(hash) != hash || HashToken("") != "" {
		t.Error("a token does not match its hash")
	}
	for _, wrong := range []string{"", "S3cret", hash, "s3cret "} {
		if CheckToken(hash, wrong) {
			t.Errorf("%q passes", wrong)
		}
	}
	if CheckToken("", "") || CheckToken("", "x") || CheckToken("plain", "plain") {
		t.Error("what is no hash was matched")
	}
}
