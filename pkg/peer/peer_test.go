package peer

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/sirocco-run/sirocco/pkg/bustest"
)

func TestParse(t *testing.T) {
	got, err := Parse(" us=nats://a:1,nats://b:2 ;ap=tls://c:3; ")
	if err != nil {
		t.Fatal(err)
	}
	if want := map[string]string{"us": "nats://a:1,nats://b:2", "ap": "tls://c:3"}; !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	for text, sign := range map[string]string{
		"us":                           "region=URL",
		"u.s=nats://a:1":               "region=URL",
		"us=nowhere":                   "is not a URL",
		"us=nats://a:1,":               "is not a URL",
		"us=nats://a:1;us=nats://b:1":  "twice",
		"us=nats://a:1;=nats://b:1":    "region=URL",
		"us=nats://a:1\x00;ap=nats://": "is not a URL",
	} {
		if _, err := Parse(text); err == nil || !strings.Contains(err.Error(), sign) {
			t.Errorf("%q: %v, want %q", text, err, sign)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("us=nats://a:1,nats://b:2;ap=nats://c:3")
	f.Fuzz(func(t *testing.T, text string) {
		urls, err := Parse(text)
		if err != nil {
			return
		}
		var back []string
		for region, servers := range urls {
			back = append(back, region+"="+servers)
		}
		again, err := Parse(strings.Join(back, ";"))
		if err != nil || !maps.Equal(again, urls) {
			t.Errorf("%q: %v, read again %v (%v)", text, urls, again, err)
		}
	})
}

// TestAway: a region that is not there takes nobody's time, and is found once it is.
func TestAway(t *testing.T) {
	server := bustest.Server(t, nil)
	s := NewSet("eu", map[string]string{"eu": "nats://127.0.0.1:1", "us": "nats://127.0.0.1:1", "ap": server.ClientURL()}, func(url string) (*nats.Conn, error) {
		return nats.Connect(url, nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1))
	})
	t.Cleanup(s.Close)
	if got := s.Regions(); !slices.Equal(got, []string{"ap", "us"}) {
		t.Errorf("the peers are %v", got)
	}
	away, err := s.Get("us")
	if err != nil {
		t.Fatal(err)
	}
	if away.Alive() {
		t.Error("a bus that is not there is alive")
	}
	there, err := s.Get("ap")
	if err != nil {
		t.Fatal(err)
	}
	if err := there.NC.Flush(); err != nil || !there.Alive() {
		t.Errorf("a bus that is there: alive %v, %v", there.Alive(), err)
	}
	if again, _ := s.Get("ap"); again != there {
		t.Error("a second connection was made")
	}
	if _, err := s.Get("eu"); err == nil {
		t.Error("a region is its own peer")
	}
	var none *Set
	if _, err := none.Get("us"); err == nil || len(none.Regions()) != 0 {
		t.Error("no set has regions")
	}
}
