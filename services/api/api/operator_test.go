package api_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/klauspost/compress/zstd"
	"github.com/sirocco-run/sirocco/pkg/apikey"
	"github.com/sirocco-run/sirocco/pkg/bustest"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/pki"
	"github.com/sirocco-run/sirocco/pkg/program"
	"github.com/sirocco-run/sirocco/pkg/subject"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/sirocco-run/sirocco/proto/gen/sirocco/v1/siroccov1connect"
	"github.com/sirocco-run/sirocco/services/api/api"
	"google.golang.org/genproto/googleapis/api/httpbody"
	"google.golang.org/protobuf/proto"
)

func TestNodes(t *testing.T) {
	r := start(t, api.Config{})
	ctx := t.Context()
	nodes, err := r.js.KeyValue(ctx, subject.BucketNodes)
	if err != nil {
		t.Fatal(err)
	}
	orders, err := r.js.KeyValue(ctx, subject.BucketNodeOrders)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []*siroccov1.Node{{Name: "n1", Region: "eu", Live: 3}, {Name: "n2", Region: "us"}} {
		raw, err := proto.Marshal(n)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := nodes.Put(ctx, subject.NodeKey(n.GetRegion(), n.GetName()), raw); err != nil {
			t.Fatal(err)
		}
	}
	all := r.transports("ops", r.key("ops", apikey.RoleOperator))
	list := func(tr transport, want func(*siroccov1.ListNodesResponse) bool) {
		t.Helper()
		end := time.Now().Add(wait)
		for {
			resp := &siroccov1.ListNodesResponse{}
			if err := tr.call(ctx, "NodeService/List", &siroccov1.ListNodesRequest{}, resp); err != nil {
				t.Fatalf("%s: %v", tr.name, err)
			}
			if want(resp) {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("%s: %v", tr.name, resp)
			}
		}
	}
	for _, tr := range all {
		list(tr, func(l *siroccov1.ListNodesResponse) bool {
			return len(l.GetNodes()) == 2 && l.GetNodes()[0].GetLive() == 3 && !l.GetNodes()[0].GetCordoned()
		})
		for _, step := range []struct {
			procedure          string
			req                proto.Message
			cordoned, draining bool
		}{
			{"NodeService/Cordon", &siroccov1.CordonNodeRequest{Name: "n1"}, true, false},
			{"NodeService/Drain", &siroccov1.DrainNodeRequest{Name: "n1"}, true, true},
			{"NodeService/Cordon", &siroccov1.CordonNodeRequest{Name: "n1", Lift: true}, false, false},
			{"NodeService/Drain", &siroccov1.DrainNodeRequest{Name: "n1"}, true, true},
			{"NodeService/Drain", &siroccov1.DrainNodeRequest{Name: "n1", Cancel: true}, false, false},
		} {
			got := &siroccov1.Node{}
			if err := tr.call(ctx, step.procedure, step.req, got); err != nil {
				t.Fatalf("%s: %s: %v", tr.name, step.procedure, err)
			}
			if got.GetCordoned() != step.cordoned || got.GetDraining() != step.draining || got.GetLive() != 3 {
				t.Errorf("%s: %s: %v", tr.name, step.procedure, got)
			}
			entry, err := orders.Get(ctx, subject.NodeKey("eu", "n1"))
			if err != nil {
				t.Fatal(err)
			}
			// The notice is the evacuator's to give, if moves do not help.
			want := &siroccov1.Node{Name: "n1", Region: "eu", Cordoned: step.cordoned}
			order := &siroccov1.Node{}
			if err := proto.Unmarshal(entry.Value(), order); err != nil || !proto.Equal(order, want) {
				t.Errorf("%s: the order: %v, %v; want %v", tr.name, order, err, want)
			}
			list(tr, func(l *siroccov1.ListNodesResponse) bool { return l.GetNodes()[0].GetDraining() == step.draining })
		}
	}
}

