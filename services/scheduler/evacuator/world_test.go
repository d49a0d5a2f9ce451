package evacuator

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/bustest"
	"github.com/sirocco-run/sirocco/pkg/evacuation"
	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/peer"
	"github.com/sirocco-run/sirocco/pkg/program"
	"github.com/sirocco-run/sirocco/pkg/record"
	"github.com/sirocco-run/sirocco/pkg/sandboxid"
	"github.com/sirocco-run/sirocco/pkg/subject"
	"github.com/sirocco-run/sirocco/pkg/topology"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

const (
	tenant = "acme"
	// wait bounds what a test waits for.
	wait = 60 * time.Second
)

// region is a region's bus with its records and orders, and whoever plays its
// schedulers and nodes.
type region struct {
	t      *testing.T
	name   string
	nc     *nats.Conn
	js     jetstream.JetStream
	store  *record.Store
	orders *evacuation.Store
	peers  map[string]*region
	env    program.Env

	mu sync.Mutex
	// verdict says what becomes of the n-th command: pause and "" for a move, or the
	// reason why not; refused commands never get as far as the record.
	verdict func(id, key string) (pause time.Duration, failure string, refused bool)
	// commands are the keys of all that came, in order; moved counts moves by sandbox.
	commands []string
	moved    map[string]int
}

// world makes regions that know each other, each with moves that succeed.
func world(t *testing.T, names ...string) map[string]*region {
	t.Helper()
	all, urls := map[string]*region{}, map[string]string{}
	for _, name := range names {
		server := bustest.Server(t, nil)
		nc, js := bustest.Connect(t, server)
		if err := topology.Ensure(t.Context(), js, topology.Options{}); err != nil {
			t.Fatal(err)
		}
		r := &region{t: t, name: name, nc: nc, js: js, peers: all, moved: map[string]int{}}
		r.verdict = func(string, string) (time.Duration, string, bool) { return 100 * time.Millisecond, "", false }
		var err error
		if r.store, err = record.Open(t.Context(), js); err != nil {
			t.Fatal(err)
		}
		if r.orders, err = evacuation.Open(t.Context(), js); err != nil {
			t.Fatal(err)
		}
		urls[name], all[name] = server.ClientURL(), r
	}
	for name, r := range all {
		peers := peer.NewSet(name, urls, func(url string) (*nats.Conn, error) { return nats.Connect(url) })
		t.Cleanup(peers.Close)
		r.env = program.Env{Region: name, Instance: "s1", NC: r.nc, JS: r.js, Peers: peers, Log: slog.New(slog.DiscardHandler)}
		for _, other := range peers.Regions() {
			if _, err := peers.Get(other); err != nil {
				t.Fatal(err)
			}
		}
		r.weigh(names)
		r.play()
	}
	return all
}

// weigh writes weights as a controller does: all the same.
func (r *region) weigh(names []string) {
	w := &siroccov1.RegionWeights{At: timestamppb.Now()}
	for _, name := range names {
		w.Regions = append(w.Regions, &siroccov1.Region{Name: name, Alive: true, Weight: 1 / float64(len(names)), Level: 1, Score: 1, Cause: "steady"})
	}
	value, err := proto.Marshal(w)
	if err != nil {
		r.t.Fatal(err)
	}
	bucket, err := r.js.KeyValue(r.t.Context(), subject.BucketRegions)
	if err != nil {
		r.t.Fatal(err)
	}
	if _, err := bucket.Put(r.t.Context(), subject.RegionKey(subject.RegionWeights, r.name), value); err != nil {
		r.t.Fatal(err)
	}
}

// word is what a region was told about another's weight; -1 for nothing.
func (r *region) word(about string) float64 {
	bucket, err := r.js.KeyValue(r.t.Context(), subject.BucketRegions)
	if err != nil {
		r.t.Fatal(err)
	}
	entry, err := bucket.Get(r.t.Context(), subject.RegionKey(subject.RegionWord, about))
	if err != nil {
		return -1
	}
	word := &siroccov1.RegionWord{}
	if err := proto.Unmarshal(entry.Value(), word); err != nil {
		r.t.Fatal(err)
	}
	return word.GetWeight()
}

// sandbox makes the record of one that runs on a node.
func (r *region) sandbox(node string, regions ...string) string {
	r.t.Helper()
	id := sandboxid.New()
	_, err := r.store.Create(r.t.Context(), &siroccov1.Sandbox{
		Id: id, Tenant: tenant, State: siroccov1.State_STATE_RUNNING, Spec: &siroccov1.CreateSandboxRequest{Regions: regions},
		Placement: &siroccov1.Placement{Region: r.name, Node: node, Epoch: 1}, Desired: &siroccov1.Desired{},
		Observed: &siroccov1.Observed{Epoch: 1},
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return id
}

// play takes commands from the queue and does what schedulers and nodes do, by the steps
// of the record.
func (r *region) play() {
	consumer, err := r.js.Consumer(r.t.Context(), subject.StreamCommands, subject.ConsumerScheduler)
	if err != nil {
		r.t.Fatal(err)
	}
	var moving sync.WaitGroup
	consuming, err := consumer.Consume(func(msg jetstream.Msg) {
		_, _, key, err := subject.ParseCommand(msg.Subject())
		req := &siroccov1.MigrateSandboxRequest{}
		if err == nil {
			err = bus.DecodeStrict(msg.Headers(), msg.Data(), req)
		}
		if err != nil {
			r.t.Errorf("a command that can't be read: %v", err)
			return
		}
		moving.Go(func() {
			r.migrate(r.t.Context(), key, req)
			_ = msg.Ack()
		})
	})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		consuming.Stop()
		<-consuming.Closed()
		moving.Wait()
	})
}

