package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

func echo(p *proc) int {
	args, newline, escapes := p.args, true, false
flags:
	for len(args) > 0 && len(args[0]) > 1 && args[0][0] == '-' {
		for _, c := range args[0][1:] {
			if c != 'n' && c != 'e' && c != 'E' {
				break flags
			}
		}
		newline = newline && !strings.Contains(args[0], "n")
		escapes = strings.Contains(args[0], "e") || escapes && !strings.Contains(args[0], "E")
		args = args[1:]
	}
	if escapes {
		p.args = append([]string{"%b"}, strings.Join(args, " "))
		p.name = "printf"
		if code := builtin(p); code != 0 || !newline {
			return code
		}
		args = nil
	}
	line := strings.Join(args, " ")
	if newline {
		line += "\n"
	}
	if _, err := io.WriteString(p.out, line); err != nil {
		return p.fail(err)
	}
	return 0
}

func cat(p *proc) int {
	f, err := p.flags("nu", nil)
	if err != nil {
		return p.fail(err)
	}
	line := 0
	return p.each(f.args, func(_ string, r io.Reader) error {
		if !f.on['n'] {
			_, err := io.Copy(p.out, r)
			return err
		}
		var werr error
		err := lines(r, func(b []byte) bool {
			line++
			_, werr = fmt.Fprintf(p.out, "%6d\t%s\n", line, b)
			return werr == nil
		})
		return errors.Join(err, werr)
	})
}

// countFlag turns the old form -5 into -n 5.
func countFlag(args []string) []string {
	out := slices.Clone(args)
	for i, a := range out {
		value := i > 0 && (args[i-1] == "-n" || args[i-1] == "-c")
		if !value && len(a) > 1 && a[0] == '-' && a[1] >= '0' && a[1] <= '9' {
			out[i] = "-n" + a[1:]
		}
	}
	return out
}

func head(p *proc) int {
	p.args = countFlag(p.args)
	f, err := p.flags("n:c:qv", nil)
	if err != nil {
		return p.fail(err)
	}
	n, err := f.number('n', 10)
	if err != nil {
		return p.fail(err)
	}
	c, err := f.number('c', -1)
	if err != nil {
		return p.fail(err)
	}
	first := true
	return p.buffered(func(w *bufio.Writer) int {
		return p.each(f.args, func(name string, r io.Reader) error {
			title(w, f, name, &first)
			if c >= 0 {
				_, err := io.CopyN(w, r, c)
				if errors.Is(err, io.EOF) {
					err = nil
				}
				return err
			}
			if n < 0 {
				return allButLast(w, r, int(-n))
			}
			left := n
			if left == 0 {
				return nil
			}
			return lines(r, func(b []byte) bool {
				_, _ = w.Write(append(b, '\n'))
				left--
				return left > 0
			})
		})
	})
}

func title(w io.Writer, f flagSet, name string, first *bool) {
	if len(f.args) > 1 && !f.on['q'] || f.on['v'] {
		if !*first {
			fmt.Fprintln(w)
		}
		fmt.Fprintf(w, "==> %s <==\n", name)
	}
	*first = false
}

func allButLast(w io.Writer, r io.Reader, n int) error {
	var keep [][]byte
	return lines(r, func(b []byte) bool {
		keep = append(keep, bytes.Clone(b))
		if len(keep) > n {
			_, _ = w.Write(append(keep[0], '\n'))
			keep = keep[1:]
		}
		return true
	})
}

func tail(p *proc) int {
	p.args = countFlag(p.args)
	f, err := p.flags("n:c:fFqv", nil)
	if err != nil {
		return p.fail(err)
	}
	from := strings.HasPrefix(f.vals['n'], "+") || strings.HasPrefix(f.vals['c'], "+")
	for _, c := range []byte("nc") {
		if v, ok := f.vals[c]; ok {
			f.vals[c] = strings.TrimLeft(v, "+-")
		}
	}
	n, err := f.number('n', 10)
	if err != nil {
		return p.fail(err)
	}
	c, err := f.number('c', -1)
	if err != nil {
		return p.fail(err)
	}
	first := true
	status := p.each(f.args, func(name string, r io.Reader) error {
		title(p.out, f, name, &first)
		w := bufio.NewWriter(p.out)
		err := tailOne(w, r, n, c, from)
		err = errors.Join(err, w.Flush())
		if file, ok := r.(*os.File); ok && err == nil && (f.on['f'] || f.on['F']) {
			return p.follow(file)
		}
		return err
	})
	return status
}

