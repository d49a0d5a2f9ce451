package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// sedAddr is one address: a line number, the last line or a pattern.
type sedAddr struct {
	line int
	last bool
	re   *regexp.Regexp
}

// sedCmd is one command with the lines it is for.
type sedCmd struct {
	from, to *sedAddr
	not      bool
	verb     byte
	re       *regexp.Regexp
	text     string
	flags    string
	nth      int
	active   bool
}

// sed knows the commands s, y, d, p, q, =, a, i and c with line numbers, "$",
// patterns and ranges of them, and the options -n, -e, -E, -r and -i. It has no
// hold space and no jumps.
func sed(p *proc) int {
	args := p.args
	// -i has its suffix in the same word or none at all.
	inPlace, suffix := false, ""
	var rest []string
	for _, a := range args {
		if strings.HasPrefix(a, "-i") {
			inPlace, suffix = true, a[2:]
			continue
		}
		rest = append(rest, a)
	}
	p.args = rest
	var scripts []string
	for i := 0; i+1 < len(rest); i++ {
		if rest[i] == "-e" {
			scripts = append(scripts, rest[i+1])
		}
	}
	f, err := p.flags("nEre:su", map[string]byte{"expression": 'e', "quiet": 'n', "regexp-extended": 'E'})
	if err != nil {
		return p.fail(err)
	}
	if v, ok := f.vals['e']; ok && len(scripts) == 0 {
		scripts = []string{v}
	}
	if len(scripts) == 0 {
		if len(f.args) == 0 {
			return p.usage("[-nE] [-i[suffix]] [-e] script [file...]")
		}
		scripts, f.args = f.args[:1], f.args[1:]
	}
	extended := f.on['E'] || f.on['r']
	parse := func() ([]*sedCmd, error) { return parseSed(strings.Join(scripts, "\n"), extended) }
	cmds, err := parse()
	if err != nil {
		return p.fail(err)
	}
	if !inPlace {
		return p.buffered(func(w *bufio.Writer) int {
			var in []io.Reader
			if len(f.args) == 0 {
				in = append(in, p.in)
			}
			status := 0
			for _, a := range f.args {
				r, err := p.open(a)
				if err != nil {
					status = p.fail(err)
					continue
				}
				defer r.Close()
				in = append(in, r)
			}
			if err := sedRun(cmds, io.MultiReader(in...), w, f.on['n']); err != nil {
				return p.fail(err)
			}
			return status
		})
	}
	status := 0
	for _, a := range f.args {
		if cmds, err = parse(); err == nil {
			err = sedInPlace(cmds, p.path(a), suffix, f.on['n'])
		}
		if err != nil {
			status = p.fail(err)
		}
	}
	return status
}

func sedInPlace(cmds []*sedCmd, path, suffix string, quiet bool) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	if suffix != "" {
		if err := os.WriteFile(path+suffix, b, st.Mode().Perm()); err != nil {
			return err
		}
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".sed-*")
	if err != nil {
		return err
	}
	w := bufio.NewWriter(tmp)
	err = errors.Join(sedRun(cmds, bytes.NewReader(b), w, quiet), w.Flush(), tmp.Chmod(st.Mode()), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		_ = os.Remove(tmp.Name())
	}
	return err
}

// sedScanner reads a script.
type sedScanner struct {
	s        string
	extended bool
}

func (c *sedScanner) skip(set string) { c.s = strings.TrimLeft(c.s, set) }

// until returns the text up to an unescaped delimiter outside brackets.
func (c *sedScanner) until(delim byte, brackets bool) (string, error) {
	var b strings.Builder
	in := false
	for i := 0; i < len(c.s); i++ {
		ch := c.s[i]
		switch {
		case ch == '\\' && i+1 < len(c.s):
			i++
			if c.s[i] != delim {
				b.WriteByte('\\')
			}
			b.WriteByte(c.s[i])
		case ch == delim && !in:
			c.s = c.s[i+1:]
			return b.String(), nil
		default:
			if brackets && ch == '[' && !in {
				in = true
			} else if ch == ']' && in && !strings.HasSuffix(b.String(), "[") && !strings.HasSuffix(b.String(), "[^") {
				in = false
			}
			b.WriteByte(ch)
		}
	}
	return "", fmt.Errorf("missing %q in script", delim)
}

