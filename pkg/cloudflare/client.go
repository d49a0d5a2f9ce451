package cloudflare

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"github.com/cloudflare/cloudflare-go/v7/load_balancers"
	"github.com/cloudflare/cloudflare-go/v7/option"
	"github.com/sirocco-run/sirocco/pkg/cloudflare/plan"
)

// client reads and writes parts, each with one request (records with two).
//
// Of the library only the packages for what is used are imported, not its root,
// which has all of Cloudflare in it. So fields of requests are set by hand, which
// the root has a function for.
type client struct {
	cfg  *Config
	http *http.Client
}

func newClient(cfg *Config) *client {
	return &client{cfg: cfg, http: &http.Client{Transport: http.DefaultTransport}}
}

// options of one request. The library does not try again by itself: when to, is
// decided in package plan.
func (c *client) options(a *answer) ([]option.RequestOption, error) {
	token, err := c.cfg.token()
	if err != nil {
		return nil, err
	}
	base := option.WithEnvironmentProduction()
	if c.cfg.URL != "" {
		base = option.WithBaseURL(c.cfg.URL)
	}
	return []option.RequestOption{
		base, option.WithAPIToken(token), option.WithHTTPClient(c.http), option.WithMaxRetries(0),
		option.WithRequestTimeout(c.cfg.Timeout), option.WithMiddleware(a.listen),
	}, nil
}

// errOtherwise is when Cloudflare answers that it has done it, and shows something
// else.
var errOtherwise = errors.New("it does not hold what it was sent")

// read returns what Cloudflare holds of a part. The answer is never nil.
func (c *client) read(ctx context.Context, part plan.Part, want plan.Wanted) (plan.Edge, *answer, error) {
	a := new(answer)
	opts, err := c.options(a)
	if err != nil {
		return plan.Edge{}, a, err
	}
	have, err := c.readWith(ctx, opts, part, want)
	return have, a, err
}

func (c *client) readWith(ctx context.Context, opts []option.RequestOption, part plan.Part, want plan.Wanted) (plan.Edge, error) {
	if pool, ok := part.Pool(); ok {
		var params load_balancers.PoolGetParams
		params.AccountID.Value, params.AccountID.Present = c.cfg.Account, true
		res, err := load_balancers.NewPoolService(opts...).Get(ctx, pool, params)
		return poolEdge(pool, res, err)
	}
	if part == plan.Records {
		have, err := c.list(ctx, opts, want)
		return plan.Edge{Records: have.ours()}, err
	}
	var params load_balancers.LoadBalancerGetParams
	params.ZoneID.Value, params.ZoneID.Present = c.cfg.Zone, true
	res, err := load_balancers.NewLoadBalancerService(opts...).Get(ctx, c.cfg.LoadBalancer, params)
	return weightsEdge(want, res, err)
}

// write sends a part, and returns what Cloudflare then holds of it. The answer is
// never nil.
func (c *client) write(ctx context.Context, part plan.Part, want plan.Wanted) (plan.Edge, *answer, error) {
	a := new(answer)
	opts, err := c.options(a)
	if err != nil {
		return plan.Edge{}, a, err
	}
	have, err := c.writeWith(ctx, opts, part, want)
	return have, a, err
}

func (c *client) writeWith(ctx context.Context, opts []option.RequestOption, part plan.Part, want plan.Wanted) (plan.Edge, error) {
	if pool, ok := part.Pool(); ok {
		res, err := load_balancers.NewPoolService(opts...).Edit(ctx, pool, c.poolParams(want.Enabled[pool]))
		have, err := poolEdge(pool, res, err)
		if err == nil && have.Enabled[pool] != want.Enabled[pool] {
			err = errOtherwise
		}
		return have, err
	}
	if part == plan.Records {
		return plan.Edge{Records: want.Records}, c.writeRecords(ctx, opts, want)
	}
	res, err := load_balancers.NewLoadBalancerService(opts...).Edit(ctx, c.cfg.LoadBalancer, c.weightsParams(want))
	have, err := weightsEdge(want, res, err)
	if err == nil && !slices.Equal(hundredths(want, have.Weights), hundredths(want, want.Weights)) {
		err = errOtherwise
	}
	return have, err
}

