package chaos

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	sirocco "github.com/sirocco-run/sirocco/sdk/go"
	"github.com/sirocco-run/sirocco/tests/platform"
	"google.golang.org/protobuf/types/known/durationpb"
)

// nodeDisk is what each node has for what its sandboxes write, in bytes.
const nodeDisk = 512 << 20

// With the disks of all nodes full, what is new is refused and told why, what runs goes
// on but for the one that holds the most, and all is well again once there is room.
func TestNodesFull(t *testing.T) {
	tr := beginWith(t, "full", platform.FleetOptions{Disks: map[string]int64{"node-1": nodeDisk, "node-2": nodeDisk}})
	web := webClient(t, tr.fleet.CA)
	for range 4 {
		tr.veterans = append(tr.veterans, enlist(t, tr.client))
	}
	hog := create(t, tr.client, &siroccov1.CreateSandboxRequest{MaxLifetime: durationpb.New(time.Hour)})
	write(t, hog, 64)
	home := tr.fleet.Disks[hog.Record.GetPlacement().GetNode()]
	serve := func(when string) {
		t.Helper()
		for _, v := range tr.veterans {
			if why := v.serves(t.Context(), web); why != "" {
				t.Errorf("%s: %s", when, why)
			}
		}
	}
	serve("before")

	for _, d := range tr.fleet.Disks {
		if err := d.Fill(0); err != nil {
			t.Fatal(err)
		}
	}
	if sb := ended(t, tr.client, hog); sb.GetEnd().GetCause() != siroccov1.Cause_CAUSE_EVICTED || sb.GetEnd().GetLimit() != "node.disk" {
		t.Errorf("the one that held the most: %v", sb.GetEnd())
	}
	// What it held is room for the others: take that too.
	if err := home.Fill(0); err != nil {
		t.Fatal(err)
	}
	serve("with the disks full")
	refusedFor(t, tr.client, "disk")
	serve("after a refusal")

	for _, d := range tr.fleet.Disks {
		if err := d.Empty(); err != nil {
			t.Fatal(err)
		}
	}
	healed := time.Now()
	platform.Eventually(t, settle, func() string {
		s, err := tr.client.Create(t.Context(), &siroccov1.CreateSandboxRequest{MaxLifetime: durationpb.New(time.Hour)})
		if err != nil {
			return err.Error()
		}
		write(t, s, 1)
		return ""
	})
	tr.holds(t.Context(), web, "with room again", healed)
}

// write lets a sandbox write so many MiB to a file of its own.
func write(t *testing.T, s *sirocco.Sandbox, mib int) {
	t.Helper()
	var out bytes.Buffer
	end, err := s.Run(t.Context(), sirocco.Command{Args: []string{"dd", "if=/dev/zero", "of=/home/file", "bs=1048576", fmt.Sprintf("count=%d", mib)}, Stdout: &out, Stderr: &out})
	if err != nil || end.GetExitCode() != 0 {
		t.Fatalf("write %d MiB in %s: %v, %v, %s", mib, s.ID, end, err, out.String())
	}
}

// refusedFor checks that nothing can be created, for want of what.
func refusedFor(t *testing.T, c *sirocco.Client, what string) {
	t.Helper()
	_, err := c.Create(t.Context(), &siroccov1.CreateSandboxRequest{})
	if sirocco.CodeOf(err) != sirocco.NoCapacity || !strings.Contains(err.Error(), what) {
		t.Errorf("a create: %v, want no capacity, for %s", err, what)
	}
}

