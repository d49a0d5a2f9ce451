package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/sirocco-run/sirocco/tests/platform"
	"time"
)

// plainClient speaks plain HTTP with the api.
var plainClient = &http.Client{Timeout: 2 * time.Minute}

// rest makes a request to the api. The caller closes the body.
func rest(t *testing.T, method, path, body, key string) *http.Response {
	t.Helper()
	return restAt(t, plainClient, method, up.API+path, body, key)
}

func restAt(t *testing.T, c *http.Client, method, address, body, key string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, address, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	if key != "" {
		req.Header.Set("Authorization", "Bearer "+key)
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

// object makes a request and decodes the answer.
func object(t *testing.T, c *http.Client, method, address, body, key string) (int, map[string]any) {
	t.Helper()
	resp := restAt(t, c, method, address, body, key)
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]any{}
	if err := json.Unmarshal(raw, &out); err != nil {
		t.Fatalf("%s %s: %d %q", method, address, resp.StatusCode, raw)
	}
	return resp.StatusCode, out
}

// at finds a value in decoded JSON.
func at(v any, path ...string) any {
	for _, p := range path {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = m[p]
	}
	return v
}

// detail returns a field of an error's detail.
func detail(got map[string]any, field string) string {
	details, _ := got["details"].([]any)
	if len(details) == 0 {
		return ""
	}
	text, _ := at(details[0], field).(string)
	return text
}

// Everything that a client without an SDK needs.
func TestRESTFromCreateToEnd(t *testing.T) {
	t.Parallel()
	plain := plainClient
	status, made := object(t, plain, "POST", up.API+"/v1/sandboxes", `{"command":["sleep","1000"],"name":"rest-one","tags":{"kind":"rest"},"ports":[{"port":8000}]}`, up.Key)
	id, _ := at(made, "sandbox", "id").(string)
	if status != 200 || id == "" || at(made, "sandbox", "state") != "STATE_RUNNING" {
		t.Fatalf("create: %d %v", status, made)
	}
	t.Cleanup(func() { up.CLI(context.Background(), nil, "rm", id) })
	for _, name := range []string{id, "rest-one"} {
		if status, got := object(t, plain, "GET", up.API+"/v1/sandboxes/"+name, "", up.Key); status != 200 || got["id"] != id {
			t.Errorf("get %s: %d %v", name, status, got)
		}
	}
	if status, got := object(t, plain, "GET", up.API+"/v1/sandboxes?tags=kind%3Drest&states=STATE_RUNNING", "", up.Key); status != 200 || !strings.Contains(fmt.Sprint(got), id) {
		t.Errorf("list: %d %v", status, got)
	}
	if status, got := object(t, plain, "POST", up.API+"/v1/sandboxes", `{"name":"rest-one"}`, up.Key); status != 409 || detail(got, "code") != "already_exists" {
		t.Errorf("the name twice: %d %v", status, got)
	}
	if status, got := object(t, plain, "POST", up.API+"/v1/sandboxes/"+id+"/extend", `{"by":"600s"}`, up.Key); status != 200 {
		t.Errorf("extend: %d %v", status, got)
	}
	if status, got := object(t, plain, "PUT", up.API+"/v1/sandboxes/"+id+"/tags", `{"tags":{"a":"b"}}`, up.Key); status != 200 || at(got, "spec", "tags", "a") != "b" {
		t.Errorf("tags: %d %v", status, got)
	}
	if status, got := object(t, plain, "POST", up.API+"/v1/sandboxes/"+id+"/tunnels", `{"port":{"port":9000}}`, up.Key); status != 200 || got["url"] == nil {
		t.Errorf("open a tunnel: %d %v", status, got)
	}
	if status, got := object(t, plain, "DELETE", up.API+"/v1/sandboxes/"+id+"/tunnels/9000", "", up.Key); status != 200 {
		t.Errorf("close it: %d %v", status, got)
	}

	// The data services, with the token, at the relay.
	data, token := at(made, "token", "data_url").(string), at(made, "token", "token").(string)
	c := httpClient(t)
	at := data + "/v1/sandboxes/" + id
	if status, got := object(t, c, "POST", at+"/execs", `{"exec_id":"one","command":["sh","-c","cat; echo done; exit 3"],"stdin":true}`, token); status != 200 {
		t.Fatalf("exec: %d %v", status, got)
	}
	if status, got := object(t, c, "POST", at+"/execs/one/stdin", `{"data":"aGVsbG8K","close":true}`, token); status != 200 || got["offset"] != "6" {
		t.Errorf("stdin: %d %v", status, got)
	}
	if status, got := object(t, c, "GET", at+"/execs/one?timeout=10s", "", token); status != 200 || !strings.Contains(fmt.Sprint(got["end"]), "exit_code:3") {
		t.Errorf("wait: %d %v", status, got)
	}
	for query, want := range map[string]string{"": "hello\ndone\n", "?offset=6": "done\n", "?stream=OUTPUT_STREAM_STDERR": ""} {
		if status, got := raw(t, c, "GET", at+"/execs/one/output"+query, "", token); status != 200 || got != want {
			t.Errorf("output%s: %d %q", query, status, got)
		}
	}
	if status, got := raw(t, c, "PUT", at+"/files/content?path=/tmp/x&mode=384", "the content", token); status != 200 {
		t.Errorf("write: %d %s", status, got)
	}
	if status, got := raw(t, c, "GET", at+"/files/content?path=/tmp/x", "", token); status != 200 || got != "the content" {
		t.Errorf("read: %d %q", status, got)
	}
	if status, got := object(t, c, "GET", at+"/files?path=/tmp", "", token); status != 200 || !strings.Contains(fmt.Sprint(got), "/tmp/x") {
		t.Errorf("list: %d %v", status, got)
	}
	if status, got := object(t, c, "DELETE", at+"/files?path=/tmp/x", "", token); status != 200 {
		t.Errorf("remove: %d %v", status, got)
	}
	if status, got := object(t, c, "GET", at+"/files/stat?path=/tmp/x", "", token); status != 404 {
		t.Errorf("stat: %d %v", status, got)
	}
	if status, got := object(t, plain, "DELETE", up.API+"/v1/sandboxes/"+id+"?reason=over", "", up.Key); status != 200 || got["state"] != "STATE_STOPPED" {
		t.Errorf("terminate: %d %v", status, got)
	}
	if status, got := object(t, plain, "GET", up.API+"/openapi.json", "", ""); status != 200 || got["paths"] == nil {
		t.Errorf("openapi: %d", status)
	}
}

func raw(t *testing.T, c *http.Client, method, address, body, key string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, address, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+key)
	if body != "" {
		req.Header.Set("Content-Type", "application/octet-stream")
	}
	status, got, _ := fetch(t, c, req)
	return status, got
}

