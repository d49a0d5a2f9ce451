package cloudflaretest

import (
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strings"
)

// balancer is the load balancer, as far as it can be changed here.
type balancer struct {
	policy        string
	defaultWeight float64
	weights       map[string]float64
}

// policies of steering (API reference: Patch Load Balancer, steering_policy).
var policies = []string{"off", "geo", "random", "dynamic_latency", "proximity", "least_outstanding_requests", "least_connections", ""}

// balancerFields are the body parameters of "Patch Load Balancer". Those that are
// not managed here may not be sent: they are somebody else's.
var balancerFields = fields{
	"random_steering": object(fields{
		"default_weight": number(0, 1, 0.1),
		"pool_weights":   weights,
	}),
	"steering_policy": oneOf(policies...),
}

// poolFields are those of "Patch Pool".
var poolFields = fields{"enabled": boolean}

func (s *Server) serveBalancer(r *http.Request, body []byte) (int, map[string]any) {
	switch r.Method {
	case http.MethodGet:
		return success(s.balancerResult())
	case http.MethodPatch:
	default:
		return s.wrong(r, http.StatusMethodNotAllowed, 10405, "Method not allowed")
	}
	if err := balancerFields.check(body); err != nil {
		return s.wrong(r, http.StatusBadRequest, 1002, "validation failed: %v", err)
	}
	var patch struct {
		SteeringPolicy *string `json:"steering_policy"`
		RandomSteering *struct {
			DefaultWeight *float64           `json:"default_weight"`
			PoolWeights   map[string]float64 `json:"pool_weights"`
		} `json:"random_steering"`
	}
	if err := json.Unmarshal(body, &patch); err != nil {
		return s.wrong(r, http.StatusBadRequest, 1002, "validation failed: %v", err)
	}
	if patch.SteeringPolicy != nil {
		s.lb.policy = *patch.SteeringPolicy
	}
	if steering := patch.RandomSteering; steering != nil {
		for pool := range steering.PoolWeights {
			if _, ok := s.pools[pool]; !ok {
				return refusal(http.StatusBadRequest, 1002, "random_steering: pool "+pool+" is not one of the load balancer's: validation failed")
			}
		}
		// A property that is supplied is overwritten as a whole.
		s.lb.weights, s.lb.defaultWeight = maps.Clone(steering.PoolWeights), 1
		if steering.DefaultWeight != nil {
			s.lb.defaultWeight = *steering.DefaultWeight
		}
	}
	return success(s.balancerResult())
}

func (s *Server) balancerResult() map[string]any {
	pools := slices.Sorted(maps.Keys(s.pools))
	return map[string]any{
		"id": LoadBalancer, "name": "lb." + ZoneName, "enabled": true, "proxied": false, "ttl": 30,
		"created_on": "2014-01-01T05:20:00.12345Z", "modified_on": "2014-01-01T05:20:00.12345Z",
		"default_pools": pools, "fallback_pool": pools[0], "zone_name": ZoneName,
		"session_affinity": "none", "steering_policy": s.lb.policy,
		"random_steering": map[string]any{"default_weight": s.lb.defaultWeight, "pool_weights": maps.Clone(s.lb.weights)},
	}
}

func (s *Server) servePool(r *http.Request, pool string, body []byte) (int, map[string]any) {
	if _, ok := s.pools[pool]; !ok {
		return refusal(http.StatusNotFound, 1001, "pool not found")
	}
	switch r.Method {
	case http.MethodGet:
	case http.MethodPatch:
		if err := poolFields.check(body); err != nil {
			return s.wrong(r, http.StatusBadRequest, 1002, "validation failed: %v", err)
		}
		s.pools[pool] = strings.Contains(string(body), "true")
	default:
		return s.wrong(r, http.StatusMethodNotAllowed, 10405, "Method not allowed")
	}
	return success(map[string]any{
		"id": pool, "name": "pool-" + pool[:4], "enabled": s.pools[pool], "minimum_origins": 1, "healthy": true,
		"created_on": "2014-01-01T05:20:00.12345Z", "modified_on": "2014-01-01T05:20:00.12345Z",
		"origins": []any{map[string]any{"name": "relay", "address": "192.0.2.1", "enabled": true, "weight": 1}},
	})
}
