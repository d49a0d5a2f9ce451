package main

import (
	"io"
	"strconv"
	"strings"
	"sync"
)

// xargs runs a command with arguments from the standard input: -n at a time,
// -I one in place of a word, -0 ended by zero bytes, -P at once, -r not for
// none, -d with another separator.
func xargs(p *proc) int {
	own := len(p.args)
	for i := 0; i < len(p.args); i++ {
		a := p.args[i]
		if !strings.HasPrefix(a, "-") || a == "--" {
			own = i
			break
		}
		if len(a) == 2 && strings.Contains("nIPLdsE", a[1:]) {
			i++
		}
	}
	own = min(own, len(p.args))
	words := p.args[own:]
	q := *p
	q.args = p.args[:own]
	f, err := q.flags("n:I:0P:rtL:d:s:E:x", map[string]byte{"null": '0', "no-run-if-empty": 'r', "max-args": 'n', "max-procs": 'P'})
	if err != nil {
		return p.fail(err)
	}
	if len(words) > 0 && words[0] == "--" {
		words = words[1:]
	}
	if len(words) == 0 {
		words = []string{"echo"}
	}
	items, err := xargsItems(p.in, f)
	if err != nil {
		return p.fail(err)
	}
	size := 1 << 12
	for _, c := range []byte("nL") {
		if v, ok := f.vals[c]; ok {
			if size, err = strconv.Atoi(v); err != nil || size < 1 {
				return p.usage("[-0rt] [-n count] [-I word] [-P count] [command...]")
			}
		}
	}
	var runs [][]string
	mark, replace := f.vals['I'], f.on['I']
	for len(items) > 0 {
		if replace {
			args := make([]string, len(words))
			for i, w := range words {
				args[i] = strings.ReplaceAll(w, mark, items[0])
			}
			runs, items = append(runs, args), items[1:]
			continue
		}
		n, bytes := 0, 0
		for n < len(items) && n < size && (n == 0 || bytes+len(items[n]) < 100_000) {
			bytes += len(items[n]) + 1
			n++
		}
		runs = append(runs, append(append([]string{}, words...), items[:n]...))
		items = items[n:]
	}
	if len(runs) == 0 && !replace && !f.on['r'] {
		runs = [][]string{words}
	}
	parallel := 1
	if v, ok := f.vals['P']; ok {
		if parallel, err = strconv.Atoi(v); err != nil || parallel < 0 {
			return p.fail(err)
		}
		if parallel == 0 {
			parallel = 64
		}
	}
	// What is run must not read the list.
	child := *p
	child.in = nil
	slots := make(chan struct{}, parallel)
	var wg sync.WaitGroup
	var mu sync.Mutex
	status := 0
	for _, args := range runs {
		slots <- struct{}{}
		if f.on['t'] {
			_, _ = io.WriteString(p.err, strings.Join(args, " ")+"\n")
		}
		wg.Go(func() {
			defer func() { <-slots }()
			code := child.spawn(args, nil)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case code == 127 || code == 126:
				status = code
			case code != 0 && status == 0:
				status = 123
			}
		})
	}
	wg.Wait()
	return status
}

// xargsItems splits the input: at white space with quotes, or at a separator.
func xargsItems(r io.Reader, f flagSet) ([]string, error) {
	var items []string
	sep, has := byte('\n'), f.on['I'] || f.on['L']
	if f.on['0'] {
		sep, has = 0, true
	}
	if d, ok := f.vals['d']; ok && d != "" {
		sep, has = d[0], true
		if d == `\n` {
			sep = '\n'
		} else if d == `\0` {
			sep = 0
		}
	}
	if has {
		err := records(r, sep, func(b []byte) bool {
			if len(b) > 0 || f.on['0'] {
				items = append(items, string(b))
			}
			return true
		})
		return items, err
	}
	all, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	var cur strings.Builder
	quote, in := byte(0), false
	for i := 0; i < len(all); i++ {
		c := all[i]
		switch {
		case quote != 0 && c == quote:
			quote = 0
		case quote != 0:
			cur.WriteByte(c)
		case c == '"' || c == '\'':
			quote, in = c, true
		case c == '\\' && i+1 < len(all):
			i++
			cur.WriteByte(all[i])
			in = true
		case c == ' ' || c >= '\t' && c <= '\r':
			if in {
				items = append(items, cur.String())
			}
			cur.Reset()
			in = false
		default:
			cur.WriteByte(c)
			in = true
		}
	}
	if in {
		items = append(items, cur.String())
	}
	return items, nil
}
