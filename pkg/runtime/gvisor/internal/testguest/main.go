// Command testguest is process 1 of sandboxes in tests. Its first argument says
// what to do:
//
//	serve             listen on 8000 and do what each connection's first line says
//	exit <code>       end with the code
//	signal <number>   be killed by the signal
//	eat               take memory until killed
//	say <text>        print the text and end
//	cat               copy standard input to standard output
//	tick              print a number, wait for a line, and so on
//	fill <bytes>      fill so much memory with random bytes, print "full" and stay until
//	                  the end of standard input
//
// Lines that serve understands; what follows the answer depends on the line:
//
//	echo              send back what comes, until the peer's end
//	drain             read until the peer's end, answer with the count and SHA-256
//	fill <bytes>      send that many bytes, then end
//	zeros <bytes>     the same as fast as it goes
//	close             end this direction at once, then read until the peer's end and
//	                  write the count to /count
//	write <path> <n>  write n bytes to a file, answer with how many fitted and why not
//	fork <n>          start n processes that stay, answer with how many started
//	eat               take memory until killed
//	run <args>...     start this program with other arguments, answer with how it
//	                  ended
//	exit <code>       end the program
//	signal <number>   be killed by the signal
//	get <path>        send a file
//	dial <address>    connect to a TCP address, send what comes from there, or why not
//	addresses         send the network interfaces with their addresses, one a line
//	env               send arguments, environment, host name and identity
//	bump              count, answer with the count
//	keep <bytes>      fill so much memory with random bytes, answer with their SHA-256
//	kept              answer with the SHA-256 of those bytes now
//	spin              look at the clock all the time from now on
//	gap               answer with the longest time, in ns, between two such looks, and
//	                  start again
//	prepare           have open files, pipes, sockets, processes and timers
//	verify            answer with "ok" if they work as they should, or with what does not
//	hold              read without an answer; its end is kept
//	call <address>    connect to a TCP address and read; its end is kept, too
//	listen <address>  listen on a TCP address, send "here" to whoever connects
//	ends              answer with how those reads have ended, one a line
package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) < 2 {
		os.Exit(2)
	}
	switch os.Args[1] {
	case "serve":
		serve()
	case "exit":
		os.Exit(number(os.Args[2]))
	case "signal":
		_ = syscall.Kill(os.Getpid(), syscall.Signal(number(os.Args[2])))
		select {}
	case "eat":
		eat()
	case "say":
		fmt.Println(os.Args[2])
	case "sleep":
		_, _ = io.Copy(io.Discard, os.Stdin)
	case "cat":
		_, _ = io.Copy(os.Stdout, os.Stdin)
	case "tick":
		tick()
	case "fill":
		b := make([]byte, number(os.Args[2]))
		_, _ = rand.Read(b)
		fmt.Println("full")
		_, _ = io.Copy(io.Discard, os.Stdin)
		runtime.KeepAlive(b)
	}
}

func number(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		panic(err)
	}
	return n
}

func serve() {
	l, err := net.Listen("tcp", "127.0.0.1:8000")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(3)
	}
	for {
		c, err := l.Accept()
		if err != nil {
			os.Exit(4)
		}
		go handle(c.(*net.TCPConn))
	}
}

func handle(c *net.TCPConn) {
	defer c.Close()
	r := bufio.NewReader(c)
	line, err := r.ReadString('\n')
	if err != nil {
		return
	}
	f := strings.Fields(line)
	switch f[0] {
	case "echo":
		_, _ = io.Copy(c, r)
	case "drain":
		h := sha256.New()
		n, _ := io.Copy(h, r)
		fmt.Fprintf(c, "%d %x\n", n, h.Sum(nil))
	case "fill":
		_, _ = io.Copy(c, io.LimitReader(&pattern{}, int64(number(f[1]))))
	case "zeros":
		zeros(c, number(f[1]))
	case "close":
		_ = c.CloseWrite()
		n, _ := io.Copy(io.Discard, r)
		_ = os.WriteFile("/count", []byte(strconv.FormatInt(n, 10)), 0o600)
	case "write":
		n, err := write(f[1], int64(number(f[2])))
		fmt.Fprintf(c, "%d %v\n", n, err)
	case "fork":
		n, err := fork(number(f[1]))
		fmt.Fprintf(c, "%d %v\n", n, err)
	case "eat":
		eat()
	case "run":
		err := exec.Command("/proc/self/exe", f[1:]...).Run()
		fmt.Fprintf(c, "%v\n", err)
	case "bump", "keep", "kept", "spin", "gap", "prepare", "verify", "ends":
		fmt.Fprintln(c, state.do(f))
	case "hold":
		state.hold(r)
	case "call":
		fmt.Fprintln(c, call(f[1]))
	case "listen":
		fmt.Fprintln(c, listen(f[1]))
	case "exit":
		_ = c.Close()
		os.Exit(number(f[1])) //nolint:gocritic // the connection is closed above
	case "signal":
		_ = syscall.Kill(os.Getpid(), syscall.Signal(number(f[1])))
	case "get":
		b, err := os.ReadFile(f[1])
		if err != nil {
			fmt.Fprintln(c, err)
		}
		_, _ = c.Write(b)
	case "dial":
		dial(c, f[1])
	case "addresses":
		links, _ := net.Interfaces()
		for _, l := range links {
			addrs, err := l.Addrs()
			fmt.Fprintln(c, l.Name, l.HardwareAddr, addrs, l.MTU, err)
		}
	case "env":
		host, _ := os.Hostname()
		fmt.Fprintf(c, "args=%q env=%q host=%s pid=%d uid=%d\n", os.Args, os.Environ(), host, os.Getpid(), os.Getuid())
	}
}

func dial(to io.Writer, address string) {
	c, err := (&net.Dialer{Timeout: 2 * time.Second}).DialContext(context.Background(), "tcp", address)
	if err != nil {
		fmt.Fprintln(to, "error:", err)
		return
	}
	defer c.Close()
	_, _ = io.Copy(to, c)
}

// call connects and reads from now on.
func call(address string) error {
	c, err := (&net.Dialer{}).DialContext(context.Background(), "tcp", address)
	if err == nil {
		go state.hold(c)
	}
	return err
}

// listen answers whoever connects.
func listen(address string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(c, "here")
			_ = c.Close()
		}
	}()
	return nil
}

// pattern is an endless stream in which every place is told from those near it.
type pattern struct{ pos int }

func (p *pattern) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = byte(p.pos * 31 >> 3)
		p.pos++
	}
	return len(b), nil
}

func zeros(to io.Writer, n int) {
	b := make([]byte, 256<<10)
	for n > 0 {
		k, err := to.Write(b[:min(n, len(b))])
		if err != nil {
			return
		}
		n -= k
	}
}

func write(path string, n int64) (int64, error) {
	f, err := os.Create(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return io.Copy(f, io.LimitReader(&pattern{}, n))
}

// fork starts so many processes.
func fork(n int) (int, error) {
	for i := range n {
		// The pipe keeps each child waiting.
		r, _, err := os.Pipe()
		if err != nil {
			return i, err
		}
		cmd := exec.Command("/proc/self/exe", "sleep")
		cmd.Stdin = r
		if err := cmd.Start(); err != nil {
			return i, err
		}
		r.Close()
	}
	return n, nil
}

func eat() {
	for keep := [][]byte{}; ; {
		b := make([]byte, 4<<20)
		for i := range b {
			b[i] = byte(i)
		}
		keep = append(keep, b)
		runtime.KeepAlive(keep)
	}
}
