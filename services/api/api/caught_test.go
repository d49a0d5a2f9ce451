package api_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/subject"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/proto"
)

// A key that was sent to a region that is lost then leads nowhere else, whichever region
// the weights now choose, and the error says so; when the region is back, it leads to what
// was made there.
func TestKeyOfALostRegion(t *testing.T) {
	p := startPair(t)
	bucket, err := p.eu.js.KeyValue(t.Context(), subject.BucketRegions)
	if err != nil {
		t.Fatal(err)
	}
	choose := func(region string) {
		t.Helper()
		weights := &siroccov1.RegionWeights{}
		for _, name := range []string{"eu", "us"} {
			r := &siroccov1.Region{Name: name, Alive: true, Cause: "steady"}
			if name == region {
				r.Weight, r.Level, r.Score = 1, 1, 1
			}
			weights.Regions = append(weights.Regions, r)
		}
		raw, err := proto.Marshal(weights)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := bucket.Put(t.Context(), subject.RegionKey(subject.RegionWeights, "eu"), raw); err != nil {
			t.Fatal(err)
		}
	}
	tr := p.eu.transports("acme", p.euKey)[0]
	create := func(key string) (*siroccov1.Sandbox, error) {
		resp := &siroccov1.CreateSandboxResponse{}
		err := tr.call(t.Context(), "SandboxService/Create", &siroccov1.CreateSandboxRequest{IdempotencyKey: key}, resp)
		return resp.GetSandbox(), err
	}
	// of makes one with each new key until the weights have arrived.
	of := func(region string) (key string, sb *siroccov1.Sandbox) {
		t.Helper()
		choose(region)
		n := 0
		eventually(t, func() error {
			n++
			key = fmt.Sprintf("key-%s-%d", region, n)
			var err error
			if sb, err = create(key); err == nil && sb.GetPlacement().GetRegion() != region {
				err = errors.New("it is in " + sb.GetPlacement().GetRegion())
			}
			return err
		})
		return key, sb
	}
	key, made := of("us")
	p.usDown()
	refused := func() {
		t.Helper()
		eventually(t, func() error {
			sb, err := create(key)
			if err == nil {
				t.Fatalf("it was made again: %v", sb)
			}
			if fault.CodeOf(err) != fault.Unavailable || !strings.Contains(err.Error(), "may have arrived in region us") {
				return err
			}
			return nil
		})
	}
	refused()
	of("eu")
	refused()
	p.usUp()
	eventually(t, func() error {
		sb, err := create(key)
		if err == nil && sb.GetId() != made.GetId() {
			t.Fatalf("it is %v, not %v", sb, made)
		}
		return err
	})
}
