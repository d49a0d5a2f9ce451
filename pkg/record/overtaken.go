package record

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/nats-io/nats.go"
	"github.com/sirocco-run/sirocco/pkg/subject"
)

// Known is a revision of a record that somebody knows.
type Known struct {
	Tenant, ID string
	Revision   uint64
}

// atOnce is how many records one request asks for; the server answers 1,024 at
// most.
const atOnce = 500

// Overtaken returns which of the known revisions are not the newest, or belong to a
// record that is gone. It asks for hundreds at once, and only for what was written
// behind since: so that asking again and again costs next to nothing while nothing
// changes. upTo is what to give as since the next time; with 0 all are compared.
// An answer of before a deletion that the bus has forgotten (after a minute) is
// made good by comparing all.
func (s *Store) Overtaken(ctx context.Context, known []Known, since uint64) (overtaken []Known, upTo uint64, err error) {
	upTo = since
	for first := true; len(known) > 0; first = false {
		part := known[:min(len(known), atOnce)]
		known = known[len(part):]
		newest, seen, err := s.newest(ctx, part, since)
		if err != nil {
			return nil, 0, busError("compare records", err)
		}
		// The parts are asked for one after the other: the later ones have looked
		// at least as far as the first.
		if first {
			upTo = max(seen, since)
		}
		for _, k := range part {
			revision, ok := newest[subject.RecordKey(k.Tenant, k.ID)]
			if revision > k.Revision || !ok && since == 0 {
				overtaken = append(overtaken, k)
			}
		}
	}
	return overtaken, upTo, nil
}

// newest returns the newest revisions of records by key, of those that were written
// behind since, and up to where the server has looked; 0 if it found none.
func (s *Store) newest(ctx context.Context, part []Known, since uint64) (newest map[string]uint64, upTo uint64, err error) {
	nc := s.js.Conn()
	prefix := "$KV." + subject.BucketSandboxes + "."
	ask := struct {
		Subjects []string `json:"multi_last"`
		From     uint64   `json:"seq,omitempty"`
	}{From: since}
	if since > 0 {
		ask.From++
	}
	for _, k := range part {
		ask.Subjects = append(ask.Subjects, prefix+subject.RecordKey(k.Tenant, k.ID))
	}
	body, err := json.Marshal(ask)
	if err != nil {
		return nil, 0, err
	}
	inbox := nc.NewRespInbox()
	sub, err := nc.SubscribeSync(inbox)
	if err != nil {
		return nil, 0, err
	}
	defer func() { _ = sub.Unsubscribe() }()
	if err := nc.PublishRequest("$JS.API.DIRECT.GET.KV_"+subject.BucketSandboxes, inbox, body); err != nil {
		return nil, 0, err
	}
	newest = map[string]uint64{}
	for {
		msg, err := sub.NextMsgWithContext(ctx)
		if err != nil {
			return nil, 0, err
		}
		switch status := msg.Header.Get("Status"); status {
		case "":
			revision, err := strconv.ParseUint(msg.Header.Get(nats.JSSequence), 10, 64)
			if err != nil {
				return nil, 0, fmt.Errorf("an answer without a sequence: %w", err)
			}
			if key := msg.Header.Get(nats.JSSubject); len(key) > len(prefix) {
				newest[key[len(prefix):]] = revision
			}
		case "204": // that was all
			upTo, err = strconv.ParseUint(msg.Header.Get("Nats-UpTo-Sequence"), 10, 64)
			return newest, upTo, err
		case "404": // nothing was written
			return newest, 0, nil
		default:
			return nil, 0, fmt.Errorf("the bus answered %s %s", status, msg.Header.Get("Description"))
		}
	}
}
