package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	sirocco "github.com/sirocco-run/sirocco/sdk/go"
	"github.com/sirocco-run/sirocco/services/sirocco/up"
)

const (
	// regionsStart bounds the start of all regions.
	regionsStart = 3 * time.Minute
	// portsEach is more than the ports of one region (`up --regions` leaves 10 between
	// those of two, 100 between those of their nodes), tcpPorts what all have for raw
	// tunnels.
	portsEach, tcpPorts = 100, 20
)

// Regions is a `sirocco up --regions` that a measurement has for itself.
type Regions struct {
	Names []string
	// Clients speak to each region's api, Locals look at each from beside it.
	Clients []*sirocco.Client
	Locals  []*Local
	// Tunnels speaks to the published ports of all.
	Tunnels *Tunnels
	// Log is the file of the log of all, in JSON behind the region's name.
	Log string

	dir     string
	process *Process
}

// StartRegions starts a platform of several regions and returns once all serve. program
// is the sirocco command; more are further flags of `up`. Nothing of it stays after
// Close.
func StartRegions(ctx context.Context, program string, names []string, more ...string) (r *Regions, err error) {
	r = &Regions{Names: names}
	if r.dir, err = os.MkdirTemp("", "sirocco-regions-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			r.Close()
			err = fmt.Errorf("start the regions %s: %w", strings.Join(names, ", "), err)
		}
	}()
	port, err := freeRun(portsEach*len(names) + tcpPorts)
	if err != nil {
		return r, err
	}
	tcp := port + portsEach*len(names)
	at := func(i int) string { return strconv.Itoa(port + i) }
	r.Log = filepath.Join(r.dir, "up.log")
	r.process, err = StartProcess(r.dir, "up", program, append([]string{
		"up", "--json", "--regions", strings.Join(names, ","), "--data", filepath.Join(r.dir, "data"), "--stop-sandboxes",
		// The machine may have other platforms.
		"--node-name", "b" + strconv.Itoa(os.Getpid()%100_000),
		"--listen", "127.0.0.1:" + at(0), "--nats-port", at(1), "--tunnel-port", at(2), "--node-port", at(3),
		"--tcp-ports", fmt.Sprintf("%d-%d", tcp, tcp+tcpPorts-1), "--log-level", "info", "--log-format", "json",
	}, more...)...)
	if err != nil {
		return r, err
	}
	sctx, cancel := context.WithTimeout(ctx, regionsStart)
	defer cancel()
	var ready []up.Ready
	if err := r.process.FirstJSON(sctx, &ready); err != nil {
		return r, err
	}
	for i, one := range ready {
		if err := r.open(ctx, names[i], one); err != nil {
			return r, err
		}
	}
	return r, nil
}

func (r *Regions) open(ctx context.Context, name string, ready up.Ready) error {
	client, err := sirocco.New(sirocco.Config{API: ready.API, Key: ready.Key, CAFile: ready.CA})
	if err != nil {
		return err
	}
	r.Clients = append(r.Clients, client)
	local, err := OpenLocal(ctx, filepath.Join(r.dir, "data", name))
	if err != nil {
		return err
	}
	r.Locals = append(r.Locals, local)
	if r.Tunnels == nil {
		r.Tunnels, err = NewTunnels(ready.CA)
	}
	return err
}

// Close ends everything, and removes all of it, its log too.
func (r *Regions) Close() {
	for _, l := range r.Locals {
		l.Close()
	}
	for _, c := range r.Clients {
		c.Close()
	}
	if r.process != nil {
		r.process.Stop()
	}
	_ = os.RemoveAll(r.dir)
}

// KeepLog copies the log to a file.
func (r *Regions) KeepLog(to string) error {
	from, err := os.Open(r.Log)
	if err != nil {
		return fmt.Errorf("keep the log: %w", err)
	}
	defer func() { _ = from.Close() }()
	file, err := os.Create(to)
	if err != nil {
		return fmt.Errorf("keep the log: %w", err)
	}
	_, err = io.Copy(file, from)
	return errors.Join(err, file.Close())
}

// freeRun returns the first of n ports of loopback that are free now, below those that
// the kernel gives to outgoing connections.
func freeRun(n int) (int, error) {
	for range 100 {
		first := 10_000 + rand.IntN(22_000-n)
		free := true
		for port := first; free && port < first+n; port++ {
			l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
			if free = err == nil; free {
				_ = l.Close()
			}
		}
		if free {
			return first, nil
		}
	}
	return 0, fmt.Errorf("no run of %d free ports between 10000 and 32000", n)
}
