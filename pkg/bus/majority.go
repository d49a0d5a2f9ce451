package bus

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/subject"
)

// A NATS server that is cut off from the others of its cluster, but not from its clients,
// keeps their connections and answers their pings, while it can neither read nor write
// what the cluster keeps. A client would stay there for as long as the cut lasts. So each
// connection asks now and then how the stream of the records is doing, which its leader
// answers: there may be none, or one that has lost the others and does not know it yet.
const (
	// askEvery is how often that is asked, a third more or less, askWait for how long the
	// answer is waited for.
	askEvery = 2 * time.Second
	askWait  = 2 * time.Second
	// silence is for how long a leader hears nothing from another server, to which it speaks
	// every second, until that one counts as cut off.
	silence = 4 * time.Second
	// leaveAfter is for how long the majority was not heard of before another server is
	// tried: longer than it needs to elect a leader (4 to 9 s), so that its clients stay then.
	leaveAfter = 10 * time.Second
	// leaveAtMost bounds how long the next try waits if that did not help: each waits twice
	// as long as the one before.
	leaveAtMost = time.Minute
)

// errMinority says that a leader answered that does not hear the majority.
var errMinority = errors.New("the leader of the records has lost the majority")

// hearMajority returns nil if the majority of the cluster is heard of. Errors: errMinority,
// and those of JetStream.
func hearMajority(ctx context.Context, js jetstream.JetStream) error {
	s, err := js.Stream(ctx, subject.StreamOf(subject.BucketSandboxes))
	if err != nil {
		return err
	}
	cluster := s.CachedInfo().Cluster
	if cluster == nil {
		return nil
	}
	there := 1
	for _, other := range cluster.Replicas {
		if !other.Offline && other.Active < silence {
			there++
		}
	}
	if 2*there <= len(cluster.Replicas)+1 {
		return errMinority
	}
	return nil
}

// stayWithMajority has the connection go to another server of its cluster when the one it
// has is cut off from the majority. It returns when ctx ends.
//
// It does nothing before the majority was heard of once: the stream may not be there yet,
// and not everybody may ask for it.
func stayWithMajority(ctx context.Context, nc *nats.Conn, log *slog.Logger) {
	js, err := jetstream.New(nc)
	if err != nil {
		log.Error("the majority of the bus can't be asked for", "err", err)
		return
	}
	known, patience, heard := false, leaveAfter, time.Now()
	for {
		select {
		case <-time.After(askEvery*2/3 + rand.N(askEvery*2/3)):
		case <-ctx.Done():
			return
		}
		if !nc.IsConnected() || len(nc.Servers()) < 2 {
			heard = time.Now() // there is no other, or it is being looked for
			continue
		}
		actx, done := context.WithTimeout(ctx, askWait)
		err := hearMajority(actx, js)
		done()
		switch {
		case err == nil:
			known, patience, heard = true, leaveAfter, time.Now()
		case known && time.Since(heard) > patience:
			log.Warn("this server of the bus has lost the majority; another one is tried", "server", nc.ConnectedUrlRedacted(), "for", time.Since(heard).Round(time.Second), "err", err)
			if err := nc.ForceReconnect(); err != nil {
				log.Warn("the server of the bus can't be left", "err", err)
			}
			patience, heard = min(2*patience, leaveAtMost), time.Now()
		}
	}
}
