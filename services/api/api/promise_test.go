package api_test

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirocco-run/sirocco/pkg/apikey"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/quota"
	"github.com/sirocco-run/sirocco/pkg/subject"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/sirocco-run/sirocco/services/api/api"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// The same key, a hundred times at once, over every transport: one sandbox.
func TestOneKeyMakesOneSandbox(t *testing.T) {
	r := start(t, api.Config{})
	all := r.transports("acme", r.key("acme", apikey.RoleTenant))
	ctx, cancel := context.WithTimeout(t.Context(), 2*wait)
	defer cancel()
	req := &siroccov1.CreateSandboxRequest{Command: []string{"true"}, Name: "one", IdempotencyKey: "k", Ports: []*siroccov1.Port{{Port: 5432, Protocol: siroccov1.Protocol_PROTOCOL_TCP}}}
	var mu sync.Mutex
	ids, fresh := map[string]int{}, 0
	var group sync.WaitGroup
	for i := range 100 {
		group.Go(func() {
			resp := &siroccov1.CreateSandboxResponse{}
			if err := all[i%len(all)].call(ctx, "SandboxService/Create", proto.CloneOf(req), resp); err != nil {
				t.Errorf("%s: %v", all[i%len(all)].name, err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			ids[resp.GetSandbox().GetId()]++
			if !resp.GetExisted() {
				fresh++
			}
		})
	}
	group.Wait()
	if len(ids) != 1 || fresh != 1 {
		t.Errorf("ids %v, of which %d new", ids, fresh)
	}
	other := proto.CloneOf(req)
	other.Command = []string{"false"}
	for _, tr := range all {
		err := tr.call(ctx, "SandboxService/Create", other, &siroccov1.CreateSandboxResponse{})
		if f := fault.From(err); f == nil || f.Code != fault.InvalidArgument || f.Field != "idempotency_key" {
			t.Errorf("%s: another request under the key: %v", tr.name, err)
		}
	}
	// Another tenant's key of the same text is another key.
	resp := &siroccov1.CreateSandboxResponse{}
	theirs := r.transports("other", r.key("other", apikey.RoleTenant))[0]
	if err := theirs.call(ctx, "SandboxService/Create", req, resp); err != nil || resp.GetExisted() || ids[resp.GetSandbox().GetId()] != 0 {
		t.Errorf("another tenant: %v, %v", resp, err)
	}
}

func TestIdempotencyKeyHeader(t *testing.T) {
	r := start(t, api.Config{})
	key := r.key("acme", apikey.RoleTenant)
	var ids []string
	for range 2 {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.url+"/v1/sandboxes", strings.NewReader(`{"command":["true"]}`))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+key)
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Idempotency-Key", "from-header")
		resp := &siroccov1.CreateSandboxResponse{}
		if err := do(req, resp); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, resp.GetSandbox().GetId())
		if resp.GetSandbox().GetIdempotencyKey() != "from-header" {
			t.Errorf("key %q", resp.GetSandbox().GetIdempotencyKey())
		}
	}
	if ids[0] != ids[1] {
		t.Errorf("ids %v", ids)
	}
	// A resent extend moves the deadline once.
	var deadlines []time.Time
	for range 2 {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.url+"/v1/sandboxes/"+ids[0]+"/extend", strings.NewReader(`{"by":"3600s"}`))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+key)
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Idempotency-Key", "extend-once")
		sb := &siroccov1.Sandbox{}
		if err := do(req, sb); err != nil {
			t.Fatal(err)
		}
		deadlines = append(deadlines, sb.GetDesired().GetDeadline().AsTime())
	}
	if !deadlines[0].Equal(deadlines[1]) {
		t.Errorf("deadlines %v", deadlines)
	}
}

func TestNamesAreUniqueWhileTheyLive(t *testing.T) {
	r := start(t, api.Config{})
	for _, tr := range r.transports("acme", r.key("acme", apikey.RoleTenant)) {
		resp := &siroccov1.CreateSandboxResponse{}
		req := &siroccov1.CreateSandboxRequest{Name: "web"}
		if err := tr.call(t.Context(), "SandboxService/Create", req, resp); err != nil {
			t.Fatalf("%s: %v", tr.name, err)
		}
		if err := tr.call(t.Context(), "SandboxService/Create", req, resp); fault.CodeOf(err) != fault.AlreadyExists {
			t.Errorf("%s: %v", tr.name, err)
		}
		if err := tr.call(t.Context(), "SandboxService/Terminate", &siroccov1.TerminateSandboxRequest{Id: "web"}, &siroccov1.Sandbox{}); err != nil {
			t.Fatalf("%s: %v", tr.name, err)
		}
	}
}

