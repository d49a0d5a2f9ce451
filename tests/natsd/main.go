// Command natsd runs the bus of a region in a process of its own, for tests that
// kill it.
package main

import (
	"context"
	"flag"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/sirocco-run/sirocco/pkg/natsserver"
)

func main() {
	dir := flag.String("dir", "", "folder of the streams")
	port := flag.Int("port", natsserver.DefaultPort, "port on loopback")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	server, err := natsserver.Start(ctx, natsserver.Config{Dir: *dir, Port: *port, Log: log})
	if err != nil {
		log.Error("start", "err", err)
		os.Exit(1)
	}
	<-ctx.Done()
	stop()
	server.Close()
}
