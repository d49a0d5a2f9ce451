// Package cloudflaretest is Cloudflare's API for tests: a server on loopback that
// holds each request strictly to what is documented of the few endpoints that are
// used here, and can fail, stall, cut connections and limit rates on request.
//
// A request that Cloudflare would not understand (path, method, query, header,
// field, kind or range of a value) fails the test, and is refused as Cloudflare
// would. What is held to, by the titles of Cloudflare's documents:
//
//   - API reference: "Patch Load Balancer", "Load Balancer Details", "Patch Pool",
//     "Pool Details", "List DNS Records", "Batch DNS Records".
//   - Load Balancing: "Traffic steering" (weights of 0 to 1 in steps of 0.01; a
//     default weight in steps of 0.1), "Standard steering policies".
//   - DNS: "Batch record changes" (order, all or nothing, 200 records at most),
//     "Time to Live (TTL)" (1, or 60 to 86400), "Record attributes" (comments of
//     100 characters on the smallest plan).
//   - Fundamentals: "Rate limits" (the headers Ratelimit, Ratelimit-Policy and
//     Retry-After), "API: responses" (the envelope).
package cloudflaretest

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// What the server knows of.
const (
	Token        = "Sn3lZJTBX6kkg7OdcBUAxOO963GEIyGQqnFTOFYY" //nolint:gosec // the example of the documents
	Zone         = "023e105f4ecef8ad9ca31a8372d0c353"
	ZoneName     = "example.com"
	Account      = "01a7362d577a6c3019a474fd6f485823"
	LoadBalancer = "699d98642c564d2e855e9661899b7252"
	// PoolEU, PoolUS and PoolAP are the pools of the load balancer.
	PoolEU = "17b5962d775c646f3f9725cbc7a53df4"
	PoolUS = "9290f38c5d07c2e2f4df57b1f61d4196"
	PoolAP = "00920f38ce07c2e2f4df50b1f61d4194"
)

// Request is one that came.
type Request struct {
	Method, Path string
	Body         string
	// At is when it came, Status what was answered; 0 for nothing.
	At     time.Time
	Status int
}

// Write says whether the request could have changed something.
func (r Request) Write() bool { return r.Method != http.MethodGet }

// Fault is what is done instead of answering. The zero value matches everything
// and answers as usual.
type Fault struct {
	// Method and Path that are meant; Path is a part of it. Empty for any.
	Method, Path string
	// Times it is done; 0 means once, below zero for ever.
	Times int
	// Applied: what was asked for is carried out before.
	Applied bool
	// Status, Code and Message are answered as Cloudflare's error.
	Status, Code int
	Message      string
	// RetryAfter is answered with it, in seconds.
	RetryAfter int
	// Page is answered instead of JSON, as by a proxy on the way.
	Page string
	// Stall answers nothing until the client has gone or the test ends.
	Stall bool
	// Cut closes the connection without an answer.
	Cut bool
}

func (f *Fault) matches(r *http.Request) bool {
	return (f.Method == "" || f.Method == r.Method) && strings.Contains(r.URL.Path, f.Path)
}

// Server is the API of one account with one zone, one load balancer and its pools.
type Server struct {
	t    testing.TB
	http *httptest.Server
	over chan struct{}

	mu       sync.Mutex
	changed  chan struct{}
	lb       balancer
	pools    map[string]bool
	records  []Record
	nextID   int
	faults   []*Fault
	requests []*Request
	limit    string
	token    string
}

// New starts a server; it is gone when the test ends. The load balancer steers by
// failover, as Cloudflare's do at first, and all pools are on.
func New(t testing.TB) *Server {
	t.Helper()
	s := &Server{
		t: t, over: make(chan struct{}), changed: make(chan struct{}), token: Token,
		lb:    balancer{policy: "off", defaultWeight: 1, weights: map[string]float64{}},
		pools: map[string]bool{PoolEU: true, PoolUS: true, PoolAP: true},
		limit: `"default";r=1199;t=300`,
	}
	s.http = httptest.NewServer(http.HandlerFunc(s.serve))
	t.Cleanup(func() {
		close(s.over)
		s.http.Close()
	})
	return s
}

// URL is what the base of Cloudflare's API is to clients.
func (s *Server) URL() string { return s.http.URL + "/client/v4/" }

// Fail does f to the next requests that it matches. Of several the first that
// matches is done.
func (s *Server) Fail(f Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.Times == 0 {
		f.Times = 1
	}
	s.faults = append(s.faults, &f)
}

// Heal forgets all faults; what is stalled stays so.
func (s *Server) Heal() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = nil
}

// SetToken changes which token is good.
func (s *Server) SetToken(token string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.token = token
}

// SetLimit sets the header Ratelimit of all answers.
func (s *Server) SetLimit(header string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.limit = header
}

// Requests returns what came until now.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]Request, len(s.requests))
	for i, r := range s.requests {
		all[i] = *r
	}
	return all
}

// Writes returns what came until now and could have changed something.
func (s *Server) Writes() []Request {
	return slices.DeleteFunc(s.Requests(), func(r Request) bool { return !r.Write() })
}

// Weights returns the weights of the load balancer's pools; nil while it does not
// steer by weight.
func (s *Server) Weights() map[string]float64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lb.policy != "random" {
		return nil
	}
	return maps.Clone(s.lb.weights)
}

// SetWeights changes the weights, as somebody at the dashboard would.
func (s *Server) SetWeights(weights map[string]float64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lb.weights = maps.Clone(weights)
	s.tell()
}

// Enabled says whether a pool is on.
func (s *Server) Enabled(pool string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pools[pool]
}

