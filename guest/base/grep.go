package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// grepper is one run of grep.
type grepper struct {
	f             flagSet
	re            *regexp.Regexp
	before, after int64
	max           int64
	names         bool
	matched       bool
}

func grep(p *proc) int {
	f, err := p.flags("ivncqEFGPoxwlLrRHhse:f:A:B:C:m:a", map[string]byte{"ignore-case": 'i', "invert-match": 'v', "line-number": 'n',
		"count": 'c', "quiet": 'q', "extended-regexp": 'E', "fixed-strings": 'F', "only-matching": 'o', "recursive": 'r', "files-with-matches": 'l', "regexp": 'e'})
	if err != nil {
		p.fail(err)
		return 2
	}
	pattern, ok := f.vals['e']
	if name := f.vals['f']; name != "" {
		b, err := os.ReadFile(p.path(name))
		if err != nil {
			p.fail(err)
			return 2
		}
		pattern, ok = strings.TrimSuffix(string(b), "\n"), true
	}
	if !ok {
		if len(f.args) == 0 {
			return p.usage("[-ivncqEFoxwlrHh] [-A n] [-B n] [-C n] pattern [file...]")
		}
		pattern, f.args = f.args[0], f.args[1:]
	}
	g := &grepper{f: f}
	if g.re, err = grepPattern(f, p.name, pattern); err != nil {
		p.fail(err)
		return 2
	}
	context, err := f.number('C', 0)
	if err == nil {
		g.after, err = f.number('A', context)
	}
	if err == nil {
		g.before, err = f.number('B', context)
	}
	if err == nil {
		g.max, err = f.number('m', -1)
	}
	if err != nil {
		p.fail(err)
		return 2
	}
	recursive := f.on['r'] || f.on['R']
	if recursive {
		if len(f.args) == 0 {
			f.args = []string{"."}
		}
		f.args = p.filesBelow(f.args)
	}
	g.names = (len(f.args) > 1 || recursive || f.on['H']) && !f.on['h']
	failed := false
	status := p.buffered(func(w *bufio.Writer) int {
		if len(f.args) == 0 && !recursive {
			f.args = []string{"-"}
		}
		for _, name := range f.args {
			r, err := p.open(name)
			if err == nil {
				err = g.file(w, name, r)
				_ = r.Close()
			}
			if err != nil && !(f.on['s'] && errors.Is(err, fs.ErrNotExist)) {
				p.fail(err)
				failed = true
			}
			if f.on['q'] && g.matched {
				return 0
			}
		}
		return 0
	})
	switch {
	case status != 0, failed && !(f.on['q'] && g.matched):
		return 2
	case g.matched:
		return 0
	default:
		return 1
	}
}

// grepPattern translates a pattern. A basic one has its special characters the
// other way round with the backslash.
func grepPattern(f flagSet, name, pattern string) (*regexp.Regexp, error) {
	parts := strings.Split(pattern, "\n")
	for i, part := range parts {
		switch {
		case f.on['F'] || name == "fgrep":
			part = regexp.QuoteMeta(part)
		case !f.on['E'] && !f.on['P'] && name != "egrep":
			part = basicRegexp(part)
		}
		part = strings.NewReplacer(`\<`, `\b`, `\>`, `\b`).Replace(part)
		if f.on['w'] {
			part = `\b(?:` + part + `)\b`
		}
		if f.on['x'] {
			part = `^(?:` + part + `)$`
		}
		parts[i] = part
	}
	all := strings.Join(parts, "|")
	if f.on['i'] {
		all = "(?i)" + all
	}
	return regexp.Compile(all)
}

// basicRegexp turns a basic regular expression of POSIX into an extended one.
func basicRegexp(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '\\' && i+1 < len(s):
			i++
			if strings.IndexByte("(){}|+?", s[i]) < 0 {
				b.WriteByte('\\')
			}
			b.WriteByte(s[i])
		case strings.IndexByte("(){}|+?", c) >= 0, c == '*' && i == 0:
			b.WriteByte('\\')
			b.WriteByte(c)
		case c == '[':
			end := i + 1
			if end < len(s) && s[end] == '^' {
				end++
			}
			if end < len(s) && s[end] == ']' {
				end++
			}
			for end < len(s) && s[end] != ']' {
				if strings.HasPrefix(s[end:], "[:") {
					if e := strings.Index(s[end:], ":]"); e > 0 {
						end += e + 1
					}
				}
				end++
			}
			b.WriteString(s[i:min(end+1, len(s))])
			i = end
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

func (p *proc) filesBelow(roots []string) []string {
	var out []string
	for _, root := range roots {
		err := filepath.WalkDir(p.path(root), func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				p.fail(err)
				return nil
			}
			if d.Type().IsRegular() {
				if rel, err := filepath.Rel(p.path(root), path); err == nil && rel != "." {
					path = filepath.Join(root, rel)
				} else {
					path = root
				}
				out = append(out, path)
			}
			return p.ctx.Err()
		})
		if err != nil {
			p.fail(err)
		}
	}
	return out
}

func (g *grepper) file(w *bufio.Writer, name string, r io.Reader) error {
	f := g.f
	label := name
	if name == "-" {
		label = "(standard input)"
	}
	count, line, owed, last := int64(0), int64(0), int64(0), int64(0)
	var past [][]byte
	show := func(n int64, b []byte, mark byte) {
		if last > 0 && n > last+1 && (g.before > 0 || g.after > 0) {
			_, _ = w.WriteString("--\n")
		}
		last = n
		if g.names {
			fmt.Fprintf(w, "%s%c", label, mark)
		}
		if f.on['n'] {
			fmt.Fprintf(w, "%d%c", n, mark)
		}
		_, _ = w.Write(b)
		_ = w.WriteByte('\n')
	}
	quiet := f.on['q'] || f.on['l'] || f.on['L'] || f.on['c']
	err := lines(r, func(b []byte) bool {
		line++
		if g.re.Match(b) == f.on['v'] {
			if owed > 0 && !quiet {
				show(line, b, '-')
				owed--
			} else if g.before > 0 {
				past = append(past, bytes.Clone(b))
				if int64(len(past)) > g.before {
					past = past[1:]
				}
			}
			return true
		}
		count++
		g.matched = true
		if !quiet {
			for i, old := range past {
				show(line-int64(len(past)-i), old, '-')
			}
			past, owed = nil, g.after
			if f.on['o'] && !f.on['v'] {
				for _, m := range g.re.FindAll(b, -1) {
					show(line, m, ':')
				}
			} else {
				show(line, b, ':')
			}
		}
		return !f.on['q'] && !f.on['l'] && count != g.max
	})
	switch {
	case f.on['c']:
		if g.names {
			fmt.Fprintf(w, "%s:", label)
		}
		fmt.Fprintln(w, count)
	case f.on['l'] && count > 0, f.on['L'] && count == 0:
		fmt.Fprintln(w, label)
	}
	return err
}
