//go:build sirocco_net

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// network returns the commands that need the network. They are only in the
// program when it is built with the tag sirocco_net: HTTP and TLS make every
// start 2 ms slower in a sandbox, and no other command needs them.
func network(name string) command {
	switch name {
	case "wget":
		return wget
	case "httpd":
		return httpd
	case "nc":
		return nc
	}
	return nil
}

// wget fetches URLs: -O names the file ("-" is the standard output), -q is
// silent, -S prints the answer's headers, -T limits the time in seconds.
func wget(p *proc) int {
	f, err := p.flags("O:qSvT:cP:tnU:", map[string]byte{"output-document": 'O', "quiet": 'q', "timeout": 'T', "header": 'H',
		"post-data": 'D', "method": 'M', "no-check-certificate": 'k', "server-response": 'S', "user-agent": 'U', "spider": 's'})
	if err != nil || len(f.args) == 0 {
		if err != nil {
			p.fail(err)
		}
		return p.usage("[-q] [-S] [-O file] [-T seconds] [--header=…] [--post-data=…] url...")
	}
	ctx := p.ctx
	if s := f.vals['T']; s != "" {
		d, err := duration(s)
		if err != nil {
			return p.fail(err)
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, d)
		defer cancel()
	}
	status := 0
	for _, url := range f.args {
		if !strings.Contains(url, "://") {
			url = "http://" + url
		}
		if code := p.fetch(ctx, f, url); code != 0 {
			status = code
		}
	}
	return status
}

func (p *proc) fetch(ctx context.Context, f flagSet, url string) int {
	method, body := http.MethodGet, io.Reader(nil)
	if f.on['D'] {
		method, body = http.MethodPost, strings.NewReader(f.vals['D'])
	}
	if m := f.vals['M']; m != "" {
		method = m
	}
	if f.on['s'] {
		method = http.MethodHead
	}
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return p.fail(err)
	}
	req.Header.Set("User-Agent", "sirocco-wget")
	if ua := f.vals['U']; ua != "" {
		req.Header.Set("User-Agent", ua)
	}
	if f.on['D'] {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	if k, v, ok := strings.Cut(f.vals['H'], ":"); ok {
		req.Header.Set(strings.TrimSpace(k), strings.TrimSpace(v))
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		p.fail(err)
		return 4
	}
	defer resp.Body.Close()
	if f.on['S'] {
		fmt.Fprintf(p.err, "  %s %s\n", resp.Proto, resp.Status)
		_ = resp.Header.Write(p.err)
	}
	if resp.StatusCode >= 400 {
		p.fail(fmt.Errorf("%s: server answered %s", url, resp.Status))
		return 8
	}
	if f.on['s'] {
		return 0
	}
	out, name := p.out, f.vals['O']
	if name == "" {
		if name = path.Base(resp.Request.URL.Path); name == "/" || name == "." {
			name = "index.html"
		}
		if dir := f.vals['P']; dir != "" {
			name = path.Join(dir, name)
		}
	}
	if name != "-" {
		file, err := os.Create(p.path(name))
		if err != nil {
			return p.fail(err)
		}
		defer file.Close()
		out = file
	}
	n, err := io.Copy(out, resp.Body)
	if err != nil {
		p.fail(err)
		return 4
	}
	if !f.on['q'] && name != "-" {
		fmt.Fprintf(p.err, "%s: %d bytes\n", name, n)
	}
	return 0
}

// httpd serves the files of a folder.
func httpd(p *proc) int {
	f, err := p.flags("p:a:qfh:", nil)
	if err != nil || len(f.args) > 1 {
		return p.usage("[-p port] [-a address] [-q] [dir]")
	}
	dir := f.vals['h']
	if len(f.args) == 1 {
		dir = f.args[0]
	}
	if dir == "" {
		dir = "."
	}
	port := f.vals['p']
	if port == "" {
		port = "8000"
	}
	if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
		return p.fail(fmt.Errorf("%q is not a port", port))
	}
	if st, err := os.Stat(p.path(dir)); err != nil || !st.IsDir() {
		return p.fail(fmt.Errorf("%s is not a directory", dir))
	}
	l, err := net.Listen("tcp", net.JoinHostPort(f.vals['a'], port))
	if err != nil {
		return p.fail(err)
	}
	fmt.Fprintf(p.err, "serving %s on %s\n", dir, l.Addr())
	files := http.FileServer(http.Dir(p.path(dir)))
	srv := &http.Server{ReadHeaderTimeout: 30 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !f.on['q'] {
			fmt.Fprintf(p.err, "%s %s %s\n", time.Now().Format(time.TimeOnly), r.Method, r.URL.Path)
		}
		files.ServeHTTP(w, r)
	})}
	return p.fail(srv.Serve(l))
}

// nc connects to a TCP port, or listens on one, and joins it with the standard
// input and output. -z only tries, -e runs a command for each connection, -k
// goes on listening.
func nc(p *proc) int {
	f, err := p.flags("lp:zvw:ke:nN46", nil)
	if err != nil {
		return p.fail(err)
	}
	usage := "[-zv] [-w seconds] host port | -l [-k] [-e command] [-p] port"
	wait := time.Duration(0)
	if s := f.vals['w']; s != "" {
		if wait, err = duration(s); err != nil {
			return p.fail(err)
		}
	}
	if !f.on['l'] {
		if len(f.args) != 2 {
			return p.usage(usage)
		}
		c, err := (&net.Dialer{Timeout: wait}).DialContext(p.ctx, "tcp", net.JoinHostPort(f.args[0], f.args[1]))
		if err != nil {
			if !f.on['z'] || f.on['v'] {
				p.fail(err)
			}
			return 1
		}
		if f.on['v'] {
			fmt.Fprintf(p.err, "connected to %s\n", c.RemoteAddr())
		}
		if f.on['z'] {
			_ = c.Close()
			return 0
		}
		return p.join(c)
	}
	port := f.vals['p']
	if port == "" && len(f.args) > 0 {
		port = f.args[len(f.args)-1]
	}
	host := ""
	if len(f.args) > 1 {
		host = f.args[0]
	}
	l, err := net.Listen("tcp", net.JoinHostPort(host, port))
	if err != nil {
		return p.fail(err)
	}
	defer l.Close()
	if f.on['v'] {
		fmt.Fprintf(p.err, "listening on %s\n", l.Addr())
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return p.fail(err)
		}
		serve := func() int {
			if cmd := f.vals['e']; cmd != "" {
				q := *p
				q.in, q.out = c, c
				defer c.Close()
				return q.spawn([]string{"sh", "-c", cmd}, nil)
			}
			return p.join(c)
		}
		if !f.on['k'] {
			return serve()
		}
		if f.vals['e'] != "" {
			go serve()
		} else {
			serve()
		}
	}
}

// join copies both ways until the other side ends.
func (p *proc) join(c net.Conn) int {
	defer c.Close()
	go func() {
		_, _ = io.Copy(c, p.in)
		if t, ok := c.(*net.TCPConn); ok {
			_ = t.CloseWrite()
		}
	}()
	if _, err := io.Copy(p.out, c); err != nil && !errors.Is(err, syscall.ECONNRESET) {
		return p.fail(err)
	}
	return 0
}