// Bad input of any kind gets a typed error, and the platform goes on.
func TestBadInput(t *testing.T) {
	t.Parallel()
	huge := strings.Repeat("x", 2<<20)
	for body, field := range map[string]string{
		`{"resources":{"memory_limit_bytes":-5}}`: "resources.memory_limit_bytes", `{"env":{"A":"` + huge + `"}}`: "",
		`{"name":"a.b"}`: "name", `{"workdir":"/a/../b"}`: "workdir", "{\"name\":\"\xff\"}": "", `{"ports":[{"port":70000}]}`: "ports[0].port",
		`{"colour":"red"}`: "colour", `{"command":["x"`: "", `{"max_lifetime":"90000s"}`: "max_lifetime", `{"image":"../../etc"}`: "image",
		`{"network":{"mode":"NETWORK_MODE_ALLOWED","allowed_cidrs":["10.0.0.0/8/8"]}}`: "network.allowed_cidrs[0]", `{"env":{"A=B":"x"}}`: "env",
	} {
		status, got := object(t, plainClient, "POST", up.API+"/v1/sandboxes", body, up.Key)
		if status != 400 || detail(got, "code") != "invalid_argument" || field != "" && detail(got, "field") != field {
			t.Errorf("%.80s: %d %.300v", body, status, got)
		}
	}
	for _, key := range []string{"", "sk_wrong", up.Key + "x"} {
		if status, got := object(t, plainClient, "GET", up.API+"/v1/sandboxes", "", key); status != 401 || detail(got, "code") != "unauthenticated" {
			t.Errorf("with the key %q: %d %v", key, status, got)
		}
	}
	s := create(t, nil)
	c := httpClient(t)
	data := dataURL(t, s)
	for _, token := range []string{"", "x.y.z", "sk_wrong", up.Key} {
		if status, got := object(t, c, "GET", data+"/v1/sandboxes/"+s.ID+"/execs", "", token); status != 401 {
			t.Errorf("data with %q: %d %v", token, status, got)
		}
	}
}

// A request that breaks off in the middle makes nothing.
func TestTruncatedRequest(t *testing.T) {
	t.Parallel()
	req, err := http.NewRequest("POST", up.API+"/v1/sandboxes", io.MultiReader(bytes.NewReader([]byte(`{"name":"half-made"`)), errReader{strings.NewReader("")}))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+up.Key)
	req.Header.Set("Content-Type", "application/json")
	req.ContentLength = 100
	if resp, err := plainClient.Do(req); err == nil {
		_ = resp.Body.Close()
		t.Errorf("got %v", resp.Status)
	}
	platform.Eventually(t, 5*time.Second, func() string {
		if status, _ := object(t, plainClient, "GET", up.API+"/v1/sandboxes/half-made", "", up.Key); status != 404 {
			return fmt.Sprint(status)
		}
		return ""
	})
}
