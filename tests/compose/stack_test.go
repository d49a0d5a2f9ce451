//go:build compose

package compose

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	sirocco "github.com/sirocco-run/sirocco/sdk/go"
	"github.com/sirocco-run/sirocco/tests/platform"
)

const (
	// project, nodes and runDir keep these regions apart from others of the
	// machine.
	project = "sirocco-test"
	nodes   = "ctest"
	runDir  = "/run/sirocco-compose-test"
	// EnvPort names the first of thirty ports of loopback that are used.
	EnvPort     = "SIROCCO_COMPOSE_PORT"
	defaultPort = 24000
	// limit bounds whatever has to become as it was.
	limit = 2 * time.Minute
)

// region is one region as its clients see it.
type region struct {
	name, api, key, ca, relay string
}

// stack is what all tests share.
var stack struct {
	root, bin string
	env       []string
	regions   map[string]*region
}

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	code := 1
	err := up()
	if err == nil {
		code = m.Run()
	}
	if code != 0 {
		keepLogs()
	}
	if err = errors.Join(err, down()); err != nil {
		fmt.Fprintln(os.Stderr, "compose:", err)
		code = 1
	}
	return code
}

func up() error {
	bin, err := platform.Bin()
	if err != nil {
		return err
	}
	stack.bin, stack.root = bin, filepath.Join("..", "..")
	port := defaultPort
	if s := os.Getenv(EnvPort); s != "" {
		if port, err = strconv.Atoi(s); err != nil {
			return fmt.Errorf("%s: %w", EnvPort, err)
		}
	}
	stack.env = append(os.Environ(), "COMPOSE_PROJECT_NAME="+project, "SIROCCO_NODES="+nodes, "SIROCCO_RUN="+runDir)
	stack.regions = map[string]*region{}
	for i, name := range []string{"eu", "us"} {
		big := "SIROCCO_" + strings.ToUpper(name)
		tcp := port + 10 + 10*i
		stack.env = append(stack.env, fmt.Sprintf("%s_API_PORT=%d", big, port+i), fmt.Sprintf("%s_TUNNEL_PORT=%d", big, port+2+i), fmt.Sprintf("%s_TCP_PORTS=%d-%d", big, tcp, tcp+2))
		stack.regions[name] = &region{name: name, relay: fmt.Sprintf("127.0.0.1:%d", port+2+i)}
	}
	if err := script("up"); err != nil {
		return err
	}
	for name, r := range stack.regions {
		raw, err := os.ReadFile(filepath.Join(stack.root, ".cache", "compose", project, name, "env"))
		if err != nil {
			return err
		}
		for field := range strings.FieldsSeq(string(raw)) {
			key, value, _ := strings.Cut(field, "=")
			switch key {
			case "SIROCCO_API":
				r.api = value
			case "SIROCCO_API_KEY":
				r.key = value
			case "SIROCCO_CA":
				r.ca = value
			}
		}
	}
	return nil
}

// down takes everything away, and says what is left of the sandboxes.
func down() error {
	err := script("down", "volumes")
	for name := range stack.regions {
		for _, n := range []string{"a", "b"} {
			err = errors.Join(err, platform.Poll(20*time.Second, func() string { return left(fmt.Sprintf("%s-%s-%s", nodes, name, n)) }))
		}
	}
	if entries, rerr := os.ReadDir(runDir); rerr == nil && len(entries) > 0 {
		err = errors.Join(err, fmt.Errorf("%s holds %v and more", runDir, entries[0].Name()))
	}
	_ = exec.Command("umount", runDir).Run()
	_ = os.Remove(runDir)
	return err
}

// left says what of a node's sandboxes is still on the machine: processes, mounts
// and cgroups.
func left(node string) string {
	dir := filepath.Join("/run/sirocco", node)
	h := fnv.New32a()
	_, _ = io.WriteString(h, filepath.Join(dir, "sandboxes"))
	groups, _ := filepath.Glob(fmt.Sprintf("/sys/fs/cgroup/*/sirocco-%08x", h.Sum32()))
	unified, _ := filepath.Glob(fmt.Sprintf("/sys/fs/cgroup/sirocco-%08x", h.Sum32()))
	return platform.Left(dir) + strings.Join(append(groups, unified...), ", ")
}

// script runs tools/scripts/compose.sh.
func script(args ...string) error {
	cmd := exec.Command(filepath.Join("tools", "scripts", "compose.sh"), args...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = stack.root, stack.env, os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("compose.sh %s: %w", strings.Join(args, " "), err)
	}
	return nil
}

// keepLogs prints the end of each container's log, or keeps all of them in the
// folder that SIROCCO_TEST_LOG names.
func keepLogs() {
	ids, err := docker("ps", "--all", "--filter", "label=com.docker.compose.project="+project, "--format", "{{.Names}}")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	for name := range strings.FieldsSeq(ids) {
		log, err := exec.Command("docker", "logs", "--timestamps", name).CombinedOutput()
		if dir := os.Getenv("SIROCCO_TEST_LOG"); dir != "" {
			err = errors.Join(err, os.WriteFile(filepath.Join(dir, name+".log"), log, 0o600))
		} else {
			fmt.Fprintf(os.Stderr, "--- %s\n%s\n", name, log[max(0, len(log)-1500):])
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, name, err)
		}
	}
}

// docker runs the engine's command line.
func docker(args ...string) (string, error) {
	var out, errs bytes.Buffer
	cmd := exec.Command("docker", args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("docker %s: %w: %s", strings.Join(args, " "), err, errs.String())
	}
	return strings.TrimSpace(out.String()), nil
}

// must is docker for what can't fail.
func must(t testing.TB, args ...string) string {
	t.Helper()
	out, err := docker(args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// container is the id of a service's container.
func container(t testing.TB, service string) string {
	t.Helper()
	id := must(t, "ps", "--all", "--quiet", "--filter", "label=com.docker.compose.project="+project, "--filter", "label=com.docker.compose.service="+service)
	if id == "" || strings.Contains(id, "\n") {
		t.Fatalf("containers of %s: %q", service, id)
	}
	return id
}

// services are those of a region, the nodes' networks included.
func services(t testing.TB, region string) []string {
	t.Helper()
	var of []string
	for name := range strings.FieldsSeq(must(t, "ps", "--filter", "label=com.docker.compose.project="+project, "--format", `{{.Label "com.docker.compose.service"}}`)) {
		if strings.Contains(name+"-", "-"+region+"-") {
			of = append(of, name)
		}
	}
	return of
}

// client is a client of a region.
func (r *region) client(t testing.TB) *sirocco.Client {
	t.Helper()
	c, err := sirocco.New(sirocco.Config{API: r.api, Key: r.key, CAFile: r.ca, Retry: limit, Resume: limit})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// cli runs bin/sirocco and returns what it printed.
func (r *region) cli(ctx context.Context, t testing.TB, args ...string) string {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, filepath.Join(stack.bin, "sirocco"), args...)
	cmd.Env = r.environ()
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: sirocco %s: %v\n%s%s", r.name, strings.Join(args, " "), err, out.String(), errs.String())
	}
	return strings.TrimSpace(out.String())
}

// environ is what bin/sirocco needs to use the region.
func (r *region) environ() []string {
	return append(os.Environ(), "SIROCCO_API="+r.api, "SIROCCO_API_KEY="+r.key, "SIROCCO_CA="+r.ca)
}
