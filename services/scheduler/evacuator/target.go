package evacuator

import (
	"fmt"
	"hash/fnv"
	"slices"
	"strings"

	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/weight"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

// decisions are the regions as package weight picks among them.
func decisions(regions []*siroccov1.Region) []weight.Decision {
	var known []weight.Decision
	for _, r := range regions {
		known = append(known, weight.Decision{
			Region: r.GetName(), Weight: r.GetWeight(), Level: r.GetLevel(), Score: r.GetScore(), Cause: weight.Cause(r.GetCause()),
		})
	}
	return known
}

// others are the regions but one.
func others(known []weight.Decision, own string) []weight.Decision {
	return slices.DeleteFunc(slices.Clone(known), func(r weight.Decision) bool { return r.Region == own })
}

// target chooses the region where a sandbox goes for the attempt of a key: the same
// weights and the same key give the same region. A sandbox of a node that is drained
// stays in its region, unless nothing there had room for it the last time.
func target(order *siroccov1.Evacuation, sb *siroccov1.Sandbox, t *try, known []weight.Decision, key string) (string, error) {
	own := order.GetRegion()
	if order.GetNode() != "" && (t == nil || t.code != string(fault.NoCapacity) || t.failed%2 == 0) {
		return own, nil
	}
	region, _, err := weight.Pick(others(known, own), weight.Request{Allowed: allowed(sb, own), Random: fraction(key)})
	if err != nil && order.GetNode() != "" {
		return own, nil
	}
	return region, err
}

// allowed are the other regions in which a sandbox may run; empty for any.
func allowed(sb *siroccov1.Sandbox, own string) []string {
	return slices.DeleteFunc(slices.Clone(sb.GetSpec().GetRegions()), func(r string) bool { return r == own })
}

// where judges whether a sandbox could go anywhere. Regions are all that there are
// beside the order's own.
func where(order *siroccov1.Evacuation, regions []string, known []weight.Decision) place {
	if order.GetNode() != "" {
		return func(*siroccov1.Sandbox) (string, string) { return "", "" }
	}
	known = others(known, order.GetRegion())
	hindrances := map[string]string{}
	return func(sb *siroccov1.Sandbox) (hindrance, barred string) {
		may := sb.GetSpec().GetRegions()
		if len(may) > 0 && !slices.ContainsFunc(regions, func(r string) bool { return slices.Contains(may, r) }) {
			return "", fmt.Sprintf("it may run in %s only, as it was created so", strings.Join(may, ", "))
		}
		key := strings.Join(may, ",")
		text, ok := hindrances[key]
		if !ok {
			if _, _, err := weight.Pick(known, weight.Request{Allowed: allowed(sb, order.GetRegion())}); err != nil {
				text = err.Error()
			}
			hindrances[key] = text
		}
		return text, ""
	}
}

// fraction is a number in [0,1) that is the same for the same text.
func fraction(text string) float64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(text))
	x := h.Sum64()
	x ^= x >> 33 // the last characters hardly reach the upper bits otherwise
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	return float64(x>>11) / (1 << 53)
}
