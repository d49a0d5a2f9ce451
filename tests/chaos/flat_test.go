package chaos

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	sirocco "github.com/sirocco-run/sirocco/sdk/go"
	"github.com/sirocco-run/sirocco/tests/platform"
	"google.golang.org/protobuf/types/known/durationpb"
)

const (
	// envCycles says how many sandboxes are used up; `make soak` sets it.
	envCycles = "SIROCCO_CYCLES"
	// kept is for how long the relay keeps a connection to a sandbox that nobody
	// uses, and with it five goroutines at its two ends.
	kept = time.Minute
	// What the platform may use above what it used before its first sandbox: up to
	// four connections between relay and node with six goroutines each, those of
	// this test's clients, and files of the bus that it opens when it writes them.
	moreGoroutines, moreDescriptors = 60, 20
)

// After hundreds of sandboxes `sirocco up` uses what it used before the first.
func TestUpIsFlat(t *testing.T) {
	up, err := platform.StartUp("flat")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := up.Stop(); err != nil {
			t.Error(err)
		}
	})
	c, err := up.Client("")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fillPool(t, c)
	before, err := up.Usage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("before the first: %v", before)
	total := int(number(t, envCycles, 100))
	for done := 0; done < total; done += 100 {
		cycles(t, c, min(100, total-done))
		use, err := up.Usage(t.Context())
		t.Logf("after %d: %v, %v", min(done+100, total), use, err)
	}
	awaitPool(t, c)
	began := time.Now()
	var after platform.Usage
	err = platform.Poll(kept+15*time.Second, func() string {
		if after, err = up.Usage(t.Context()); err != nil {
			return err.Error()
		}
		if after.Goroutines > before.Goroutines+moreGoroutines || len(after.Descriptors) > len(before.Descriptors)+moreDescriptors {
			return fmt.Sprintf("%v, open: %s", after, strings.Join(after.Descriptors, " "))
		}
		return ""
	})
	t.Logf("%v later: %v", time.Since(began).Round(time.Second), after)
	if err != nil {
		t.Error(err)
	}
}

// warm is the size of the pool: always the same, whatever the demand, so that what
// it holds is the same before and after.
const warm = 4

// fillPool declares a pool for the sandboxes of cycles and waits until it is full.
func fillPool(t *testing.T, c *sirocco.Client) {
	t.Helper()
	if _, err := c.Pools().Set(t.Context(), connect.NewRequest(&siroccov1.SetPoolRequest{
		Name: "flat", Template: &siroccov1.Template{}, Warm: warm, Max: warm,
	})); err != nil {
		t.Fatal(err)
	}
	awaitPool(t, c)
}

func awaitPool(t *testing.T, c *sirocco.Client) {
	t.Helper()
	platform.Eventually(t, time.Minute, func() string {
		list, err := c.Pools().List(t.Context(), connect.NewRequest(&siroccov1.ListPoolsRequest{}))
		if err != nil {
			return err.Error()
		}
		for _, p := range list.Msg.GetPools() {
			if len(p.GetNodes()) == 1 && p.GetNodes()[0].GetReady() == warm {
				return ""
			}
		}
		return "the pool is not full"
	})
}

// cycles creates, uses and ends so many sandboxes, four at a time.
func cycles(t *testing.T, c *sirocco.Client, n int) {
	t.Helper()
	turns := make(chan struct{}, n)
	for range n {
		turns <- struct{}{}
	}
	close(turns)
	var users sync.WaitGroup
	for range 4 {
		users.Go(func() {
			for range turns {
				if err := cycle(t, c); err != nil {
					t.Error(err)
				}
			}
		})
	}
	users.Wait()
}

func cycle(t *testing.T, c *sirocco.Client) error {
	s, err := c.Create(t.Context(), &siroccov1.CreateSandboxRequest{MaxLifetime: durationpb.New(5 * time.Minute)})
	if err != nil {
		return err
	}
	var out bytes.Buffer
	end, err := s.Run(t.Context(), sirocco.Command{Args: []string{"echo", "hi"}, Stdout: &out})
	if err != nil || end.GetExitCode() != 0 || out.String() != "hi\n" {
		return fmt.Errorf("%s: %v, %w, %q", s.ID, end, err, out.String())
	}
	_, err = s.Terminate(t.Context(), "")
	return err
}
