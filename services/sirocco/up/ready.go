package up

import (
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/apikey"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/subject"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/proto"
)

// readyTimeout bounds a start. Finding thousands of sandboxes again takes a
// while.
const readyTimeout = 3 * time.Minute

// ready waits until everything serves, then makes the first key and tells the
// caller. It returns nil when user or services end first.
func (s *start) ready(user, services context.Context) error {
	ctx, cancel := context.WithTimeoutCause(services, readyTimeout, fmt.Errorf("it is not ready after %s", readyTimeout))
	defer cancel()
	stop := context.AfterFunc(user, cancel)
	defer stop()
	err := s.awaitAll(ctx)
	if err == nil {
		var r Ready
		if r, err = s.describe(ctx); err == nil && s.platform.cfg.Ready != nil {
			return s.platform.cfg.Ready(r)
		}
	}
	if user.Err() != nil || services.Err() != nil {
		return nil
	}
	return err
}

func (s *start) awaitAll(ctx context.Context) error {
	for _, w := range []struct {
		what string
		done <-chan struct{}
	}{{"the api", s.api.Ready()}, {"the relay", s.relay.Listening()}, {"the relay's routes", s.relay.Ready()}} {
		select {
		case <-w.done:
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", w.what, context.Cause(ctx))
		}
	}
	return s.awaitNodes(ctx)
}

// awaitNodes waits until each node of this run has said that it is ready. What
// an earlier run said may still be there.
func (s *start) awaitNodes(ctx context.Context) error {
	js, err := jetstream.New(s.parts[0].nc)
	if err != nil {
		return err
	}
	bucket, err := js.KeyValue(ctx, subject.BucketNodes)
	if err != nil {
		return fmt.Errorf("wait for the nodes: %w", err)
	}
	watch, err := bucket.WatchAll(ctx)
	if err != nil {
		return fmt.Errorf("wait for the nodes: %w", err)
	}
	defer func() { _ = watch.Stop() }()
	waiting := map[string]bool{}
	for i := range s.platform.agents {
		waiting[s.platform.cfg.nodeName(i)] = true
	}
	for len(waiting) > 0 {
		select {
		case entry := <-watch.Updates():
			if entry == nil {
				continue
			}
			node := &siroccov1.Node{}
			if proto.Unmarshal(entry.Value(), node) == nil && node.GetReady() && node.GetSeenAt().AsTime().After(s.began) {
				delete(waiting, node.GetName())
			}
		case <-ctx.Done():
			var names []string
			for name := range waiting {
				names = append(names, name)
			}
			slices.Sort(names)
			return fmt.Errorf("wait for %s: %w", strings.Join(names, ", "), context.Cause(ctx))
		}
	}
	return nil
}

// describe says where everything is.
func (s *start) describe(ctx context.Context) (Ready, error) {
	p := s.platform
	js, err := jetstream.New(s.parts[0].nc)
	if err != nil {
		return Ready{}, err
	}
	key, err := firstKey(ctx, js, keyFile(p.cfg.Data))
	if err != nil {
		return Ready{}, err
	}
	live, err := Live(ctx, s.parts[0].nc)
	if err != nil {
		return Ready{}, err
	}
	front, err := p.cfg.Settings.Front()
	if err != nil {
		return Ready{}, err
	}
	tunnels := "https://*." + front.Domain
	if front.Port != 443 {
		tunnels += ":" + strconv.Itoa(int(front.Port))
	}
	return Ready{
		Region: p.cfg.Settings.Region, API: apiURL(s.api.Addr()), Bus: s.server.URL(), Tunnels: tunnels, Key: key,
		CA: s.keys.PublicCAPath(), Nodes: len(p.agents), Adopted: len(live),
	}, nil
}

// apiURL is where clients of this machine find the api, which speaks TLS beyond
// loopback.
func apiURL(addr net.Addr) string {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok {
		return addr.String()
	}
	switch {
	case tcp.IP.IsLoopback():
		return "http://" + addr.String()
	case tcp.IP.IsUnspecified():
		host, err := os.Hostname()
		if err != nil {
			host = "localhost"
		}
		return "https://" + net.JoinHostPort(host, strconv.Itoa(tcp.Port))
	}
	return "https://" + addr.String()
}

// firstKey returns the operator's key that is kept in file, and makes one if it
// is not there, or has been revoked.
func firstKey(ctx context.Context, js jetstream.JetStream, file string) (string, error) {
	store, err := apikey.Open(ctx, js)
	if err != nil {
		return "", err
	}
	secret, err := readSecret(file)
	if err != nil {
		return "", fmt.Errorf("read the API key: %w", err)
	}
	if secret != "" {
		_, err := store.Verify(ctx, secret)
		if err == nil || fault.CodeOf(err) != fault.Unauthenticated {
			return secret, err
		}
	}
	secret, _, err = store.Create(ctx, Tenant, apikey.RoleOperator, "made by sirocco up")
	if err != nil {
		return "", fmt.Errorf("make the first API key: %w", err)
	}
	if err := WriteSecret(file, secret+"\n"); err != nil {
		return "", fmt.Errorf("keep the API key: %w", err)
	}
	return secret, nil
}