func (r *region) migrate(ctx context.Context, key string, req *siroccov1.MigrateSandboxRequest) {
	r.mu.Lock()
	r.commands = append(r.commands, key)
	pause, failure, refused := r.verdict(req.GetId(), key)
	r.mu.Unlock()
	if refused {
		r.refuse(ctx, key, failure)
		return
	}
	to, node := r.peers[req.GetRegion()], "there"
	sb, err := r.store.Get(ctx, tenant, req.GetId())
	if err != nil || sb.GetMove().GetKey() == key || lifecycle.Shadow(sb, r.name) {
		return
	}
	epoch := lifecycle.NextEpoch(sb)
	take := func(store *record.Store, step lifecycle.Step) *siroccov1.Sandbox {
		out, err := store.Update(ctx, tenant, req.GetId(), nil, step)
		if err != nil && ctx.Err() == nil {
			r.t.Errorf("%s: %T: %v", req.GetId(), step, err)
		}
		return out
	}
	take(r.store, lifecycle.Migrate{Move: &siroccov1.Move{Key: key, Region: req.GetRegion(), Node: node, Epoch: epoch, Reason: req.GetReason()}})
	if failure != "" {
		take(r.store, lifecycle.CallOff{Epoch: epoch, Code: "no_capacity", Failure: failure})
		return
	}
	gone := take(r.store, lifecycle.Depart{Epoch: epoch})
	store := r.store
	if to != r {
		// The record goes along; what stays is its shadow, which nobody brings up to date
		// here: the evacuator has to look where the sandbox is.
		store = to.store
		if _, err := store.Create(ctx, gone); err != nil && ctx.Err() == nil {
			r.t.Error(err)
		}
	}
	take(store, lifecycle.Arrive{Observed: &siroccov1.Observed{Epoch: epoch}, Pause: pause})
	r.mu.Lock()
	r.moved[req.GetId()]++
	r.mu.Unlock()
}

// refuse publishes the dead letter that becomes the event of a refused command.
func (r *region) refuse(ctx context.Context, key, why string) {
	msg, err := bus.NewMsg(ctx, subject.DeadLetter(subject.StreamCommands, subject.ConsumerScheduler, tenant, key),
		&siroccov1.RejectedCommand{Tenant: tenant, Key: key, Verb: subject.VerbMigrate, Code: "no_capacity", Message: why})
	if err == nil {
		_, err = r.js.PublishMsg(ctx, msg)
	}
	if err != nil && ctx.Err() == nil {
		r.t.Error(err)
	}
}

// drive starts an evacuator; the function that it returns ends it and waits.
func (r *region) drive(instance string) (stop func()) {
	env := r.env
	env.Instance = instance
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- New(env).Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Errorf("run: %v", err)
		}
	})
	r.t.Cleanup(stop)
	return stop
}

// evacuate orders that the region is emptied.
func (r *region) evacuate(req *siroccov1.EvacuateRegionRequest) *siroccov1.Evacuation {
	r.t.Helper()
	req.Region = r.name
	e, err := evacuation.OfRegion(req, "ops", time.Now())
	if err == nil {
		e, err = r.orders.Order(r.t.Context(), e)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	return e
}

// await follows the order, through every revision of its entry, until done says so.
func (r *region) await(node, what string, done func(*siroccov1.Evacuation) bool) *siroccov1.Evacuation {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), wait)
	defer cancel()
	bucket, err := r.js.KeyValue(ctx, subject.BucketEvacuations)
	if err != nil {
		r.t.Fatal(err)
	}
	key := subject.EvacuationKey(r.name, node)
	changes, err := bucket.Watch(ctx, key)
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() { _ = changes.Stop() }()
	var last *siroccov1.Evacuation
	for {
		select {
		case entry := <-changes.Updates():
			if entry == nil {
				continue
			}
			if last, err = evacuation.Decode(key, entry.Value()); err != nil {
				r.t.Fatal(err)
			}
			if done(last) {
				return last
			}
		case <-ctx.Done():
			r.t.Fatalf("%s: not %s: %v; %d commands came", fmt.Sprint(r.name, " ", node), what, last, len(r.keys()))
		}
	}
}

func (r *region) keys() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.commands...)
}

// eventually waits until a condition holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	end := time.Now().Add(wait)
	for !holds() {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", wait, what)
		}
		<-tick.C
	}
}

// end ends a sandbox as its node does when it evicts it.
func (r *region) end(id string) error {
	_, err := r.store.Update(r.t.Context(), tenant, id, nil, lifecycle.Finish{
		Epoch: 1, End: &siroccov1.End{Cause: siroccov1.Cause_CAUSE_EVICTED, Message: "its node is being drained"},
	})
	return err
}
