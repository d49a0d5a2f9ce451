package cloudflaretest

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// Record is a DNS record of the zone.
type Record struct {
	ID      string `json:"id"`
	Name    string `json:"name"`
	Type    string `json:"type"`
	Content string `json:"content"`
	TTL     int    `json:"ttl"`
	Proxied bool   `json:"proxied"`
	Comment string `json:"comment"`
}

// batchMost is how many records one batch may change on the smallest plan.
const batchMost = 200

// recordFields are those of a record that is made by "Batch DNS Records".
var recordFields = fields{
	"!name": text(255), "!type": oneOf("A", "AAAA", "CNAME"), "!content": text(255),
	"!ttl": number(1, 86400, 1), "proxied": boolean, "comment": text(100),
}

var batchFields = fields{
	"deletes": list(batchMost, object(fields{"!id": identifier})),
	"posts":   list(batchMost, object(recordFields)),
}

// Records returns the records of the zone, by name, type and content.
func (s *Server) Records() []Record {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := slices.Clone(s.records)
	slices.SortFunc(all, func(a, b Record) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.Type, b.Type), strings.Compare(a.Content, b.Content))
	})
	return all
}

// AddRecord adds a record, as somebody at the dashboard would.
func (s *Server) AddRecord(r Record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.add(r); err != nil {
		s.t.Fatalf("add a record: %v", err)
	}
}

// add makes a record that is possible beside the others. The caller holds the lock.
func (s *Server) add(r Record) error {
	ip, err := netip.ParseAddr(r.Content)
	switch {
	case r.Name != ZoneName && !strings.HasSuffix(r.Name, "."+ZoneName):
		return fmt.Errorf("%s is not in the zone %s", r.Name, ZoneName)
	case r.Type == "A" && (err != nil || !ip.Is4()):
		return fmt.Errorf("%q is not an IPv4 address", r.Content)
	case r.Type == "AAAA" && (err != nil || !ip.Is6()):
		return fmt.Errorf("%q is not an IPv6 address", r.Content)
	case r.Type == "CNAME" && (err == nil || !strings.Contains(r.Content, ".")):
		return fmt.Errorf("%q is not a host name", r.Content)
	case r.TTL != 1 && r.TTL < 60:
		return fmt.Errorf("TTL %d: want 1, or 60 to 86400", r.TTL)
	case r.Proxied && r.TTL != 1:
		r.TTL = 1 // the TTL of proxied records is Cloudflare's
	}
	for _, have := range s.records {
		switch {
		case have.Name != r.Name:
		case have.Type == "CNAME" || r.Type == "CNAME":
			return fmt.Errorf("an A, AAAA, or CNAME record with the host %s already exists", r.Name)
		case have.Type == r.Type && have.Content == r.Content:
			return fmt.Errorf("an identical record of %s already exists", r.Name)
		}
	}
	s.nextID++
	r.ID = fmt.Sprintf("%032x", s.nextID)
	s.records = append(s.records, r)
	return nil
}

// queryChecks are the query parameters of "List DNS Records" that are used.
var queryChecks = map[string]func(string) bool{
	"name.endswith": func(v string) bool { return v != "" },
	"per_page":      func(v string) bool { n, err := strconv.Atoi(v); return err == nil && n >= 1 && n <= 5_000_000 },
	"page":          func(v string) bool { n, err := strconv.Atoi(v); return err == nil && n >= 1 },
}

func (s *Server) listRecords(r *http.Request) (int, map[string]any) {
	if r.Method != http.MethodGet {
		return s.wrong(r, http.StatusMethodNotAllowed, 10405, "Method not allowed")
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return s.wrong(r, http.StatusBadRequest, 1004, "query: %v", err)
	}
	for name, values := range query {
		ok := queryChecks[name]
		if ok == nil || len(values) != 1 || !ok(values[0]) {
			return s.wrong(r, http.StatusBadRequest, 1004, "query parameter %s=%q", name, values)
		}
	}
	found := slices.Collect(func(yield func(Record) bool) {
		for _, record := range s.records {
			if strings.HasSuffix(record.Name, query.Get("name.endswith")) && !yield(record) {
				return
			}
		}
	})
	number := func(name string, missing int) int {
		n, err := strconv.Atoi(query.Get(name))
		if err != nil {
			return missing
		}
		return n
	}
	page, size := number("page", 1), number("per_page", 100)
	from := min((page-1)*size, len(found))
	shown := found[from:min(from+size, len(found))]
	results := []map[string]any{}
	for _, record := range shown {
		results = append(results, recordResult(record))
	}
	status, answer := success(results)
	answer["result_info"] = map[string]any{
		"page": page, "per_page": size, "count": len(shown), "total_count": len(found), "total_pages": (len(found) + size - 1) / size,
	}
	return status, answer
}

func recordResult(r Record) map[string]any {
	result := map[string]any{
		"id": r.ID, "name": r.Name, "type": r.Type, "content": r.Content, "ttl": r.TTL, "proxied": r.Proxied,
		"proxiable": true, "meta": map[string]any{}, "settings": map[string]any{}, "tags": []any{}, "comment": nil,
		"created_on": "2014-01-01T05:20:00.12345Z", "modified_on": "2014-01-01T05:20:00.12345Z",
	}
	if r.Comment != "" {
		result["comment"] = r.Comment
	}
	return result
}

// batchRecords does all or nothing, deletions first.
func (s *Server) batchRecords(r *http.Request, body []byte) (int, map[string]any) {
	if r.Method != http.MethodPost {
		return s.wrong(r, http.StatusMethodNotAllowed, 10405, "Method not allowed")
	}
	if err := batchFields.check(body); err != nil {
		return s.wrong(r, http.StatusBadRequest, 9207, "Failed to parse the request body: %v", err)
	}
	var batch struct {
		Deletes []struct{ ID string }
		Posts   []Record
	}
	if err := json.Unmarshal(body, &batch); err != nil {
		return s.wrong(r, http.StatusBadRequest, 9207, "Failed to parse the request body: %v", err)
	}
	if len(batch.Deletes)+len(batch.Posts) > batchMost {
		return s.wrong(r, http.StatusBadRequest, 9207, "%d changes in one batch", len(batch.Deletes)+len(batch.Posts))
	}
	before := slices.Clone(s.records)
	deleted, posted := []any{}, []any{}
	for _, del := range batch.Deletes {
		i := slices.IndexFunc(s.records, func(have Record) bool { return have.ID == del.ID })
		if i < 0 {
			s.records = before
			return refusal(http.StatusNotFound, 81044, "Record does not exist.")
		}
		deleted = append(deleted, recordResult(s.records[i]))
		s.records = slices.Delete(s.records, i, i+1)
	}
	for _, post := range batch.Posts {
		if err := s.add(post); err != nil {
			s.records = before
			return s.wrong(r, http.StatusBadRequest, 81053, "%v", err)
		}
		posted = append(posted, recordResult(s.records[len(s.records)-1]))
	}
	return success(map[string]any{"deletes": deleted, "posts": posted, "patches": []any{}, "puts": []any{}})
}
