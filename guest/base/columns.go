package main

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
)

// ranges reads a list like 1,3-5,7-.
func ranges(list string) ([][2]int, error) {
	var out [][2]int
	for _, part := range strings.Split(list, ",") {
		lo, hi, dash := strings.Cut(part, "-")
		r := [2]int{1, 1 << 30}
		var err error
		if lo != "" {
			r[0], err = strconv.Atoi(lo)
		}
		if err == nil && hi != "" {
			r[1], err = strconv.Atoi(hi)
		}
		if !dash {
			r[1] = r[0]
		}
		if err != nil || r[0] < 1 || r[1] < r[0] || part == "" || part == "-" {
			return nil, fmt.Errorf("bad list %q", list)
		}
		out = append(out, r)
	}
	return out, nil
}

func inRanges(r [][2]int, n int) bool {
	return slices.ContainsFunc(r, func(x [2]int) bool { return n >= x[0] && n <= x[1] })
}

func cut(p *proc) int {
	f, err := p.flags("d:f:c:b:sn", map[string]byte{"delimiter": 'd', "fields": 'f', "characters": 'c', "bytes": 'b'})
	if err != nil {
		return p.fail(err)
	}
	list := f.vals['f'] + f.vals['c'] + f.vals['b']
	r, err := ranges(list)
	if err != nil {
		return p.fail(err)
	}
	delim := "\t"
	if d, ok := f.vals['d']; ok {
		delim = d
	}
	return p.buffered(func(w *bufio.Writer) int {
		return p.each(f.args, func(_ string, in io.Reader) error {
			return lines(in, func(b []byte) bool {
				if f.vals['f'] == "" {
					for i, c := range []rune(string(b)) {
						if inRanges(r, i+1) {
							_, _ = w.WriteRune(c)
						}
					}
					return w.WriteByte('\n') == nil
				}
				parts := strings.Split(string(b), delim)
				if len(parts) == 1 {
					if !f.on['s'] {
						_, _ = w.Write(append(b, '\n'))
					}
					return true
				}
				var keep []string
				for i, part := range parts {
					if inRanges(r, i+1) {
						keep = append(keep, part)
					}
				}
				_, err := w.WriteString(strings.Join(keep, delim) + "\n")
				return err == nil
			})
		})
	})
}

// trSet expands a set of tr: ranges, escapes and classes.
func trSet(s string) []rune {
	classes := map[string]string{"[:lower:]": "a-z", "[:upper:]": "A-Z", "[:digit:]": "0-9", "[:alpha:]": "A-Za-z", "[:alnum:]": "0-9A-Za-z",
		"[:space:]": " \t-\r", "[:blank:]": " \t", "[:punct:]": "!-/:-@[-`{-~", "[:xdigit:]": "0-9A-Fa-f"}
	for k, v := range classes {
		s = strings.ReplaceAll(s, k, v)
	}
	var in []rune
	plain := map[int]bool{}
	src := []rune(s)
	for i := 0; i < len(src); i++ {
		c := src[i]
		if c == '\\' && i+1 < len(src) {
			i++
			c = src[i]
			if e := strings.IndexRune("ntrfvab0", c); e >= 0 {
				c = rune("\n\t\r\f\v\a\b\x00"[e])
			}
			plain[len(in)] = true
		}
		in = append(in, c)
	}
	var out []rune
	for i := 0; i < len(in); i++ {
		if i+2 < len(in) && in[i+1] == '-' && !plain[i+1] && in[i+2] >= in[i] {
			for c := in[i]; c <= in[i+2]; c++ {
				out = append(out, c)
			}
			i += 2
			continue
		}
		out = append(out, in[i])
	}
	return out
}

func tr(p *proc) int {
	f, err := p.flags("dscC", nil)
	if err != nil || len(f.args) == 0 || len(f.args) > 2 {
		return p.usage("[-dsc] set1 [set2]")
	}
	from, to := trSet(f.args[0]), []rune(nil)
	if len(f.args) == 2 {
		to = trSet(f.args[1])
	}
	index := map[rune]int{}
	for i, c := range from {
		if _, ok := index[c]; !ok {
			index[c] = i
		}
	}
	squeeze := map[rune]bool{}
	last := from
	if len(to) > 0 {
		last = to
	}
	for _, c := range last {
		squeeze[c] = true
	}
	other := f.on['c'] || f.on['C']
	r := bufio.NewReader(p.in)
	return p.buffered(func(w *bufio.Writer) int {
		prev := rune(-1)
		for {
			c, _, err := r.ReadRune()
			if errors.Is(err, io.EOF) {
				return 0
			}
			if err != nil {
				return p.fail(err)
			}
			i, in := index[c]
			if other {
				in, i = !in, len(to)
			}
			if in && f.on['d'] {
				continue
			}
			if in && len(to) > 0 {
				c = to[min(i, len(to)-1)]
			}
			sq := squeeze[c]
			if other && len(to) == 0 {
				sq = in
			}
			if f.on['s'] && c == prev && sq {
				continue
			}
			prev = c
			if _, err := w.WriteRune(c); err != nil {
				return p.fail(err)
			}
			if c == '\n' && r.Buffered() == 0 {
				_ = w.Flush()
			}
		}
	})
}

