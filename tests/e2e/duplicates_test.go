package e2e

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	sirocco "github.com/sirocco-run/sirocco/sdk/go"
	"google.golang.org/protobuf/proto"
)

// Every command is published twice, and at the same time, on the bus and over
// HTTP: each takes effect once.
func TestEveryCommandTwice(t *testing.T) {
	t.Parallel()
	_, js := busClient(t)
	c := client(t)
	publish := func(verb, key, body string) {
		t.Helper()
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				if _, err := js.Publish(t.Context(), "sirocco.cmd.default.sandbox."+verb+"."+key, []byte(body)); err != nil {
					t.Errorf("publish %s: %v", verb, err)
				}
			})
		}
		wg.Wait()
	}
	key := fmt.Sprint("twice-", time.Now().UnixNano())
	req := &siroccov1.CreateSandboxRequest{IdempotencyKey: key, Tags: map[string]string{"twice": key}, Ports: []*siroccov1.Port{{Port: 8000}}}
	ids := make(chan string, 4)
	var wg sync.WaitGroup
	wg.Go(func() { publish("create", key, fmt.Sprintf(`{"tags":{"twice":%q},"ports":[{"port":8000}]}`, key)) })
	for range 4 {
		wg.Go(func() {
			s, err := c.Create(t.Context(), proto.CloneOf(req))
			if err != nil {
				t.Error(err)
				return
			}
			ids <- s.ID
		})
	}
	wg.Wait()
	close(ids)
	id := <-ids
	for other := range ids {
		if other != id {
			t.Fatalf("one key made %s and %s", id, other)
		}
	}
	s, err := c.Open(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	// The same key with another request is refused.
	_, err = c.Create(t.Context(), &siroccov1.CreateSandboxRequest{IdempotencyKey: key, Name: "another"})
	wantCode(t, "the key with another request", err, sirocco.AlreadyExists, sirocco.InvalidArgument, sirocco.FailedPrecondition)

	body := func(more string) string { return fmt.Sprintf(`{"id":%q%s}`, id, more) }
	publish("set-tags", key+"-tags", body(fmt.Sprintf(`,"tags":{"a":%q}`, key)))
	publish("extend", key+"-extend", body(`,"by":"600s"`))
	publish("open-tunnel", key+"-open", fmt.Sprintf(`{"sandbox_id":%q,"port":{"port":5432,"protocol":"PROTOCOL_TCP"}}`, id))
	sb := await(t, s, "all commands", func(sb *siroccov1.Sandbox) bool {
		return sb.GetSpec().GetTags()["a"] == key && len(sb.GetTunnels()) == 2 && time.Until(sb.GetDesired().GetDeadline().AsTime()) > 500*time.Second
	})
	if sb.GetPlacement().GetEpoch() != 1 {
		t.Errorf("it was placed %d times", sb.GetPlacement().GetEpoch())
	}
	publish("close-tunnel", key+"-close", fmt.Sprintf(`{"sandbox_id":%q,"port":5432}`, id))
	await(t, s, "one tunnel", func(sb *siroccov1.Sandbox) bool { return len(sb.GetTunnels()) == 1 })
	// An exec that is started many times at once runs once.
	for range 8 {
		wg.Go(func() {
			if _, err := s.Start(t.Context(), sirocco.Command{ID: "once", Args: []string{"sh", "-c", "echo ran >>/tmp/ran"}}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if _, err := s.Process("once").Wait(t.Context(), 10*time.Second); err != nil {
		t.Fatal(err)
	}
	if got := sh(t, s, "cat /tmp/ran"); got != "ran" {
		t.Errorf("it ran %d times", strings.Count(got, "ran"))
	}
	publish("terminate", key+"-end", body(`,"reason":"twice"`))
	checkEnd(t, s, want{cause: siroccov1.Cause_CAUSE_USER, code: -1, message: "twice"})
	// After the end the key still gives the same sandbox.
	again, err := c.Create(t.Context(), proto.CloneOf(req))
	if err != nil || again.ID != id || !again.Existed {
		t.Errorf("the key after the end: %v, %v", again, err)
	}
	count := 0
	for _, err := range c.List(t.Context(), &siroccov1.ListSandboxesRequest{All: true, Tags: []string{"a=" + key}}) {
		if err != nil {
			t.Fatal(err)
		}
		count++
	}
	if count != 1 {
		t.Errorf("%d sandboxes were made", count)
	}
}
