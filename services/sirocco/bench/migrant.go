package bench

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	sirocco "github.com/sirocco-run/sirocco/sdk/go"
	"google.golang.org/protobuf/types/known/durationpb"
)

const (
	// requestEvery is how long after an answer a client asks again. Each freshEvery-th
	// request opens a connection of its own, each slowEvery-th takes slowTime, so that
	// some are under way when a move begins.
	requestEvery          = 25 * time.Millisecond
	freshEvery, slowEvery = 10, 20
	slowTime              = 300 * time.Millisecond
	// requestTimeout bounds each.
	requestTimeout = time.Minute
	// execEvery is how long after a command another one is run.
	execEvery = 2 * time.Second
	// witnessPath is where the server is put in a sandbox.
	witnessPath = "/tmp/witness"
	// witnessMargin is what a sandbox needs beside the memory that its server holds.
	witnessMargin = 192 << 20
)

// ticker is a process whose output is followed through all moves: the numbers from 1.
const ticker = "i=0; while :; do i=$((i+1)); echo $i; sleep 1; done"

// migrant is a sandbox that moves.
type migrant struct {
	kind    int
	sandbox *sirocco.Sandbox
	// at is the index of the region where it is.
	at int
	// mark is in a file of its, nonce is its server's, at url; count is what the server
	// answered last, unknown after a request that failed.
	mark, nonce, url string
	count            int64
	unknown          bool
	// kept keeps its connection, fresh does not.
	kept, fresh *http.Client

	requests Samples
	mu       sync.Mutex
	moves    []moved
}

// moved is a move that was made, between two times from the start.
type moved struct {
	from, to time.Duration
	pause    time.Duration
	bytes    int64
}

func (one *migrant) moved(from, to time.Duration, move *siroccov1.Move) {
	one.mu.Lock()
	defer one.mu.Unlock()
	one.moves = append(one.moves, moved{from, to, move.GetPause().AsDuration(), move.GetBytes()})
}

// settle makes a sandbox through a region. With an error it may have to be ended too.
func (m *migrateRun) settle(ctx context.Context, k, home int) (*migrant, error) {
	kind := m.kinds[k]
	req := small(&siroccov1.CreateSandboxRequest{
		IdempotencyKey: rand.Text(), MaxLifetime: durationpb.New(lifetime),
		Resources: &siroccov1.Resources{MemoryLimitBytes: int64(kind.mb)<<20 + witnessMargin},
	})
	if kind.serves {
		req.Ports = []*siroccov1.Port{{Port: serverPort}}
	}
	s, err := m.regions.Clients[home].Create(ctx, req)
	if err != nil {
		return nil, err
	}
	one := &migrant{kind: k, sandbox: s, mark: rand.Text(), kept: m.regions.Tunnels.Client(1), fresh: m.regions.Tunnels.Client(1)}
	one.fresh.Transport.(*http.Transport).DisableKeepAlives = true
	if err := endOf(s.Record); err != nil {
		return one, err
	}
	for i, name := range m.regions.Names {
		if s.Record.GetPlacement().GetRegion() == name {
			one.at = i
		}
	}
	if _, err := s.WriteFile(ctx, "/tmp/mark", strings.NewReader(one.mark), sirocco.WriteOptions{}); err != nil {
		return one, err
	}
	if _, err := s.Start(ctx, sirocco.Command{ID: "ticker", Args: []string{"sh", "-c", ticker}}); err != nil {
		return one, err
	}
	if !kind.serves {
		return one, nil
	}
	err = one.serve(ctx, filepath.Join(filepath.Dir(m.cfg.Programs.Supervisor), "witness"), kind.mb)
	return one, err
}

// serve puts the server into the sandbox and starts it.
func (one *migrant) serve(ctx context.Context, program string, mb int) (err error) {
	if one.url, err = tunnelOf(one.sandbox.Record); err != nil {
		return err
	}
	file, err := os.Open(program)
	if err != nil {
		return fmt.Errorf("find the server: %w", err)
	}
	defer func() { _ = file.Close() }()
	if _, err := one.sandbox.WriteFile(ctx, witnessPath, file, sirocco.WriteOptions{Mode: 0o755}); err != nil {
		return fmt.Errorf("put the server into the sandbox: %w", err)
	}
	if _, err := one.sandbox.Start(ctx, sirocco.Command{ID: "witness", Args: []string{witnessPath, "-mb", strconv.Itoa(mb), strconv.Itoa(serverPort)}}); err != nil {
		return fmt.Errorf("start the server: %w", err)
	}
	if err := reachable(ctx, one.kept, one.url+"/check"); err != nil {
		return err
	}
	var answer strings.Builder
	if err := get(ctx, one.kept, one.url+"/check", &answer); err != nil {
		return err
	}
	one.nonce, _, _ = strings.Cut(answer.String(), " ")
	return nil
}

