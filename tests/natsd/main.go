// Command natsd runs a server of a region's bus in a process of its own, for tests
// that kill it: alone, or as one of a cluster.
package main

import (
	"context"
	"flag"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/sirocco-run/sirocco/pkg/natsserver"
)

func main() {
	dir := flag.String("dir", "", "folder of the streams")
	port := flag.Int("port", natsserver.DefaultPort, "port on loopback")
	name := flag.String("name", "", "name of the server")
	cluster := flag.String("cluster", "", "name of the cluster; empty for a server alone")
	clusterPort := flag.Int("cluster-port", 0, "port on loopback for the other servers")
	routes := flag.String("routes", "", "URLs of all servers of the cluster, separated by commas")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	server, err := natsserver.Start(ctx, natsserver.Config{Dir: *dir, Port: *port, Name: *name, Log: log, Configure: func(o *server.Options) error {
		if *cluster != "" {
			o.Cluster = server.ClusterOpts{Name: *cluster, Host: natsserver.DefaultHost, Port: *clusterPort}
			o.Routes = server.RoutesFromStr(*routes)
		}
		return nil
	}})
	if err != nil {
		log.Error("start", "err", err)
		os.Exit(1)
	}
	<-ctx.Done()
	stop()
	server.Close()
}
