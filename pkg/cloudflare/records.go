package cloudflare

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/cloudflare/cloudflare-go/v7/dns"
	"github.com/cloudflare/cloudflare-go/v7/option"
	"github.com/sirocco-run/sirocco/pkg/cloudflare/plan"
)

const (
	// comment marks the records that are managed here; others are never touched.
	comment = "managed by sirocco"
	// mostRecords is more than there are below the domain of the tunnels.
	mostRecords = 1000
)

// conflictError is a record that is in the way.
type conflictError struct{ record plan.Record }

func (e *conflictError) Error() string {
	return fmt.Sprintf("records: %s has the record %s %s, which is not of Sirocco: remove it, or give it the comment %q",
		e.record.Name, e.record.Type, e.record.Content, comment)
}

// listed is a record that was found, with its id.
type listed struct {
	plan.Record
	id   string
	mine bool
}

type listing []listed

// ours returns the records that are managed here, in order.
func (l listing) ours() []plan.Record {
	records := []plan.Record{}
	for _, r := range l {
		if r.mine {
			records = append(records, r.Record)
		}
	}
	slices.SortFunc(records, plan.Record.Compare)
	return records
}

// list finds the records with names that are managed here ("List DNS Records").
func (c *client) list(ctx context.Context, opts []option.RequestOption, want plan.Wanted) (listing, error) {
	var name dns.RecordListParamsName
	name.Endswith.Value, name.Endswith.Present = "."+want.Domain, true
	var params dns.RecordListParams
	params.ZoneID.Value, params.ZoneID.Present = c.cfg.Zone, true
	params.Name.Value, params.Name.Present = name, true
	params.PerPage.Value, params.PerPage.Present = mostRecords, true
	res, err := dns.NewRecordService(opts...).List(ctx, params)
	if err != nil {
		return nil, err
	}
	if len(res.Result) >= mostRecords {
		return nil, fmt.Errorf("there are %d records or more below %s", mostRecords, want.Domain)
	}
	var found listing
	for _, r := range res.Result {
		if !plan.Ours(r.Name, want.Domain) {
			continue
		}
		found = append(found, listed{id: r.ID, mine: r.Comment == comment, Record: plan.Record{
			Name: r.Name, Type: string(r.Type), Content: r.Content, TTL: int(math.Round(float64(r.TTL))), Proxied: r.Proxied,
		}})
	}
	return found, nil
}

// writeRecords lists what is there and makes the difference, all or nothing.
func (c *client) writeRecords(ctx context.Context, opts []option.RequestOption, want plan.Wanted) error {
	have, err := c.list(ctx, opts, want)
	if err != nil {
		return err
	}
	var remove []string
	var kept []plan.Record
	for _, r := range have {
		_, wanted := slices.BinarySearchFunc(want.Records, r.Record, plan.Record.Compare)
		switch {
		case !r.mine && named(want.Records, r.Name) && (r.Type == "A" || r.Type == "AAAA" || r.Type == "CNAME"):
			return &conflictError{record: r.Record}
		case !r.mine:
		case wanted && !slices.Contains(kept, r.Record):
			kept = append(kept, r.Record)
		default:
			remove = append(remove, r.id)
		}
	}
	var add []plan.Record
	for _, r := range want.Records {
		if !slices.Contains(kept, r) {
			add = append(add, r)
		}
	}
	if len(remove)+len(add) == 0 {
		return nil
	}
	res, err := dns.NewRecordService(opts...).Batch(ctx, c.batchParams(remove, add))
	if err != nil {
		return err
	}
	if len(res.Posts) != len(add) || len(res.Deletes) != len(remove) {
		return errOtherwise
	}
	return nil
}

func named(records []plan.Record, name string) bool {
	return slices.ContainsFunc(records, func(r plan.Record) bool { return r.Name == name })
}

// batchParams is the body of "Batch DNS Records".
func (c *client) batchParams(remove []string, add []plan.Record) dns.RecordBatchParams {
	var params dns.RecordBatchParams
	params.ZoneID.Value, params.ZoneID.Present = c.cfg.Zone, true
	for _, id := range remove {
		var del dns.RecordBatchParamsDelete
		del.ID.Value, del.ID.Present = id, true
		params.Deletes.Value, params.Deletes.Present = append(params.Deletes.Value, del), true
	}
	for _, r := range add {
		var post dns.RecordBatchParamsPost
		post.Name.Value, post.Name.Present = r.Name, true
		post.Type.Value, post.Type.Present = dns.RecordBatchParamsPostsType(r.Type), true
		post.Content.Value, post.Content.Present = r.Content, true
		post.TTL.Value, post.TTL.Present = dns.TTL(r.TTL), true
		post.Proxied.Value, post.Proxied.Present = r.Proxied, true
		post.Comment.Value, post.Comment.Present = comment, true
		params.Posts.Value, params.Posts.Present = append(params.Posts.Value, post), true
	}
	return params
}