func (c *sedScanner) regexp(pattern, flags string) (*regexp.Regexp, error) {
	if !c.extended {
		pattern = basicRegexp(pattern)
	}
	pattern = strings.NewReplacer(`\<`, `\b`, `\>`, `\b`).Replace(pattern)
	if strings.ContainsAny(flags, "iI") {
		pattern = "(?i)" + pattern
	}
	return regexp.Compile(pattern)
}

func (c *sedScanner) addr() (*sedAddr, error) {
	switch {
	case c.s == "":
		return nil, nil
	case c.s[0] == '$':
		c.s = c.s[1:]
		return &sedAddr{last: true}, nil
	case c.s[0] == '/':
		c.s = c.s[1:]
		pattern, err := c.until('/', true)
		if err != nil {
			return nil, err
		}
		re, err := c.regexp(pattern, "")
		return &sedAddr{re: re}, err
	case c.s[0] >= '0' && c.s[0] <= '9':
		num := c.s[:len(c.s)-len(strings.TrimLeft(c.s, "0123456789"))]
		c.s = c.s[len(num):]
		n, err := strconv.Atoi(num)
		return &sedAddr{line: n}, err
	}
	return nil, nil
}

func parseSed(script string, extended bool) ([]*sedCmd, error) {
	c := &sedScanner{s: script, extended: extended}
	var out []*sedCmd
	for {
		if c.skip(" \t\n;"); c.s == "" {
			return out, nil
		}
		if c.s[0] == '#' {
			_, c.s, _ = strings.Cut(c.s, "\n")
			continue
		}
		cmd := &sedCmd{}
		var err error
		if cmd.from, err = c.addr(); err != nil {
			return nil, err
		}
		if cmd.from != nil && strings.HasPrefix(c.s, ",") {
			c.s = c.s[1:]
			if cmd.to, err = c.addr(); err != nil || cmd.to == nil {
				return nil, errors.Join(errors.New("bad range in script"), err)
			}
		}
		if c.skip(" \t"); strings.HasPrefix(c.s, "!") {
			cmd.not = true
			c.s = c.s[1:]
			c.skip(" \t")
		}
		if c.s == "" {
			return nil, errors.New("script ends after an address")
		}
		cmd.verb, c.s = c.s[0], c.s[1:]
		switch cmd.verb {
		case 's', 'y':
			err = c.substitute(cmd)
		case 'd', 'p', 'q', '=':
		case 'a', 'i', 'c':
			c.skip(" \t")
			c.s = strings.TrimPrefix(strings.TrimPrefix(c.s, "\\"), "\n")
			cmd.text, c.s, _ = strings.Cut(c.s, "\n")
		default:
			err = fmt.Errorf("command %q is not supported", cmd.verb)
		}
		if err != nil {
			return nil, err
		}
		out = append(out, cmd)
	}
}

func (c *sedScanner) substitute(cmd *sedCmd) error {
	if c.s == "" {
		return errors.New("s needs a pattern")
	}
	delim := c.s[0]
	c.s = c.s[1:]
	pattern, err := c.until(delim, cmd.verb == 's')
	if err != nil {
		return err
	}
	if cmd.text, err = c.until(delim, false); err != nil {
		return err
	}
	if cmd.verb == 'y' {
		if cmd.flags = pattern; len([]rune(pattern)) != len([]rune(cmd.text)) {
			return errors.New("the two lists of y differ in length")
		}
		return nil
	}
	cmd.flags = c.s[:len(c.s)-len(strings.TrimLeft(c.s, "gpiI0123456789"))]
	c.s = c.s[len(cmd.flags):]
	cmd.nth = 1
	if num := strings.Trim(cmd.flags, "gpiI"); num != "" {
		if cmd.nth, err = strconv.Atoi(num); err != nil || cmd.nth < 1 {
			return fmt.Errorf("bad flags %q of s", cmd.flags)
		}
	}
	cmd.re, err = c.regexp(pattern, cmd.flags)
	return err
}