// weightsParams is the body of "Patch Load Balancer". Pools that are not named get
// nothing: their weight would be 1, more than that of any other.
func (c *client) weightsParams(want plan.Wanted) load_balancers.LoadBalancerEditParams {
	weights := make(map[string]float64, len(want.Weights))
	for pool, w := range want.Weights {
		weights[pool] = float64(w) / 100
	}
	var steering load_balancers.RandomSteeringParam
	steering.DefaultWeight.Value, steering.DefaultWeight.Present = 0, true
	steering.PoolWeights.Value, steering.PoolWeights.Present = weights, true
	var params load_balancers.LoadBalancerEditParams
	params.ZoneID.Value, params.ZoneID.Present = c.cfg.Zone, true
	params.SteeringPolicy.Value, params.SteeringPolicy.Present = load_balancers.SteeringPolicyRandom, true
	params.RandomSteering.Value, params.RandomSteering.Present = steering, true
	return params
}

// poolParams is the body of "Patch Pool".
func (c *client) poolParams(enabled bool) load_balancers.PoolEditParams {
	var params load_balancers.PoolEditParams
	params.AccountID.Value, params.AccountID.Present = c.cfg.Account, true
	params.Enabled.Value, params.Enabled.Present = enabled, true
	return params
}

func poolEdge(pool string, res *load_balancers.Pool, err error) (plan.Edge, error) {
	if err != nil {
		return plan.Edge{}, err
	}
	if res.ID != pool {
		return plan.Edge{}, fmt.Errorf("asked for pool %s, got %q", pool, res.ID)
	}
	return plan.Edge{Enabled: map[string]bool{pool: res.Enabled}}, nil
}

// weightsEdge reads the weights of the pools that are managed. While the load
// balancer does not steer by weight, they have none.
func weightsEdge(want plan.Wanted, res *load_balancers.LoadBalancer, err error) (plan.Edge, error) {
	if err != nil {
		return plan.Edge{}, err
	}
	if res.ID == "" {
		return plan.Edge{}, errors.New("asked for a load balancer, got none")
	}
	steers := res.SteeringPolicy == load_balancers.SteeringPolicyRandom && res.RandomSteering.DefaultWeight == 0
	weights := make(map[string]int, len(want.Weights))
	for pool := range want.Weights {
		w, ok := res.RandomSteering.PoolWeights[pool]
		if !ok || !steers {
			weights[pool] = -1
			continue
		}
		weights[pool] = int(w*100 + 0.5)
	}
	return plan.Edge{Weights: weights}, nil
}

// hundredths returns weights in the order of the pools that are wanted.
func hundredths(want plan.Wanted, weights map[string]int) []int {
	var pools []string
	for pool := range want.Weights {
		pools = append(pools, pool)
	}
	slices.Sort(pools)
	var all []int
	for _, pool := range pools {
		w, ok := weights[pool]
		if !ok {
			w = -1
		}
		all = append(all, w)
	}
	return all
}

// describe is the request that would send a part, on one line.
func (c *client) describe(part plan.Part, want plan.Wanted) string {
	if pool, ok := part.Pool(); ok {
		return line(http.MethodPatch, "accounts/"+c.cfg.Account+"/load_balancers/pools/"+pool, c.poolParams(want.Enabled[pool]))
	}
	if part == plan.Records {
		return line(http.MethodPost, "zones/"+c.cfg.Zone+"/dns_records/batch", c.batchParams(nil, want.Records))
	}
	return line(http.MethodPatch, "zones/"+c.cfg.Zone+"/load_balancers/"+c.cfg.LoadBalancer, c.weightsParams(want))
}

func line(method, path string, body json.Marshaler) string {
	raw, err := body.MarshalJSON()
	if err != nil {
		return fmt.Sprintf("%s %s: %v", method, path, err)
	}
	return fmt.Sprintf("%s %s %s", method, path, raw)
}