// No route leads to another tenant's sandbox.
func TestAnotherTenantsSandboxIsNotFound(t *testing.T) {
	r := start(t, api.Config{})
	resp := &siroccov1.CreateSandboxResponse{}
	if err := r.transports("victim", r.key("victim", apikey.RoleTenant))[1].call(t.Context(), "SandboxService/Create", &siroccov1.CreateSandboxRequest{Name: "mine"}, resp); err != nil {
		t.Fatal(err)
	}
	before := resp.GetSandbox()
	evil := r.key("evil", apikey.RoleOperator)
	for _, id := range []string{before.GetId(), "mine"} {
		for _, tr := range r.transports("evil", evil) {
			for procedure, req := range map[string]proto.Message{
				"SandboxService/Get":         &siroccov1.GetSandboxRequest{Id: id},
				"SandboxService/Terminate":   &siroccov1.TerminateSandboxRequest{Id: id},
				"SandboxService/Extend":      &siroccov1.ExtendSandboxRequest{Id: id, By: durationpb.New(time.Minute)},
				"SandboxService/SetTags":     &siroccov1.SetTagsRequest{Id: id, Tags: map[string]string{"a": "b"}},
				"SandboxService/CreateToken": &siroccov1.CreateTokenRequest{Id: id},
				"TunnelService/Open":         &siroccov1.OpenTunnelRequest{SandboxId: id, Port: &siroccov1.Port{Port: 8000}},
				"TunnelService/Close":        &siroccov1.CloseTunnelRequest{SandboxId: id, Port: 8000},
				"TunnelService/List":         &siroccov1.ListTunnelsRequest{SandboxId: id},
			} {
				if err := tr.call(t.Context(), procedure, req, &siroccov1.Sandbox{}); fault.CodeOf(err) != fault.NotFound {
					t.Errorf("%s of %s over %s: %v", procedure, id, tr.name, err)
				}
			}
			list := &siroccov1.ListSandboxesResponse{}
			if err := tr.call(t.Context(), "SandboxService/List", &siroccov1.ListSandboxesRequest{All: true}, list); err != nil || len(list.GetSandboxes()) != 0 {
				t.Errorf("list over %s: %v, %v", tr.name, list, err)
			}
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, r.url+"/v1/events?id="+id, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+evil)
		if err := do(req, &siroccov1.Sandbox{}); fault.CodeOf(err) != fault.NotFound {
			t.Errorf("events of %s: %v", id, err)
		}
	}
	after, err := r.store.Get(t.Context(), "victim", before.GetId())
	if err != nil || !proto.Equal(before, after) {
		t.Errorf("the record is now %v, %v", after, err)
	}
}

// A caller that leaves while it waits loses nothing.
func TestCallerThatLeavesLosesNothing(t *testing.T) {
	r := start(t, api.Config{})
	all := r.transports("acme", r.key("acme", apikey.RoleTenant))
	for _, tr := range all {
		r.sched.holdBack(subject.VerbCreate, true)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		key := "leaving-" + tr.name
		go func() {
			done <- tr.call(ctx, "SandboxService/Create", &siroccov1.CreateSandboxRequest{IdempotencyKey: key}, &siroccov1.CreateSandboxResponse{})
		}()
		r.sched.until(t, func() bool { return r.sched.seen[subject.Command("acme", subject.VerbCreate, key)] > 0 })
		cancel()
		if err := <-done; err == nil {
			t.Errorf("%s: answered before the scheduler went on", tr.name)
		}
		r.sched.holdBack(subject.VerbCreate, false)
		resp := &siroccov1.CreateSandboxResponse{}
		if err := tr.call(t.Context(), "SandboxService/Create", &siroccov1.CreateSandboxRequest{IdempotencyKey: key}, resp); err != nil {
			t.Fatalf("%s: %v", tr.name, err)
		}
		if !resp.GetExisted() || resp.GetSandbox().GetState() != siroccov1.State_STATE_RUNNING {
			t.Errorf("%s: %v", tr.name, resp)
		}
	}
}

// until waits for a condition on what the scheduler has seen.
func (s *fakeScheduler) until(t *testing.T, done func() bool) {
	t.Helper()
	limit := time.After(wait)
	for {
		s.mu.Lock()
		ok, changed := done(), s.changed
		s.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-limit:
			t.Fatal("the scheduler never saw it")
		}
	}
}