func (a *sedAddr) matches(line int, text string, last bool) bool {
	return a.re != nil && a.re.MatchString(text) || a.last && last || a.line > 0 && a.line == line
}

func (cmd *sedCmd) selects(line int, text string, last bool) bool {
	sel := true
	switch {
	case cmd.to != nil && cmd.active:
		if cmd.to.line > 0 {
			cmd.active = line < cmd.to.line
			sel = line <= cmd.to.line || cmd.to.re != nil
		} else {
			cmd.active = !cmd.to.matches(line, text, last)
		}
	case cmd.from != nil:
		if sel = cmd.from.matches(line, text, last); sel && cmd.to != nil {
			cmd.active = cmd.to.line == 0 || cmd.to.line > line
		}
	}
	return sel != cmd.not
}

func sedRun(cmds []*sedCmd, r io.Reader, w *bufio.Writer, quiet bool) error {
	var pending *string
	line, stop := 0, false
	step := func(text string, last bool) {
		line++
		var after []string
		deleted := false
		for _, cmd := range cmds {
			if !cmd.selects(line, text, last) {
				continue
			}
			switch cmd.verb {
			case 's':
				out, n := cmd.replace(text)
				if text = out; n > 0 && strings.Contains(cmd.flags, "p") {
					_, _ = w.WriteString(text + "\n")
				}
			case 'y':
				to := []rune(cmd.text)
				from := []rune(cmd.flags)
				text = strings.Map(func(c rune) rune {
					for i, f := range from {
						if f == c {
							return to[i]
						}
					}
					return c
				}, text)
			case 'p':
				_, _ = w.WriteString(text + "\n")
			case '=':
				fmt.Fprintln(w, line)
			case 'a':
				after = append(after, cmd.text)
			case 'i':
				_, _ = w.WriteString(cmd.text + "\n")
			case 'c':
				if cmd.to == nil || !cmd.active {
					_, _ = w.WriteString(cmd.text + "\n")
				}
				deleted = true
			case 'd':
				deleted = true
			case 'q':
				stop = true
			}
			if deleted || stop {
				break
			}
		}
		if !deleted && !quiet {
			_, _ = w.WriteString(text + "\n")
		}
		for _, a := range after {
			_, _ = w.WriteString(a + "\n")
		}
	}
	err := lines(r, func(b []byte) bool {
		if pending != nil {
			step(*pending, false)
		}
		next := string(b)
		pending = &next
		return !stop
	})
	if pending != nil && !stop {
		step(*pending, true)
	}
	return err
}

func (cmd *sedCmd) replace(text string) (string, int) {
	var b strings.Builder
	all := strings.Contains(cmd.flags, "g")
	at, count, done := 0, 0, 0
	for _, m := range cmd.re.FindAllStringSubmatchIndex(text, -1) {
		if count++; count < cmd.nth || done > 0 && !all {
			continue
		}
		b.WriteString(text[at:m[0]])
		at = m[1]
		done++
		for i := 0; i < len(cmd.text); i++ {
			switch c := cmd.text[i]; {
			case c == '&':
				b.WriteString(text[m[0]:m[1]])
			case c == '\\' && i+1 < len(cmd.text):
				i++
				switch d := cmd.text[i]; {
				case d >= '0' && d <= '9':
					if g := int(d-'0') * 2; g+1 < len(m) && m[g] >= 0 {
						b.WriteString(text[m[g]:m[g+1]])
					}
				case d == 'n':
					b.WriteByte('\n')
				case d == 't':
					b.WriteByte('\t')
				default:
					b.WriteByte(d)
				}
			default:
				b.WriteByte(c)
			}
		}
	}
	b.WriteString(text[at:])
	return b.String(), done
}
