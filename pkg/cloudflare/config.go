package cloudflare

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/sirocco-run/sirocco/pkg/cloudflare/plan"
	"github.com/sirocco-run/sirocco/pkg/subject"
	"github.com/spf13/pflag"
)

// TokenEnv is the environment variable of the API token. There is no flag for it,
// because the users of a machine see each other's flags.
const TokenEnv = "SIROCCO_CLOUDFLARE_TOKEN" //nolint:gosec // the name of a secret, not one

// Config shapes a publisher.
type Config struct {
	// Token of the API, with the permissions "Load Balancers Write", "Load
	// Balancing: Monitors and Pools Write" and "DNS Write", as far as each is used.
	// Empty: the one in TokenFile, or in the environment (TokenEnv). Without any,
	// the publisher is off.
	Token string
	// TokenFile holds the token. It is read for each request, so that a token can
	// be changed.
	TokenFile string
	// URL of the API; empty for Cloudflare's own.
	URL string
	// Zone, Account and LoadBalancer are ids. Without a load balancer, no weights
	// are sent; without an account, no pools are switched.
	Zone, Account, LoadBalancer string
	// Pools are the ids of the regions' pools, by region.
	Pools map[string]string
	// Target is the name that the wildcard of the tunnels points to, such as that
	// of the load balancer; empty for the addresses of the relays.
	Target string
	// TTL of DNS records in seconds, 1 for Cloudflare's choice.
	TTL int
	// Proxied puts Cloudflare's proxy in front of the relays. It passes HTTP only,
	// no raw TLS.
	Proxied bool
	// DryRun prints what would be sent and sends nothing, reads included.
	DryRun bool
	// Out is where a dry run prints to; nil for the log alone.
	Out io.Writer
	// Every is the least time between two writes, Timeout the longest that one
	// request may take, Check how long what was sent is believed to be still there.
	Every, Timeout, Check time.Duration
}

// Flags adds the publisher's flags, with the defaults.
func (c *Config) Flags(fs *pflag.FlagSet) {
	fs.StringVar(&c.TokenFile, "cloudflare-token-file", "", "`file` that holds the Cloudflare API token; without it and without "+TokenEnv+" in the environment, nothing is sent to Cloudflare")
	fs.StringVar(&c.Zone, "cloudflare-zone", "", "`id` of the zone of the load balancer and of the DNS records")
	fs.StringVar(&c.Account, "cloudflare-account", "", "`id` of the account of the pools; empty leaves pools switched as they are")
	fs.StringVar(&c.LoadBalancer, "cloudflare-load-balancer", "", "`id` of the load balancer that gets the weights of the regions; empty for none")
	fs.StringToStringVar(&c.Pools, "cloudflare-pools", nil, "`ids` of the regions' pools: eu=17b5…,us=9290…")
	fs.StringVar(&c.Target, "cloudflare-target", "", "`name` that the wildcard of the tunnels points to, such as the load balancer's (default: the relays' addresses)")
	fs.IntVar(&c.TTL, "cloudflare-ttl", 60, "how long resolvers may keep the DNS records, in `seconds`; 1 lets Cloudflare choose")
	fs.BoolVar(&c.Proxied, "cloudflare-proxied", false, "put Cloudflare's proxy in front of the relays: HTTP only")
	fs.BoolVar(&c.DryRun, "cloudflare-dry-run", false, "print what would be sent to Cloudflare, and send nothing")
	fs.DurationVar(&c.Every, "cloudflare-every", 5*time.Second, "least time between two writes to Cloudflare")
	fs.DurationVar(&c.Timeout, "cloudflare-timeout", 10*time.Second, "how long one request to Cloudflare may take")
	fs.DurationVar(&c.Check, "cloudflare-check-every", 10*time.Minute, "after what time it is looked up whether Cloudflare still holds what it was told")
	fs.StringVar(&c.URL, "cloudflare-url", "", "`URL` of the Cloudflare API (default: Cloudflare's own)")
}

// token returns the token, and "" if there is none.
func (c *Config) token() (string, error) {
	switch {
	case c.Token != "":
		return c.Token, nil
	case c.TokenFile == "":
		return strings.TrimSpace(os.Getenv(TokenEnv)), nil
	}
	raw, err := os.ReadFile(c.TokenFile)
	if err != nil {
		return "", fmt.Errorf("read --cloudflare-token-file: %w", err)
	}
	token := strings.TrimSpace(string(raw))
	if token == "" {
		return "", fmt.Errorf("read --cloudflare-token-file: %s is empty", c.TokenFile)
	}
	return token, nil
}

// on says whether anything is to be done, without reading files.
func (c *Config) on() bool {
	return c.DryRun || c.Token != "" || c.TokenFile != "" || strings.TrimSpace(os.Getenv(TokenEnv)) != ""
}

// id is what Cloudflare's identifiers look like.
var id = regexp.MustCompile(`^[0-9a-f]{32}$`)

// validate says what is wrong, naming the flag.
func (c *Config) validate() error {
	for _, f := range []struct{ flag, value string }{
		{"zone", c.Zone}, {"account", c.Account}, {"load-balancer", c.LoadBalancer},
	} {
		if f.value != "" && !id.MatchString(f.value) {
			return fmt.Errorf("--cloudflare-%s %q is not an id: want 32 of 0-9 a-f", f.flag, f.value)
		}
	}
	if c.Zone == "" {
		return errors.New("--cloudflare-zone is empty: name the zone of the load balancer and of the DNS records")
	}
	if c.LoadBalancer != "" && len(c.Pools) == 0 {
		return errors.New("--cloudflare-load-balancer needs --cloudflare-pools: name each region's pool")
	}
	var pools []string
	for region, pool := range c.Pools {
		if !subject.ValidToken(region) || !id.MatchString(pool) {
			return fmt.Errorf("--cloudflare-pools %s=%s is not a region and an id of 32 of 0-9 a-f", region, pool)
		}
		if slices.Contains(pools, pool) {
			return fmt.Errorf("--cloudflare-pools: %s is the pool of two regions", pool)
		}
		pools = append(pools, pool)
	}
	if c.TTL != 1 && (c.TTL < 30 || c.TTL > 86400) {
		return fmt.Errorf("--cloudflare-ttl %d is not usable: want 60 to 86400 (30 for Enterprise zones), or 1", c.TTL)
	}
	if c.Every <= 0 || c.Timeout <= 0 || c.Check <= 0 {
		return errors.New("--cloudflare-every, --cloudflare-timeout and --cloudflare-check-every must be above zero")
	}
	if c.URL != "" {
		if u, err := url.Parse(c.URL); err != nil || u.Host == "" {
			return fmt.Errorf("--cloudflare-url %q is not a URL", c.URL)
		}
	}
	return nil
}

func (c *Config) rules() plan.Rules {
	return plan.Rules{
		Pools: c.Pools, LoadBalancer: c.LoadBalancer != "", Target: strings.ToLower(strings.TrimSuffix(c.Target, ".")),
		TTL: c.TTL, Proxied: c.Proxied, Every: c.Every, Check: c.Check,
	}
}