func TestWaitAndItsLimit(t *testing.T) {
	r := start(t, api.Config{WaitLimit: 150 * time.Millisecond})
	r.sched.holdBack(subject.VerbCreate, true)
	for _, tr := range r.transports("acme", r.key("acme", apikey.RoleTenant)) {
		resp := &siroccov1.CreateSandboxResponse{}
		if err := tr.call(t.Context(), "SandboxService/Create", &siroccov1.CreateSandboxRequest{Wait: siroccov1.Wait_WAIT_ACCEPTED}, resp); err != nil {
			t.Fatalf("%s: %v", tr.name, err)
		}
		if resp.GetSandbox().GetState() != siroccov1.State_STATE_ACCEPTED || resp.GetToken().GetToken() == "" {
			t.Errorf("%s: %v", tr.name, resp)
		}
		err := tr.call(t.Context(), "SandboxService/Create", &siroccov1.CreateSandboxRequest{}, resp)
		if f := fault.From(err); f == nil || f.Code != fault.Deadline || !strings.Contains(f.Message, "sb-") || !strings.Contains(f.Message, "accepted") {
			t.Errorf("%s: %v", tr.name, err)
		}
		// A start_deadline that is near bounds the waiting too.
		err = tr.call(t.Context(), "SandboxService/Create", &siroccov1.CreateSandboxRequest{StartDeadline: timestamppb.New(time.Now().Add(50 * time.Millisecond))}, resp)
		if fault.CodeOf(err) != fault.Deadline {
			t.Errorf("%s: %v", tr.name, err)
		}
	}
}

func TestQuotaOfATenant(t *testing.T) {
	r := start(t, api.Config{Quota: quota.Limits{Live: 2}})
	all := r.transports("acme", r.key("acme", apikey.RoleTenant))
	var last string
	for i := range 2 {
		resp := &siroccov1.CreateSandboxResponse{}
		if err := all[0].call(t.Context(), "SandboxService/Create", &siroccov1.CreateSandboxRequest{IdempotencyKey: fmt.Sprint("k", i)}, resp); err != nil {
			t.Fatal(err)
		}
		last = resp.GetSandbox().GetId()
	}
	for _, tr := range all {
		err := tr.call(t.Context(), "SandboxService/Create", &siroccov1.CreateSandboxRequest{}, &siroccov1.CreateSandboxResponse{})
		if f := fault.From(err); f == nil || f.Code != fault.Quota || f.Scope != "tenant" || f.RetryAfter == 0 {
			t.Errorf("%s: %v", tr.name, err)
		}
		// A resend is no new sandbox.
		if err := tr.call(t.Context(), "SandboxService/Create", &siroccov1.CreateSandboxRequest{IdempotencyKey: "k0"}, &siroccov1.CreateSandboxResponse{}); err != nil {
			t.Errorf("%s: resend: %v", tr.name, err)
		}
	}
	if err := all[0].call(t.Context(), "SandboxService/Terminate", &siroccov1.TerminateSandboxRequest{Id: last}, &siroccov1.Sandbox{}); err != nil {
		t.Fatal(err)
	}
	if err := all[0].call(t.Context(), "SandboxService/Create", &siroccov1.CreateSandboxRequest{}, &siroccov1.CreateSandboxResponse{}); err != nil {
		t.Errorf("after one has ended: %v", err)
	}
}

// A burst does not pass the limit, over any mix of transports: what the view does
// not show yet counts too.
func TestQuotaInABurst(t *testing.T) {
	const most, burst = 5, 60
	r := start(t, api.Config{Quota: quota.Limits{Live: most}})
	all := r.transports("acme", r.key("acme", apikey.RoleTenant))
	var mu sync.Mutex
	made, refused := 0, 0
	var group sync.WaitGroup
	for n := range burst {
		group.Go(func() {
			err := all[n%len(all)].call(t.Context(), "SandboxService/Create", &siroccov1.CreateSandboxRequest{Wait: siroccov1.Wait_WAIT_ACCEPTED}, &siroccov1.CreateSandboxResponse{})
			mu.Lock()
			defer mu.Unlock()
			switch fault.CodeOf(err) {
			case "":
				made++
			case fault.Quota:
				refused++
			default:
				t.Errorf("%v", err)
			}
		})
	}
	group.Wait()
	if made != most || refused != burst-most {
		t.Errorf("%d made and %d refused of %d, where %d are allowed", made, refused, burst, most)
	}
}

// Of changes of one sandbox at once, each is answered with the record that shows
// it; the last writer's stays.
func TestChangesAtOnce(t *testing.T) {
	r := start(t, api.Config{WaitLimit: 5 * time.Second})
	all := r.transports("acme", r.key("acme", apikey.RoleTenant))
	resp := &siroccov1.CreateSandboxResponse{}
	if err := all[0].call(t.Context(), "SandboxService/Create", &siroccov1.CreateSandboxRequest{}, resp); err != nil {
		t.Fatal(err)
	}
	id := resp.GetSandbox().GetId()
	var group sync.WaitGroup
	for n := range 40 {
		group.Go(func() {
			tags, sb := map[string]string{"n": fmt.Sprint(n)}, &siroccov1.Sandbox{}
			err := all[n%len(all)].call(t.Context(), "SandboxService/SetTags", &siroccov1.SetTagsRequest{Id: id, Tags: tags}, sb)
			if err != nil || !maps.Equal(sb.GetSpec().GetTags(), tags) {
				t.Errorf("set %v: %v, %v", tags, sb.GetSpec().GetTags(), err)
			}
		})
	}
	group.Wait()
	sb := &siroccov1.Sandbox{}
	if err := all[0].call(t.Context(), "SandboxService/Get", &siroccov1.GetSandboxRequest{Id: id}, sb); err != nil || len(sb.GetSpec().GetTags()) != 1 {
		t.Errorf("after all: %v, %v", sb.GetSpec().GetTags(), err)
	}
}