// use uses the sandbox as clients do until ctx ends.
func (m *migrateRun) use(ctx context.Context, one *migrant) {
	defer one.kept.CloseIdleConnections()
	var uses sync.WaitGroup
	fail := func(what string, err error) {
		if err != nil && ctx.Err() == nil {
			m.failures.Add(fmt.Errorf("%s (%s): %s: %w", one.sandbox.ID, m.kinds[one.kind].name, what, err))
		}
	}
	uses.Go(func() { fail("follow an output", one.follow(ctx)) })
	uses.Go(func() {
		for until(ctx, time.Now().Add(execEvery)) {
			fail("run a command", one.exec(ctx))
		}
	})
	if m.kinds[one.kind].serves {
		uses.Go(func() {
			for i := 1; until(ctx, time.Now().Add(requestEvery)); i++ {
				at := m.since()
				took, err := one.request(ctx, i)
				if err == nil {
					one.requests.Add(at, took)
				}
				fail("a request", err)
			}
		})
	}
	uses.Wait()
}

// request makes a request that is made again by nobody, and checks that it was carried
// out once, by the process that was there all the time.
func (one *migrant) request(ctx context.Context, i int) (took time.Duration, err error) {
	rctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	defer func() { one.unknown = err != nil }()
	url, slow := one.url+"/next", time.Duration(0)
	if i%slowEvery == 0 {
		slow = slowTime
		url += "?wait=" + slow.String()
	}
	client := one.kept
	if i%freshEvery == 0 {
		client = one.fresh
	}
	req, err := http.NewRequestWithContext(rctx, http.MethodPost, url, nil)
	if err != nil {
		return 0, err
	}
	began := time.Now()
	resp, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	took = time.Since(began) - slow
	if err != nil {
		return 0, err
	}
	if resp.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("%s: %s", resp.Status, bytes.TrimSpace(body))
	}
	var nonce string
	var count int64
	if _, err := fmt.Sscan(string(body), &nonce, &count); err != nil {
		return 0, fmt.Errorf("answered %q", body)
	}
	before := one.count
	one.count = count
	switch {
	case nonce != one.nonce:
		return 0, fmt.Errorf("another process answered: %s, not %s", nonce, one.nonce)
	case !one.unknown && count != before+1, count <= before:
		return 0, fmt.Errorf("the server has counted %d after %d", count, before)
	}
	return took, nil
}

// check has the server check all of its memory.
func (one *migrant) check(ctx context.Context) error {
	var answer strings.Builder
	if err := get(ctx, one.fresh, one.url+"/check", &answer); err != nil {
		return err
	}
	var nonce string
	var count int64
	if _, err := fmt.Sscan(answer.String(), &nonce, &count); err != nil || nonce != one.nonce || count != one.count && !one.unknown {
		return fmt.Errorf("the server answered %q; it was %s and had counted %d", answer.String(), one.nonce, one.count)
	}
	return nil
}

// exec runs a command that takes a moment, and checks what it prints.
func (one *migrant) exec(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	var out, errs bytes.Buffer
	end, err := one.sandbox.Run(ctx, sirocco.Command{Args: []string{"sh", "-c", "cat /tmp/mark; sleep 0.1; echo; echo done"}, Stdout: &out, Stderr: &errs})
	if err != nil {
		return err
	}
	if want := one.mark + "\ndone\n"; end.GetExitCode() != 0 || out.String() != want {
		return fmt.Errorf("it exited with %d and printed %q, %q; want %q", end.GetExitCode(), out.String(), errs.String(), want)
	}
	return nil
}

// follow follows the ticker's output, of which nothing may be missing or come twice.
func (one *migrant) follow(ctx context.Context) error {
	_, err := one.sandbox.Process("ticker").Attach(ctx, &numbers{}, io.Discard)
	if err == nil {
		return errors.New("the process has ended")
	}
	return err
}

// numbers takes the numbers from 1, a line each, and nothing else.
type numbers struct {
	last int
	rest []byte
}

// Write implements io.Writer.
func (n *numbers) Write(b []byte) (int, error) {
	n.rest = append(n.rest, b...)
	for {
		line, rest, ok := bytes.Cut(n.rest, []byte("\n"))
		if !ok {
			return len(b), nil
		}
		if got, err := strconv.Atoi(string(line)); err != nil || got != n.last+1 {
			return 0, fmt.Errorf("%q follows %d", line, n.last)
		}
		n.last++
		n.rest = rest
	}
}