// One of three NATS servers has a full disk: nobody is refused anything. Once there is
// room it gets what the others have.
func TestOneBusDiskFull(t *testing.T) {
	tr := beginWith(t, "fullb", platform.FleetOptions{Servers: 3, Disks: map[string]int64{"bus-2": busDisk}})
	web := webClient(t, tr.fleet.CA)
	tr.veterans = append(tr.veterans, enlist(t, tr.client))
	disk, server := tr.fleet.Disks["bus-2"], tr.fleet.Service("bus-2")
	if err := disk.Fill(0); err != nil {
		t.Fatal(err)
	}
	slowest := time.Duration(0)
	for range 20 {
		began := time.Now()
		brief(t, tr.client)
		slowest = max(slowest, time.Since(began))
	}
	t.Logf("the slowest of 20 creates and ends took %v", slowest.Round(10*time.Millisecond))
	if why := tr.veterans[0].serves(t.Context(), web); why != "" {
		t.Error(why)
	}
	if err := disk.Empty(); err != nil {
		t.Fatal(err)
	}
	healed := time.Now()
	platform.Eventually(t, settle, func() string { return tr.behind(server) })
	t.Logf("it has everything %v after there was room", time.Since(healed).Round(10*time.Millisecond))
	// It is one of the majority now.
	other := tr.fleet.Service("bus-1")
	other.Kill()
	brief(t, tr.client)
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	tr.holds(t.Context(), web, "with room again", healed)
}

// The disk of the only NATS server is full: what is new is refused and told so, what
// runs goes on, and once there is room all is well again.
func TestOnlyBusDiskFull(t *testing.T) {
	tr := beginWith(t, "fullc", platform.FleetOptions{Disks: map[string]int64{"bus": busDisk}})
	web := webClient(t, tr.fleet.CA)
	tr.veterans = append(tr.veterans, enlist(t, tr.client))
	once, err := sirocco.New(sirocco.Config{API: tr.fleet.API, Key: tr.fleet.Key, CAFile: tr.fleet.CA, Retry: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer once.Close()
	disk := tr.fleet.Disks["bus"]
	if err := disk.Fill(0); err != nil {
		t.Fatal(err)
	}
	// Some still find room in blocks that are begun.
	accepted := 0
	platform.Eventually(t, 2*time.Minute, func() string {
		_, err := once.Create(t.Context(), &siroccov1.CreateSandboxRequest{Wait: siroccov1.Wait_WAIT_ACCEPTED, MaxLifetime: durationpb.New(time.Minute)})
		if err == nil {
			accepted++
		} else if code := sirocco.CodeOf(err); code != sirocco.Unavailable {
			t.Errorf("a create with the disk of the bus full: %v, want unavailable", err)
		} else {
			t.Logf("%d were accepted, then: %v", accepted, err)
			return ""
		}
		return fmt.Sprintf("%d creates with the disk of the bus full", accepted)
	})
	if why := tr.veterans[0].serves(t.Context(), web); why != "" {
		t.Error(why)
	}
	if err := disk.Empty(); err != nil {
		t.Fatal(err)
	}
	healed := time.Now()
	platform.Eventually(t, settle, func() string {
		_, err := once.Create(t.Context(), &siroccov1.CreateSandboxRequest{MaxLifetime: durationpb.New(time.Minute)})
		if err != nil {
			return err.Error()
		}
		return ""
	})
	tr.holds(t.Context(), web, "with room again", healed)
}

// brief creates and ends a sandbox.
func brief(t *testing.T, c *sirocco.Client) {
	t.Helper()
	if _, err := create(t, c, &siroccov1.CreateSandboxRequest{MaxLifetime: durationpb.New(time.Minute)}).Terminate(t.Context(), ""); err != nil {
		t.Error(err)
	}
}

// behind says which stream a NATS server has not all of; "" for none.
func (tr *trial) behind(server *platform.Process) string {
	streams := tr.fleet.JS.ListStreams(tr.Context())
	n := 0
	for info := range streams.Info() {
		n++
		if info.Cluster == nil {
			return info.Config.Name + " has no cluster"
		}
		if info.Cluster.Leader == server.Name {
			continue
		}
		for _, r := range info.Cluster.Replicas {
			if r.Name == server.Name && (!r.Current || r.Offline) {
				return fmt.Sprintf("%s of %s: %+v", info.Config.Name, server.Name, *r)
			}
		}
	}
	if err := streams.Err(); err != nil || n == 0 {
		return fmt.Sprintf("%d streams: %v", n, err)
	}
	return ""
}