func sortLines(p *proc) int {
	f, err := p.flags("nrufk:t:o:bhVsc", map[string]byte{"reverse": 'r', "unique": 'u', "numeric-sort": 'n', "key": 'k', "field-separator": 't', "human-numeric-sort": 'h', "version-sort": 'V'})
	if err != nil {
		return p.fail(err)
	}
	key := func(l string) string { return l }
	numeric, reverse := f.on['n'] || f.on['h'] || f.on['V'], f.on['r']
	if k := f.vals['k']; k != "" {
		spec := strings.TrimRight(k, "nrbfhV")
		numeric = numeric || strings.ContainsAny(k, "nhV")
		reverse = reverse || strings.Contains(k, "r")
		from, to, _ := strings.Cut(strings.TrimRight(spec, ","), ",")
		lo, err1 := strconv.Atoi(strings.TrimRight(strings.SplitN(from, ".", 2)[0], "nrbfhV"))
		hi := 1 << 30
		var err2 error
		if to != "" {
			hi, err2 = strconv.Atoi(strings.TrimRight(strings.SplitN(to, ".", 2)[0], "nrbfhV"))
		}
		if err1 != nil || err2 != nil || lo < 1 {
			return p.fail(fmt.Errorf("bad key %q", k))
		}
		key = func(l string) string {
			parts := strings.Fields(l)
			if t, ok := f.vals['t']; ok {
				parts = strings.Split(l, t)
			}
			if lo > len(parts) {
				return ""
			}
			return strings.Join(parts[lo-1:min(hi, len(parts))], " ")
		}
	}
	var all []string
	status := p.each(f.args, func(_ string, r io.Reader) error {
		return lines(r, func(b []byte) bool { all = append(all, string(b)); return true })
	})
	compare := func(a, b string) int {
		ka, kb := key(a), key(b)
		if f.on['f'] {
			ka, kb = strings.ToUpper(ka), strings.ToUpper(kb)
		}
		var c int
		if numeric {
			c = cmp.Compare(leadingNumber(ka), leadingNumber(kb))
		} else {
			c = strings.Compare(ka, kb)
		}
		if c == 0 && !f.on['u'] && !f.on['s'] {
			c = strings.Compare(a, b)
		}
		if reverse {
			c = -c
		}
		return c
	}
	if f.on['c'] {
		if !slices.IsSortedFunc(all, compare) {
			return p.fail(errors.New("not sorted"))
		}
		return status
	}
	slices.SortStableFunc(all, compare)
	if f.on['u'] {
		all = slices.CompactFunc(all, func(a, b string) bool { return compare(a, b) == 0 })
	}
	if name := f.vals['o']; name != "" {
		out, err := os.Create(p.path(name))
		if err != nil {
			return p.fail(err)
		}
		defer out.Close()
		p.out = out
	}
	return p.buffered(func(w *bufio.Writer) int {
		for _, l := range all {
			_, _ = w.WriteString(l + "\n")
		}
		return status
	})
}

// leadingNumber is the number a text starts with, a suffix like K or M
// included, and 0 if there is none.
func leadingNumber(s string) float64 {
	s = strings.TrimLeft(s, " \t")
	i := 0
	for i < len(s) && (s[i] >= '0' && s[i] <= '9' || s[i] == '.' || i == 0 && s[i] == '-') {
		i++
	}
	v, err := strconv.ParseFloat(strings.TrimRight(s[:i], "."), 64)
	if err != nil {
		return 0
	}
	if i < len(s) {
		if e := strings.IndexByte("KMGT", s[i]); e >= 0 {
			v *= float64(int64(1) << (10 * (e + 1)))
		}
	}
	return v
}

func uniq(p *proc) int {
	f, err := p.flags("cdui", map[string]byte{"count": 'c', "repeated": 'd', "unique": 'u', "ignore-case": 'i'})
	if err != nil {
		return p.fail(err)
	}
	return p.buffered(func(w *bufio.Writer) int {
		var prev []byte
		n := 0
		show := func() {
			if n == 0 || f.on['d'] && n == 1 || f.on['u'] && n > 1 {
				return
			}
			if f.on['c'] {
				fmt.Fprintf(w, "%7d ", n)
			}
			_, _ = w.Write(append(prev, '\n'))
		}
		status := p.each(f.args[:min(len(f.args), 1)], func(_ string, r io.Reader) error {
			return lines(r, func(b []byte) bool {
				if n > 0 && (bytes.Equal(b, prev) || f.on['i'] && bytes.EqualFold(b, prev)) {
					n++
					return true
				}
				show()
				prev, n = bytes.Clone(b), 1
				return true
			})
		})
		show()
		return status
	})
}
