package cli_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/sirocco-run/sirocco/pkg/busauth"
	"github.com/sirocco-run/sirocco/pkg/bustest"
)

// TestBusConfig: what is printed configures a real server, the keys of a fleet
// are made, once, and the services' password opens the bus.
func TestBusConfig(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state", "keys")
	first := run(t, nil, "", "key", "bus-config", "--keys", dir)
	if first.code != 0 {
		t.Fatalf("%+v", first)
	}
	for _, file := range []string{"internal-ca.pem", "internal-ca-key.pem", "public-ca.pem", "public-ca-key.pem", "token.pem", "token-key.pem", "bus.json"} {
		if _, err := os.Stat(filepath.Join(dir, file)); err != nil {
			t.Error(err)
		}
	}
	// By the folder of the state, and by the environment.
	for name, again := range map[string]result{
		"--data":       run(t, nil, "", "key", "bus-config", "--data", filepath.Dir(dir)),
		"SIROCCO_KEYS": run(t, map[string]string{"SIROCCO_KEYS": dir}, "", "key", "bus-config"),
	} {
		if again != first {
			t.Errorf("%s: it printed something else: %+v", name, again)
		}
	}
	var all struct{ Config, User, Password string }
	if err := json.Unmarshal([]byte(run(t, nil, "", "--json", "key", "bus-config", "--keys", dir).out), &all); err != nil || all.Config != first.out || all.User != busauth.UserService {
		t.Fatalf("%+v, %v", all, err)
	}
	// As the operator guide has it: a file that includes the one printed.
	conf := filepath.Join(t.TempDir(), "nats-server.conf")
	if err := os.WriteFile(filepath.Join(filepath.Dir(conf), "sirocco-bus.conf"), []byte(first.out), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(conf, []byte("include ./sirocco-bus.conf\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := bustest.Server(t, func(o *server.Options) {
		if err := o.ProcessConfigFile(conf); err != nil {
			t.Fatal(err)
		}
	})
	bustest.Connect(t, s, nats.UserInfo(all.User, all.Password))
	if nc, err := nats.Connect(s.ClientURL()); err == nil {
		nc.Close()
		t.Error("the bus lets anybody in")
	}
	if err := os.WriteFile(filepath.Join(dir, "bus.json"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := run(t, nil, "", "key", "bus-config", "--keys", dir); got.code != 1 || got.out != "" || !strings.Contains(got.err, "bus.json") {
		t.Errorf("a broken folder: %+v", got)
	}
}
