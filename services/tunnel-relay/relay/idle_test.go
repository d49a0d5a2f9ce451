package relay

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"testing"

	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

// socketsEnv makes the test program the clients and the app of idle WebSockets:
// "<number>". It prints the app's address, reads the relay's address and the
// host's name, opens the sockets and prints "open"; it ends with its input.
const socketsEnv = "SIROCCO_TEST_IDLE_SOCKETS"

func TestMain(m *testing.M) {
	if n, err := strconv.Atoi(os.Getenv(socketsEnv)); err == nil {
		if err := holdSockets(n); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func holdSockets(n int) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				req, err := http.ReadRequest(bufio.NewReader(c))
				if err == nil && req.Header.Get("Upgrade") != "" {
					_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
				}
			}()
		}
	}()
	fmt.Println(listener.Addr())
	var address, host string
	if _, err := fmt.Scan(&address, &host); err != nil {
		return err
	}
	var conns []net.Conn
	cfg := &tls.Config{InsecureSkipVerify: true, ServerName: host} //nolint:gosec // a measurement
	for range n {
		c, err := tls.Dial("tcp", address, cfg)
		if err != nil {
			return err
		}
		fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", host)
		buf := make([]byte, 1024)
		if k, err := c.Read(buf); err != nil || !strings.HasPrefix(string(buf[:k]), "HTTP/1.1 101") {
			return fmt.Errorf("%q, %w", buf[:k], err)
		}
		conns = append(conns, c)
	}
	fmt.Println("open")
	_, err = io.Copy(io.Discard, os.Stdin)
	runtime.KeepAlive(conns)
	return err
}

// Issue 3 wants 5,000 idle WebSockets in 200 MB: 40 KB each. Clients and app are
// in another process; this one is the relay and, like `sirocco up`, the agent's
// end of the link too.
func TestIdleWebSocketsAreCheap(t *testing.T) {
	const n, most = 1000, 40_000
	g := newRig(t, Config{})
	a := g.agent()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), socketsEnv+"="+strconv.Itoa(n))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	end := sync.OnceFunc(func() { _ = in.Close(); _ = cmd.Wait() })
	t.Cleanup(end)
	lines := bufio.NewScanner(out)
	if !lines.Scan() {
		t.Fatal("the other process did not start")
	}
	sb := g.accept(&siroccov1.Port{Port: 8000})
	a.listen(sb.GetId(), 8000, lines.Text())
	g.placed(sb, a)
	heap, rss := used(t)
	if fmt.Fprintln(in, g.relay.Addr(), g.front.Host(8000, sb.GetId())); !lines.Scan() {
		t.Fatal("the sockets could not be opened")
	}
	garbage := (resident(t) - rss) / n // what the handshakes left is still there
	heapAfter, rssAfter := used(t)
	heap, rss = (heapAfter-heap)/n, (rssAfter-rss)/n
	t.Logf("an idle WebSocket costs %d bytes of heap and stacks, %d resident, %d before the handshakes' garbage is collected", heap, rss, garbage)
	if raceDetector {
		heap /= 2 // it adds half as much again
	}
	// What is resident follows the collector, and other tests; it is for the log.
	if heap > most {
		t.Errorf("more than %d bytes", most)
	}
}

// used returns heap and stacks in use, and what is resident, after a collection.
func used(t *testing.T) (heap, rss int64) {
	t.Helper()
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse), resident(t) //nolint:gosec // far below
}

func resident(t *testing.T) int64 {
	t.Helper()
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Fatal(err)
	}
	pages, err := strconv.ParseInt(strings.Fields(string(b))[1], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return pages * int64(os.Getpagesize())
}
