package link

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// sink reads everything and answers with one byte at the end.
func sink(c net.Conn) {
	buf := make([]byte, 128<<10)
	for {
		if _, err := c.Read(buf); err != nil {
			break
		}
	}
	_, _ = c.Write([]byte{1})
}

const perOp = 64 << 20

func push(b *testing.B, conns int, dial func() net.Conn, closeWrite func(net.Conn)) {
	b.SetBytes(perOp)
	chunk := make([]byte, 128<<10)
	for b.Loop() {
		var wg sync.WaitGroup
		for range conns {
			wg.Go(func() {
				c := dial()
				defer func() { _ = c.Close() }()
				for range perOp / conns / len(chunk) {
					if _, err := c.Write(chunk); err != nil {
						b.Error(err)
						return
					}
				}
				closeWrite(c)
				if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
					b.Error(err)
				}
			})
		}
		wg.Wait()
	}
}

// BenchmarkThroughput compares streams with plain TCP over loopback.
func BenchmarkThroughput(b *testing.B) {
	server, client := keys(b)
	for _, conns := range []int{1, 8, 64} {
		b.Run(fmt.Sprintf("link/%d", conns), func(b *testing.B) {
			address, _ := serve(b, server, "127.0.0.1:0", func(context.Context, Header) (func(net.Conn), error) { return sink, nil })
			d := dialer(b, client)
			push(b, conns, func() net.Conn {
				c, err := d.Open(context.Background(), address, Header{Kind: KindPort})
				if err != nil {
					b.Fatal(err)
				}
				return c
			}, func(c net.Conn) { _ = c.(*Conn).CloseWrite() })
		})
		b.Run(fmt.Sprintf("tcp/%d", conns), func(b *testing.B) {
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			defer func() { _ = listener.Close() }()
			go func() {
				for {
					c, err := listener.Accept()
					if err != nil {
						return
					}
					go func() { sink(c); _ = c.Close() }()
				}
			}()
			push(b, conns, func() net.Conn {
				c, err := net.Dial("tcp", listener.Addr().String())
				if err != nil {
					b.Fatal(err)
				}
				return c
			}, func(c net.Conn) { _ = c.(*net.TCPConn).CloseWrite() })
		})
	}
}

// BenchmarkRoundTrip is the time of one byte there and back on an open stream.
func BenchmarkRoundTrip(b *testing.B) {
	server, client := keys(b)
	address, _ := serve(b, server, "127.0.0.1:0", echo)
	c := open(b, dialer(b, client), address, Header{Kind: KindPort})
	one := make([]byte, 1)
	for b.Loop() {
		if _, err := c.Write(one); err != nil {
			b.Fatal(err)
		}
		if _, err := c.Read(one); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkOpen is the time of opening a stream on a connection that is there.
func BenchmarkOpen(b *testing.B) {
	server, client := keys(b)
	address, _ := serve(b, server, "127.0.0.1:0", echo)
	d := dialer(b, client)
	open(b, d, address, Header{Kind: KindPort})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for b.Loop() {
		c, err := d.Open(ctx, address, Header{Kind: KindPort})
		if err != nil {
			b.Fatal(err)
		}
		_ = c.Close()
	}
}
