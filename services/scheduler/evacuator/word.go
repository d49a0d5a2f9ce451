package evacuator

import (
	"context"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/regionword"
	"github.com/sirocco-run/sirocco/pkg/subject"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// wordHold is how long a word of an evacuation holds. It is renewed in time as long as
// the order stands; a region that could not be told that it does not stand any more
// forgets it by then.
const wordHold = 10 * time.Minute

// word is what the regions were told about the weight of one that is evacuated.
type word struct {
	// weight is the last word, told says when each region heard it.
	weight float64
	told   map[string]time.Time
	// givenBack: this region, and all others that can be reached, have the word from
	// before the order.
	givenBack bool
}

// remember notes what a region had before the order, if nobody has yet.
func (d *Evacuator) remember(ctx context.Context, e *siroccov1.Evacuation, now time.Time) error {
	if e.GetNode() != "" || e.LevelBefore != nil {
		return nil
	}
	before, err := regionword.Read(ctx, d.env.JS, e.GetRegion(), now)
	if err != nil {
		return err
	}
	level := 1.0
	for _, r := range d.known {
		if r.Region == e.GetRegion() {
			level = r.Level
		}
	}
	if before != nil {
		level = before.GetWeight()
		e.WordBefore, e.WordUntilBefore = proto.Float64(before.GetWeight()), before.GetUntil()
	}
	e.LevelBefore = proto.Float64(level)
	return nil
}

// say lets what is new slide away from a region along with its stages: each region is
// told once, and again before it forgets. A word that gives the region less stands.
func (d *Evacuator) say(ctx context.Context, w *word, e *siroccov1.Evacuation, share float64, now time.Time) {
	weight := e.GetLevelBefore() * share
	if w.told == nil || w.weight != weight || w.givenBack {
		*w = word{weight: weight, told: map[string]time.Time{}}
	}
	d.everywhere(func(region string, js jetstream.JetStream) {
		if now.Sub(w.told[region]) < wordHold/2 {
			return
		}
		have, err := regionword.Read(ctx, js, e.GetRegion(), now)
		if err == nil && (have == nil || have.GetWeight() >= weight) {
			err = regionword.Say(ctx, js, e.GetRegion(), &siroccov1.RegionWord{Weight: weight, Until: timestamppb.New(now.Add(wordHold))})
		}
		if err != nil {
			d.log.Warn("a region was not told of an evacuation", "peer", region, "region", e.GetRegion(), "err", err)
			return
		}
		w.told[region] = now
	})
}

// giveBack lets a region have what it had before the order.
func (d *Evacuator) giveBack(ctx context.Context, w *word, e *siroccov1.Evacuation, now time.Time) {
	if w.givenBack {
		return
	}
	var before *siroccov1.RegionWord
	if e.WordBefore != nil && e.GetWordUntilBefore().AsTime().After(now) {
		before = &siroccov1.RegionWord{Weight: e.GetWordBefore(), Until: e.GetWordUntilBefore()}
	}
	all := true
	d.everywhere(func(region string, js jetstream.JetStream) {
		if err := regionword.Say(ctx, js, e.GetRegion(), before); err != nil {
			d.log.Warn("a region was not told that an evacuation was cancelled; it forgets it by itself", "peer", region, "err", err, "after", wordHold)
			all = all && region != d.env.Region
		}
	})
	w.givenBack, w.told = all, nil
}

// everywhere calls tell with the bus of each region that can be reached, this one first.
func (d *Evacuator) everywhere(tell func(region string, js jetstream.JetStream)) {
	tell(d.env.Region, d.env.JS)
	for _, region := range d.env.Peers.Regions() {
		if p, err := d.env.Peers.Get(region); err == nil && p.Alive() {
			tell(region, p.JS)
		}
	}
}

// readKnown reads how this region sees all of them.
func (d *Evacuator) readKnown(ctx context.Context) error {
	bucket, err := d.env.JS.KeyValue(ctx, subject.BucketRegions)
	if err != nil {
		return err
	}
	entry, err := bucket.Get(ctx, subject.RegionKey(subject.RegionWeights, d.env.Region))
	if err != nil {
		return err
	}
	weights := &siroccov1.RegionWeights{}
	if err := proto.Unmarshal(entry.Value(), weights); err != nil {
		return err
	}
	d.known = decisions(weights.GetRegions())
	return nil
}
