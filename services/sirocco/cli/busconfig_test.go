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
	"github.com/sirocco-run/sirocco/pkg/topology"
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
	// Written instead of printed, for a container without a shell; twice is harmless.
	folder := t.TempDir()
	for range 2 {
		if got := run(t, nil, "", "key", "bus-config", "--keys", dir, "--write", folder); got.code != 0 || got.out != "" {
			t.Errorf("%+v", got)
		}
	}
	for file, want := range map[string]string{"sirocco-bus.conf": first.out, "bus-password": all.Password + "\n"} {
		raw, err := os.ReadFile(filepath.Join(folder, file))
		if err != nil || string(raw) != want {
			t.Errorf("%s holds %q, %v", file, raw, err)
		}
		if st, err := os.Stat(filepath.Join(folder, file)); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", file, st, err)
		}
	}
	if got := run(t, nil, "", "key", "bus-config", "--keys", dir, "--write", filepath.Join(folder, "none")); got.code != 1 {
		t.Errorf("a folder that is not there: %+v", got)
	}
	if err := os.WriteFile(filepath.Join(dir, "bus.json"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := run(t, nil, "", "key", "bus-config", "--keys", dir); got.code != 1 || got.out != "" || !strings.Contains(got.err, "bus.json") {
		t.Errorf("a broken folder: %+v", got)
	}
}

// TestDownFleet: without an api there is nothing that could be ended, and the error
// says so; with one, all of nothing has ended.
func TestDownFleet(t *testing.T) {
	s := bustest.Server(t, nil)
	_, js := bustest.Connect(t, s)
	ask := func() result { return run(t, nil, "", "down", "--fleet", "--nats-url", s.ClientURL()) }
	if got := ask(); got.code != 1 || got.out != "" {
		t.Errorf("a bus without records: %+v", got)
	}
	if err := topology.Ensure(t.Context(), js, topology.Options{}); err != nil {
		t.Fatal(err)
	}
	if got := ask(); got.code != 0 || got.out != "0 sandboxes ended\n" {
		t.Errorf("%+v", got)
	}
	s.Shutdown()
	if got := ask(); got.code != 1 || !strings.Contains(got.err, "--nats-url") {
		t.Errorf("no bus: %+v", got)
	}
}
