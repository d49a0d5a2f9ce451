package cloudflare_test

import (
	"strings"
	"testing"
	"time"

	"github.com/sirocco-run/sirocco/pkg/cloudflare"
	"github.com/sirocco-run/sirocco/pkg/cloudflare/cloudflaretest"
	"github.com/sirocco-run/sirocco/pkg/program"
	"github.com/spf13/pflag"
)

// TestFlags: the environment says all that flags say, and no flag takes the token.
func TestFlags(t *testing.T) {
	var cfg cloudflare.Config
	fs := pflag.NewFlagSet("test", pflag.ContinueOnError)
	cfg.Flags(fs)
	env := map[string]string{
		"SIROCCO_CLOUDFLARE_ZONE":  cloudflaretest.Zone,
		"SIROCCO_CLOUDFLARE_POOLS": "eu=" + cloudflaretest.PoolEU + ",us=" + cloudflaretest.PoolUS,
	}
	if err := program.Parse(fs, []string{"--cloudflare-every", "7s"}, func(name string) string { return env[name] }); err != nil {
		t.Fatal(err)
	}
	if cfg.Zone != cloudflaretest.Zone || cfg.Pools["us"] != cloudflaretest.PoolUS || cfg.Every != 7*time.Second || cfg.TTL != 60 {
		t.Errorf("%+v", cfg)
	}
	for _, name := range program.FlagNames(fs) {
		if name == "cloudflare-token" {
			t.Error("a flag takes the token: other users of the machine see it")
		}
	}
}

// TestConfigIsChecked: each mistake is one sentence that names its flag.
func TestConfigIsChecked(t *testing.T) {
	for _, c := range []struct {
		change func(*cloudflare.Config)
		want   string
	}{
		{func(c *cloudflare.Config) { c.Zone = "" }, "--cloudflare-zone is empty"},
		{func(c *cloudflare.Config) { c.Zone = "example.com" }, "--cloudflare-zone \"example.com\" is not an id"},
		{func(c *cloudflare.Config) { c.Account = "../x" }, "--cloudflare-account"},
		{func(c *cloudflare.Config) { c.LoadBalancer = "x" }, "--cloudflare-load-balancer"},
		{func(c *cloudflare.Config) { c.Pools = nil }, "needs --cloudflare-pools"},
		{func(c *cloudflare.Config) { c.Pools = map[string]string{"eu": "x"} }, "--cloudflare-pools eu=x"},
		{func(c *cloudflare.Config) {
			c.Pools = map[string]string{"eu": cloudflaretest.PoolEU, "us": cloudflaretest.PoolEU}
		}, "the pool of two regions"},
		{func(c *cloudflare.Config) { c.TTL = 0 }, "--cloudflare-ttl 0"},
		{func(c *cloudflare.Config) { c.Every = 0 }, "--cloudflare-every"},
		{func(c *cloudflare.Config) { c.URL = "x" }, "--cloudflare-url"},
	} {
		cfg := config("http://127.0.0.1:1/")
		c.change(&cfg)
		if _, err := cloudflare.New(environment("x", nil, nil, nil), cfg); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v, want %q", err, c.want)
		}
	}
	if _, err := cloudflare.New(environment("x", nil, nil, nil), config("")); err != nil {
		t.Error(err)
	}
}