func TestTCPPortsRunOut(t *testing.T) {
	r := start(t, api.Config{})
	tr := r.transports("acme", r.key("acme", apikey.RoleTenant))[3]
	tcp := func() error {
		return tr.call(t.Context(), "SandboxService/Create", &siroccov1.CreateSandboxRequest{Ports: []*siroccov1.Port{{Port: 1, Protocol: siroccov1.Protocol_PROTOCOL_TCP}}}, &siroccov1.CreateSandboxResponse{})
	}
	for range 4 {
		if err := tcp(); err != nil {
			t.Fatal(err)
		}
	}
	if f := fault.From(tcp()); f == nil || f.Code != fault.Quota || f.Scope != "region" {
		t.Errorf("a fifth of four: %v", f)
	}
}

func TestListPagesAndFilters(t *testing.T) {
	r := start(t, api.Config{})
	all := r.transports("acme", r.key("acme", apikey.RoleTenant))
	var ids []string
	for i := range 7 {
		resp := &siroccov1.CreateSandboxResponse{}
		tags := map[string]string{"odd": fmt.Sprint(i%2 == 1), "n": fmt.Sprint(i)}
		if err := all[0].call(t.Context(), "SandboxService/Create", &siroccov1.CreateSandboxRequest{Tags: tags, Name: fmt.Sprint("n", i)}, resp); err != nil {
			t.Fatal(err)
		}
		ids = append([]string{resp.GetSandbox().GetId()}, ids...)
	}
	if err := all[0].call(t.Context(), "SandboxService/Terminate", &siroccov1.TerminateSandboxRequest{Id: "n0"}, &siroccov1.Sandbox{}); err != nil {
		t.Fatal(err)
	}
	for _, tr := range []transport{all[0], all[1], all[2], all[5], all[6]} {
		var got []string
		req := &siroccov1.ListSandboxesRequest{PageSize: 3, All: true}
		for {
			page := &siroccov1.ListSandboxesResponse{}
			if err := tr.call(t.Context(), "SandboxService/List", req, page); err != nil {
				t.Fatalf("%s: %v", tr.name, err)
			}
			for _, sb := range page.GetSandboxes() {
				got = append(got, sb.GetId())
			}
			if req.PageToken = page.GetNextPageToken(); req.PageToken == "" {
				break
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(ids) {
			t.Errorf("%s: %v; want %v", tr.name, got, ids)
		}
		for name, c := range map[string]struct {
			req  *siroccov1.ListSandboxesRequest
			want int
		}{
			"live":         {&siroccov1.ListSandboxesRequest{}, 6},
			"stopped":      {&siroccov1.ListSandboxesRequest{States: []siroccov1.State{siroccov1.State_STATE_STOPPED}}, 1},
			"odd":          {&siroccov1.ListSandboxesRequest{Tags: []string{"odd=true"}}, 3},
			"odd and 3":    {&siroccov1.ListSandboxesRequest{Tags: []string{"odd=true", "n=3"}}, 1},
			"a tag twice":  {&siroccov1.ListSandboxesRequest{Tags: []string{"n=3", "n=4"}}, 0},
			"by name":      {&siroccov1.ListSandboxesRequest{Name: "n5"}, 1},
			"name of dead": {&siroccov1.ListSandboxesRequest{Name: "n0"}, 0},
		} {
			page := &siroccov1.ListSandboxesResponse{}
			if err := tr.call(t.Context(), "SandboxService/List", c.req, page); err != nil || len(page.GetSandboxes()) != c.want {
				t.Errorf("%s over %s: %d, %v; want %d", name, tr.name, len(page.GetSandboxes()), err, c.want)
			}
		}
	}
	// The same over REST, where filters are parameters.
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, r.url+"/v1/sandboxes?tags=odd%3Dtrue&states=STATE_RUNNING&states=STATE_STOPPED&page_size=2", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+r.key("acme", apikey.RoleTenant))
	page := &siroccov1.ListSandboxesResponse{}
	if err := do(req, page); err != nil || len(page.GetSandboxes()) != 2 || page.GetNextPageToken() == "" {
		t.Errorf("over REST: %v, %v", page, err)
	}
}
