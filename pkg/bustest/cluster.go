package bustest

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"
)

// Cluster starts n empty servers that are one cluster, each as Server does, and returns
// once they have a leader and all are up to date. It makes no streams: topology.Ensure
// makes those of a region, with as many replicas as it is asked for. The servers are
// shut down when the test ends.
func Cluster(t testing.TB, n int) []*server.Server {
	t.Helper()
	ports := freePorts(t, n)
	var routes []string
	for _, port := range ports {
		routes = append(routes, fmt.Sprintf("nats-route://127.0.0.1:%d", port))
	}
	var servers []*server.Server
	for i, port := range ports {
		servers = append(servers, Server(t, func(o *server.Options) {
			o.ServerName = fmt.Sprintf("bustest-%d", i)
			o.Routes = server.RoutesFromStr(strings.Join(routes, ","))
			o.Cluster = server.ClusterOpts{Name: "bustest", Host: "127.0.0.1", Port: port}
		}))
	}
	limit, tick := time.NewTimer(startLimit), time.NewTicker(10*time.Millisecond)
	defer limit.Stop()
	defer tick.Stop()
	_, js := Connect(t, servers[0])
	for !complete(servers) || !replicates(t, js, n) {
		select {
		case <-tick.C:
		case <-limit.C:
			t.Fatalf("%d NATS servers did not become a cluster within %v", n, startLimit)
		}
	}
	return servers
}

// complete says whether one server leads and the others follow.
func complete(servers []*server.Server) bool {
	leaders := 0
	for _, s := range servers {
		if s.JetStreamIsLeader() {
			leaders++
		}
		if !s.JetStreamIsCurrent() {
			return false
		}
	}
	return leaders == 1
}

// replicates says whether the leader knows of all servers that a stream could be placed
// on, which it may learn a little after they are up to date.
func replicates(t testing.TB, js jetstream.JetStream, n int) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	const probe = "bustest_probe"
	if _, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: probe, Replicas: n, Storage: jetstream.MemoryStorage}); err != nil {
		return false
	}
	if err := js.DeleteStream(ctx, probe); err != nil {
		t.Fatalf("delete the stream of a test: %v", err)
	}
	return true
}

// freePorts returns ports of loopback that are free now. The servers of a cluster must
// know each other's before the first of them starts.
func freePorts(t testing.TB, n int) []int {
	t.Helper()
	var ports []int
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = l.Close() }()
		address, ok := l.Addr().(*net.TCPAddr)
		if !ok {
			t.Fatalf("the address of a TCP listener is a %T", l.Addr())
		}
		ports = append(ports, address.Port)
	}
	return ports
}
