package plan

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
)

// ErrNothingLeft is why a state that leaves no traffic anywhere is not sent.
var ErrNothingLeft = errors.New("no region would be left for traffic; Cloudflare keeps what it has")

// Target translates what is wanted into what Cloudflare should hold. What can't
// be translated is in the errors and left out: nil, so that it stays as it is.
func Target(d Desired, r Rules) (Wanted, []error) {
	d.Domain = strings.ToLower(strings.Trim(d.Domain, "."))
	var w Wanted
	var problems []error
	exact, err := exactWeights(d, r)
	if err != nil {
		problems = append(problems, err)
	}
	if exact != nil {
		w.Exact, w.Weights = exact, Round(exact)
		if total(w.Weights) == 0 {
			problems = append(problems, fmt.Errorf("weights: %w", ErrNothingLeft))
			w.Exact, w.Weights = nil, nil
		}
	}
	enabled, on := enabledPools(d, r)
	if len(enabled) > 0 && on == 0 {
		problems = append(problems, fmt.Errorf("pools: %w", ErrNothingLeft))
		enabled = nil
	}
	w.Enabled = enabled
	records, err := targetRecords(d, r)
	if err != nil {
		problems = append(problems, err)
	}
	w.Records = records
	if records != nil {
		w.Domain = d.Domain
	}
	return w, problems
}

func total(weights map[string]int) int {
	sum := 0
	for _, w := range weights {
		sum += w
	}
	return sum
}

// exactWeights returns the weights of all pools in hundredths; nil if there is
// nothing to say.
func exactWeights(d Desired, r Rules) (map[string]float64, error) {
	if !r.LoadBalancer || len(r.Pools) == 0 || len(d.Weights) == 0 {
		return nil, nil
	}
	var errs []error
	exact := make(map[string]float64, len(r.Pools))
	for _, pool := range r.Pools {
		exact[pool] = 0
	}
	for _, region := range sortedKeys(d.Weights) {
		w := d.Weights[region]
		if math.IsNaN(w) || w < 0 || w > 1 {
			// Without the value: it would be told again with each new one.
			return nil, fmt.Errorf("the weight of region %s is not within 0 and 1", region)
		}
		pool, ok := r.Pools[region]
		if !ok {
			if w > 0 {
				errs = append(errs, fmt.Errorf("region %s has a weight but no pool: the others share its traffic", region))
			}
			continue
		}
		if !d.Drained[region] {
			exact[pool] = w * 100
		}
	}
	return exact, errors.Join(errs...)
}

// enabledPools says which pools are on, and how many. Regions that nothing is
// known of are left as they are.
func enabledPools(d Desired, r Rules) (enabled map[string]bool, on int) {
	for region, pool := range r.Pools {
		_, weighted := d.Weights[region]
		if !weighted && !d.Drained[region] {
			continue
		}
		if enabled == nil {
			enabled = map[string]bool{}
		}
		enabled[pool] = !d.Drained[region]
		on += boolean(enabled[pool])
	}
	return enabled, on
}

// slack is what sums of floating point numbers may be off by.
const slack = 1e-6

// Round rounds weights in hundredths to whole ones so that their sum is the
// rounded sum: those with the largest remainders are rounded up. Cloudflare takes
// weights of a pool in steps of 0.01 (Load Balancing: Traffic steering, Weights).
func Round(exact map[string]float64) map[string]int {
	rounded := make(map[string]int, len(exact))
	sum, floors := 0.0, 0
	pools := sortedKeys(exact)
	rest := func(pool string) float64 { return exact[pool] - float64(rounded[pool]) }
	for _, pool := range pools {
		rounded[pool] = int(math.Floor(exact[pool] + slack))
		sum += exact[pool]
		floors += rounded[pool]
	}
	// Equal remainders go by name, so that the same input gives the same weights.
	slices.SortStableFunc(pools, func(a, b string) int {
		switch ra, rb := rest(a), rest(b); {
		case ra > rb+slack:
			return -1
		case rb > ra+slack:
			return 1
		}
		return 0
	})
	for i := range min(int(math.Round(sum))-floors, len(pools)) {
		rounded[pools[i]]++
	}
	return rounded
}

// RelayName is the name of the relays of one region. It can't be that of a port of
// a sandbox, which begins with a number.
func RelayName(region, domain string) string {
	return "relay-" + strings.ToLower(region) + "." + domain
}

// WildcardName is the name of all tunnels.
func WildcardName(domain string) string { return "*." + domain }

// Ours says whether a name is one of those that are managed here, below a domain.
func Ours(name, domain string) bool {
	label, ok := strings.CutSuffix(name, "."+domain)
	return ok && (label == "*" || strings.HasPrefix(label, "relay-") && !strings.Contains(label, "."))
}

// targetRecords returns a name for the relays of each region, and the wildcard.
// The relays of a drained region keep their name: what still runs there is
// reached by it.
func targetRecords(d Desired, r Rules) ([]Record, error) {
	if d.Domain == "" || len(d.Relays) == 0 {
		return nil, nil
	}
	ttl := r.TTL
	if r.Proxied {
		ttl = 1 // what is proxied has Cloudflare's
	}
	record := func(name, kind, content string) Record {
		return Record{Name: name, Type: kind, Content: content, TTL: ttl, Proxied: r.Proxied}
	}
	var records, serving []Record
	names := 0
	for _, region := range sortedKeys(d.Relays) {
		contents, err := addresses(d.Relays[region])
		if err != nil {
			return nil, fmt.Errorf("relays of region %s: %w", region, err)
		}
		serves := !d.Drained[region] && (d.Weights == nil || d.Weights[region] > 0)
		for _, c := range contents {
			records = append(records, record(RelayName(region, d.Domain), c.Type, c.Content))
			if serves {
				serving = append(serving, record(WildcardName(d.Domain), c.Type, c.Content))
				names += boolean(c.Type == cname)
			}
		}
	}
	switch {
	case r.Target != "":
		serving = []Record{record(WildcardName(d.Domain), cname, r.Target)}
	case len(serving) == 0:
		return nil, fmt.Errorf("records: %w", ErrNothingLeft)
	case names > 0 && len(serving) > 1:
		return nil, errors.New("the wildcard can point to addresses or to one name, not to the names of several relays: give addresses, or name a target for it")
	}
	records = append(records, serving...)
	slices.SortFunc(records, Record.Compare)
	return slices.Compact(records), nil
}

// Types of records.
const (
	a     = "A"
	aaaa  = "AAAA"
	cname = "CNAME"
)

// addresses tells addresses from a host name. A CNAME can't be beside other
// records of its name, so a host name stands alone.
func addresses(of []string) ([]Record, error) {
	var contents []Record
	for _, s := range of {
		ip, err := netip.ParseAddr(s)
		switch {
		case err == nil && ip.Unmap().Is4():
			contents = append(contents, Record{Type: a, Content: ip.Unmap().String()})
		case err == nil && ip.Zone() == "":
			contents = append(contents, Record{Type: aaaa, Content: ip.String()})
		case err != nil && len(of) == 1 && hostName(s):
			contents = append(contents, Record{Type: cname, Content: strings.ToLower(strings.TrimSuffix(s, "."))})
		default:
			return nil, fmt.Errorf("%q: want IP addresses, or one host name", s)
		}
	}
	return contents, nil
}

func hostName(s string) bool {
	return s != "" && len(s) < 254 && strings.Contains(s, ".") && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '.' && r != '_'
	})
}