// layout is a tar of an OCI layout, as far as its names go.
func layout(t *testing.T, names ...string) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, name := range names {
		body := bytes.Repeat([]byte(name), 1000)
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(body))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestImages(t *testing.T) {
	r := start(t, api.Config{MaxImageBytes: 1 << 20})
	ctx, cancel := context.WithTimeout(t.Context(), 2*wait)
	defer cancel()
	operator := r.key("ops", apikey.RoleOperator)
	plain := layout(t, "oci-layout", "index.json", "blobs/sha256/aa")
	var packed bytes.Buffer
	gz := gzip.NewWriter(&packed)
	_, _ = gz.Write(plain)
	_ = gz.Close()
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	squeezed := z.EncodeAll(plain, nil)

	rest := func(name string, body []byte) (*siroccov1.Image, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.url+"/v1/images/"+name, bytes.NewReader(body))
		if err != nil {
			return nil, err
		}
		req.Header.Set("Authorization", "Bearer "+operator)
		req.Header.Set("Content-Type", "application/x-tar")
		img := &siroccov1.Image{}
		return img, do(req, img)
	}
	h2c := &http.Transport{Protocols: &http.Protocols{}}
	h2c.Protocols.SetUnencryptedHTTP2(true)
	defer h2c.CloseIdleConnections()
	client := siroccov1connect.NewImageServiceClient(&http.Client{Transport: h2c}, r.url, connect.WithGRPC())
	rpc := func(name string, body []byte) (*siroccov1.Image, error) {
		stream := client.Import(ctx)
		stream.RequestHeader().Set("Authorization", "Bearer "+operator)
		for first := true; first || len(body) > 0; first = false {
			n := min(len(body), 700)
			msg := &siroccov1.ImportImageRequest{Body: &httpbody.HttpBody{Data: body[:n]}}
			if first {
				msg.Name = name
			}
			if stream.Send(msg) != nil {
				break // the answer says why
			}
			body = body[n:]
		}
		resp, err := stream.CloseAndReceive()
		if err != nil {
			return nil, fault.FromConnect(err)
		}
		return resp.Msg, nil
	}
	for how, put := range map[string]func(string, []byte) (*siroccov1.Image, error){"rest": rest, "rpc": rpc} {
		for name, body := range map[string][]byte{"plain": plain, "gzip": packed.Bytes(), "zstd:1.2": squeezed, "saved": layout(t, "manifest.json", "layer.tar")} {
			img, err := put(how+"-"+name, body)
			if err != nil {
				t.Errorf("%s: import %s: %v", how, name, err)
				continue
			}
			sum := sha256.Sum256(body)
			if img.GetName() != how+"-"+name || img.GetDigest() != "sha256:"+hex.EncodeToString(sum[:]) || img.GetSizeBytes() != int64(len(body)) || img.GetSource() != "import" {
				t.Errorf("%s: %v", how, img)
			}
			store, err := r.js.ObjectStore(ctx, subject.BucketImages)
			if err != nil {
				t.Fatal(err)
			}
			if stored, err := store.GetBytes(ctx, how+"-"+name); err != nil || !bytes.Equal(stored, body) {
				t.Errorf("%s: %d bytes stored, %v; want %d", how, len(stored), err, len(body))
			}
		}
		for name, body := range map[string][]byte{
			"cut short": plain[:2000], "cut in the gzip": packed.Bytes()[:packed.Len()-20], "no image": layout(t, "hello"), "half a layout": layout(t, "oci-layout"),
			"rubbish": []byte(strings.Repeat("rubbish", 1000)), "too large": append(bytes.Clone(plain), make([]byte, 2<<20)...),
		} {
			if _, err := put("bad", body); fault.CodeOf(err) != fault.InvalidArgument {
				t.Errorf("%s: import %s: %v", how, name, err)
			}
		}
	}
	for _, tr := range r.transports("ops", operator) {
		list := &siroccov1.ListImagesResponse{}
		if err := tr.call(ctx, "ImageService/List", &siroccov1.ListImagesRequest{}, list); err != nil {
			t.Fatalf("%s: %v", tr.name, err)
		}
		if n := len(list.GetImages()); n != 10 || list.GetImages()[0].GetName() != "base" || list.GetImages()[0].GetSource() != "builtin" {
			t.Errorf("%s: %d images: %v", tr.name, n, list)
		}
	}
	// Names with a tag are removed too.
	for i, name := range []string{"rest-zstd:1.2", "rpc-zstd:1.2", "rest-plain", "rpc-plain"} {
		tr := r.transports("ops", operator)[3+i%2]
		if err := tr.call(ctx, "ImageService/Remove", &siroccov1.RemoveImageRequest{Name: name}, &siroccov1.RemoveImageResponse{}); err != nil {
			t.Errorf("remove %s over %s: %v", name, tr.name, err)
		}
		if err := tr.call(ctx, "ImageService/Remove", &siroccov1.RemoveImageRequest{Name: name}, &siroccov1.RemoveImageResponse{}); fault.CodeOf(err) != fault.ImageNotFound {
			t.Errorf("remove %s again: %v", name, err)
		}
	}
}

// Beyond loopback there is TLS only, with the region's authority.
func TestTLSBeyondLoopback(t *testing.T) {
	nc, js := bustest.Start(t)
	folder, err := pki.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	service, err := api.New(program.Env{Region: "eu", Instance: "a", NC: nc, JS: js, Keys: folder}, api.Config{Listen: "0.0.0.0:0"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- service.Run(ctx) }()
	defer func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	<-service.Ready()
	_, port, err := net.SplitHostPort(service.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	pem, err := os.ReadFile(folder.PublicCAPath())
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport}).Get("https://127.0.0.1:" + port + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.ProtoMajor != 2 || resp.StatusCode != http.StatusOK {
		t.Errorf("%v", resp)
	}
	if resp, err := http.Get("http://127.0.0.1:" + port + "/healthz"); err == nil {
		resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			t.Error("served in the clear")
		}
	}
}