func tailOne(w io.Writer, r io.Reader, n, c int64, from bool) error {
	if c >= 0 {
		if from {
			_, err := io.CopyN(io.Discard, r, max(c-1, 0))
			if err == nil {
				_, err = io.Copy(w, r)
			}
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return err
		}
		buf, chunk := []byte(nil), make([]byte, 64<<10)
		for {
			m, err := r.Read(chunk)
			buf = append(buf, chunk[:m]...)
			if over := int64(len(buf)) - c; over > 0 {
				buf = append(buf[:0], buf[over:]...)
			}
			if err != nil {
				_, werr := w.Write(buf)
				if errors.Is(err, io.EOF) {
					return werr
				}
				return err
			}
		}
	}
	var keep [][]byte
	line := int64(0)
	err := lines(r, func(b []byte) bool {
		line++
		if from {
			if line >= n {
				_, _ = w.Write(append(b, '\n'))
			}
			return true
		}
		keep = append(keep, bytes.Clone(b))
		if int64(len(keep)) > n {
			keep = keep[1:]
		}
		return true
	})
	for _, b := range keep {
		_, _ = w.Write(append(b, '\n'))
	}
	return err
}

// follow prints what is appended to a file until the command is ended.
func (p *proc) follow(f *os.File) error {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-p.ctx.Done():
			return nil
		case <-tick.C:
			if _, err := io.Copy(p.out, f); err != nil {
				return err
			}
		}
	}
}

func wc(p *proc) int {
	f, err := p.flags("lwcm", map[string]byte{"lines": 'l', "words": 'w', "bytes": 'c', "chars": 'm'})
	if err != nil {
		return p.fail(err)
	}
	if len(f.on) == 0 {
		f.on = map[byte]bool{'l': true, 'w': true, 'c': true}
	}
	var total [4]int64
	show := func(n [4]int64, name string) {
		var cols []string
		for i, c := range []byte("lwmc") {
			if f.on[c] {
				cols = append(cols, strconv.FormatInt(n[i], 10))
			}
		}
		if name != "-" {
			cols = append(cols, name)
		}
		fmt.Fprintln(p.out, strings.Join(cols, " "))
	}
	status := p.each(f.args, func(name string, r io.Reader) error {
		var n [4]int64
		buf, inWord := make([]byte, 64<<10), false
		for {
			m, err := r.Read(buf)
			for _, b := range buf[:m] {
				if b == '\n' {
					n[0]++
				}
				space := b == ' ' || b >= '\t' && b <= '\r'
				if !space && !inWord {
					n[1]++
				}
				inWord = !space
				if utf8.RuneStart(b) {
					n[2]++
				}
			}
			n[3] += int64(m)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return err
			}
		}
		for i := range n {
			total[i] += n[i]
		}
		show(n, name)
		return nil
	})
	if len(f.args) > 1 {
		show(total, "total")
	}
	return status
}

func tee(p *proc) int {
	f, err := p.flags("ai", nil)
	if err != nil {
		return p.fail(err)
	}
	outs, status := []io.Writer{p.out}, 0
	for _, name := range f.args {
		how := os.O_TRUNC
		if f.on['a'] {
			how = os.O_APPEND
		}
		file, err := os.OpenFile(p.path(name), os.O_WRONLY|os.O_CREATE|how, 0o666)
		if err != nil {
			status = p.fail(err)
			continue
		}
		defer file.Close()
		outs = append(outs, file)
	}
	if _, err := io.Copy(io.MultiWriter(outs...), p.in); err != nil {
		return p.fail(err)
	}
	return status
}

func yes(p *proc) int {
	word := "y"
	if len(p.args) > 0 {
		word = strings.Join(p.args, " ")
	}
	block := []byte(strings.Repeat(word+"\n", 1+4096/(len(word)+1)))
	for p.ctx.Err() == nil {
		if _, err := p.out.Write(block); err != nil {
			return p.fail(err)
		}
	}
	return 1
}

func seq(p *proc) int {
	sep, args := "\n", p.args
	for len(args) > 1 && args[0] == "-s" {
		sep, args = args[1], args[2:]
	}
	n := []float64{1, 1, 1}
	for i, a := range args {
		v, err := strconv.ParseFloat(a, 64)
		if err != nil || i > 2 {
			return p.usage("[-s separator] [first [step]] last")
		}
		switch {
		case len(args) == 1:
			n[2] = v
		case len(args) == 2:
			n[i*2] = v
		default:
			n[i] = v
		}
	}
	if len(args) == 0 || n[1] == 0 {
		return p.usage("[-s separator] [first [step]] last")
	}
	return p.buffered(func(w *bufio.Writer) int {
		for i := 0; ; i++ {
			v := n[0] + float64(i)*n[1]
			if n[1] > 0 && v > n[2]+1e-9 || n[1] < 0 && v < n[2]-1e-9 {
				if i > 0 {
					_ = w.WriteByte('\n')
				}
				return 0
			}
			if i > 0 {
				_, _ = w.WriteString(sep)
			}
			if _, err := w.WriteString(strconv.FormatFloat(v, 'g', 12, 64)); err != nil || p.ctx.Err() != nil {
				return 1
			}
		}
	})
}

func tac(p *proc) int {
	return p.buffered(func(w *bufio.Writer) int {
		return p.each(p.args, func(_ string, r io.Reader) error {
			var all [][]byte
			err := lines(r, func(b []byte) bool { all = append(all, bytes.Clone(b)); return true })
			for _, b := range slices.Backward(all) {
				_, _ = w.Write(append(b, '\n'))
			}
			return err
		})
	})
}