// Wait waits until cond holds, looking whenever a request came or was answered,
// and fails the test after a minute.
func (s *Server) Wait(what string, cond func() bool) {
	s.t.Helper()
	limit := time.After(time.Minute)
	for {
		s.mu.Lock()
		changed := s.changed
		s.mu.Unlock()
		if cond() {
			return
		}
		select {
		case <-changed:
		case <-limit:
			s.t.Fatalf("waited in vain for %s; requests: %+v", what, s.Requests())
		}
	}
}

// tell wakes those who wait. The caller holds the lock.
func (s *Server) tell() {
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil { // the client has gone
		return
	}
	s.mu.Lock()
	seen := &Request{Method: r.Method, Path: r.URL.Path, Body: string(body), At: time.Now()}
	s.requests = append(s.requests, seen)
	s.tell()
	fault := s.fault(r)
	status, answer := 0, map[string]any{}
	if fault == nil || fault.Applied {
		status, answer = s.handle(r, body)
	}
	w.Header().Set("Ratelimit", s.limit)
	w.Header().Set("Ratelimit-Policy", `"default";q=1200;w=300`)
	s.mu.Unlock()
	if fault != nil {
		status, answer = s.fail(w, r, fault)
	}
	if status != 0 {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(answer)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	seen.Status = status
	s.tell()
}

// fault returns what is done to a request; nil for nothing. The caller holds the
// lock.
func (s *Server) fault(r *http.Request) *Fault {
	for i, f := range s.faults {
		if !f.matches(r) {
			continue
		}
		if f.Times > 0 {
			if f.Times--; f.Times == 0 {
				s.faults = slices.Delete(s.faults, i, i+1)
			}
		}
		return f
	}
	return nil
}

// fail does what a fault says. It returns 0 if that was all.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, f *Fault) (int, map[string]any) {
	switch {
	case f.Stall:
		select {
		case <-r.Context().Done():
		case <-s.over:
		}
		return 0, nil
	case f.Cut:
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			s.t.Errorf("cut a connection: %v", err)
			return 0, nil
		}
		_ = conn.Close()
		return 0, nil
	case f.Page != "":
		w.Header().Set("Content-Type", "text/html")
		w.WriteHeader(f.Status)
		_, _ = io.WriteString(w, f.Page)
		return 0, nil
	}
	if f.RetryAfter > 0 {
		w.Header().Set("Retry-After", fmt.Sprint(f.RetryAfter))
	}
	return refusal(f.Status, f.Code, f.Message)
}

// success and refusal are Cloudflare's envelope.
func success(result any) (int, map[string]any) {
	return http.StatusOK, map[string]any{"success": true, "errors": []any{}, "messages": []any{}, "result": result}
}

func refusal(status, code int, message string) (int, map[string]any) {
	return status, map[string]any{
		"success": false, "messages": []any{}, "result": nil,
		"errors": []any{map[string]any{"code": code, "message": message}},
	}
}

// wrong fails the test for a request that no client may send.
func (s *Server) wrong(r *http.Request, status, code int, format string, args ...any) (int, map[string]any) {
	message := fmt.Sprintf(format, args...)
	s.t.Errorf("Cloudflare does not understand %s %s: %s", r.Method, r.URL, message)
	return refusal(status, code, message)
}

// handle answers a request. The caller holds the lock.
func (s *Server) handle(r *http.Request, body []byte) (int, map[string]any) {
	if status, answer := s.checkHeaders(r, body); status != 0 {
		return status, answer
	}
	path, ok := strings.CutPrefix(r.URL.Path, "/client/v4/")
	if !ok {
		return s.wrong(r, http.StatusNotFound, 7003, "could not route to %s", r.URL.Path)
	}
	pool, isPool := strings.CutPrefix(path, "accounts/"+Account+"/load_balancers/pools/")
	switch {
	case path == "zones/"+Zone+"/load_balancers/"+LoadBalancer:
		return s.serveBalancer(r, body)
	case isPool && !strings.Contains(pool, "/"):
		return s.servePool(r, pool, body)
	case path == "zones/"+Zone+"/dns_records":
		return s.listRecords(r)
	case path == "zones/"+Zone+"/dns_records/batch":
		return s.batchRecords(r, body)
	}
	return s.wrong(r, http.StatusNotFound, 7003, "could not route to %s, perhaps your object identifier is invalid?", r.URL.Path)
}

func (s *Server) checkHeaders(r *http.Request, body []byte) (int, map[string]any) {
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	switch {
	case !ok || len(r.Header.Values("Authorization")) != 1:
		return s.wrong(r, http.StatusBadRequest, 6003, "Invalid request headers: no token in %q", r.Header.Values("Authorization"))
	case r.Header.Get("X-Auth-Key") != "" || r.Header.Get("X-Auth-Email") != "":
		return s.wrong(r, http.StatusBadRequest, 6003, "Invalid request headers: a key beside a token")
	case r.Header.Get("User-Agent") == "":
		return s.wrong(r, http.StatusBadRequest, 6003, "Invalid request headers: no User-Agent")
	case r.Method == http.MethodGet && len(body) > 0:
		return s.wrong(r, http.StatusBadRequest, 6007, "a GET with a body: %s", body)
	case r.Method != http.MethodGet && r.Header.Get("Content-Type") != "application/json":
		return s.wrong(r, http.StatusUnsupportedMediaType, 6003, "Content-Type %q", r.Header.Get("Content-Type"))
	case token != s.token:
		return refusal(http.StatusForbidden, 10000, "Authentication error")
	}
	return 0, nil
}
