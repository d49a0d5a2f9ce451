package main

import (
	"bufio"
	"cmp"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func typeLetter(m fs.FileMode) rune {
	switch {
	case m.IsDir():
		return 'd'
	case m&fs.ModeSymlink != 0:
		return 'l'
	case m&fs.ModeNamedPipe != 0:
		return 'p'
	case m&fs.ModeSocket != 0:
		return 's'
	case m&fs.ModeCharDevice != 0:
		return 'c'
	case m&fs.ModeDevice != 0:
		return 'b'
	default:
		return 'f'
	}
}

// modeString is the mode as ls -l shows it.
func modeString(m fs.FileMode) string {
	t := typeLetter(m)
	if t == 'f' {
		t = '-'
	}
	b := []byte(string(t) + m.Perm().String()[1:])
	set := func(on bool, i int, exec, plain byte) {
		if on {
			if b[i] == 'x' {
				b[i] = exec
			} else {
				b[i] = plain
			}
		}
	}
	set(m&fs.ModeSetuid != 0, 3, 's', 'S')
	set(m&fs.ModeSetgid != 0, 6, 's', 'S')
	set(m&fs.ModeSticky != 0, 9, 't', 'T')
	return string(b)
}

// human is a size with a unit.
func human(n int64) string {
	v, unit := float64(n), ""
	for _, u := range []string{"K", "M", "G", "T"} {
		if v < 1024 {
			break
		}
		v, unit = v/1024, u
	}
	if unit == "" || v >= 10 {
		return strconv.FormatFloat(v, 'f', 0, 64) + unit
	}
	return strconv.FormatFloat(v, 'f', 1, 64) + unit
}

type listed struct {
	name string
	path string
	info fs.FileInfo
}

func ls(p *proc) int {
	f, err := p.flags("laA1hRrtSdFinC", map[string]byte{"all": 'a', "almost-all": 'A', "human-readable": 'h', "recursive": 'R', "reverse": 'r'})
	if err != nil {
		p.fail(err)
		return 2
	}
	if len(f.args) == 0 {
		f.args = []string{"."}
	}
	names := map[string]map[int]string{"/etc/passwd": accounts("/etc/passwd"), "/etc/group": accounts("/etc/group")}
	if f.on['n'] {
		names = nil
	}
	return p.buffered(func(w *bufio.Writer) int {
		status := 0
		var files []listed
		var dirs []string
		for _, a := range f.args {
			stat := os.Stat
			if f.on['l'] || f.on['d'] {
				stat = os.Lstat
			}
			st, err := stat(p.path(a))
			if err != nil {
				if st, err = os.Lstat(p.path(a)); err != nil {
					p.fail(err)
					status = 2
					continue
				}
			}
			if st.IsDir() && !f.on['d'] {
				dirs = append(dirs, a)
			} else {
				files = append(files, listed{a, p.path(a), st})
			}
		}
		sortListed(files, f)
		printListed(w, files, f, names)
		for i := 0; i < len(dirs); i++ {
			d := dirs[i]
			list, err := os.ReadDir(p.path(d))
			if err != nil {
				p.fail(err)
				status = 2
				continue
			}
			var in []listed
			if f.on['a'] {
				for _, dot := range []string{".", ".."} {
					if st, err := os.Stat(filepath.Join(p.path(d), dot)); err == nil {
						in = append(in, listed{dot, filepath.Join(p.path(d), dot), st})
					}
				}
			}
			var below []string
			for _, e := range list {
				if strings.HasPrefix(e.Name(), ".") && !f.on['a'] && !f.on['A'] {
					continue
				}
				st, err := e.Info()
				if err != nil {
					continue
				}
				in = append(in, listed{e.Name(), filepath.Join(p.path(d), e.Name()), st})
				if f.on['R'] && st.IsDir() {
					below = append(below, filepath.Join(d, e.Name()))
				}
			}
			if len(f.args) > 1 || f.on['R'] {
				if i > 0 || len(files) > 0 {
					fmt.Fprintln(w)
				}
				fmt.Fprintf(w, "%s:\n", d)
			}
			sortListed(in, f)
			if f.on['l'] {
				var blocks int64
				for _, e := range in {
					if sys, ok := e.info.Sys().(*syscall.Stat_t); ok {
						blocks += sys.Blocks
					}
				}
				fmt.Fprintf(w, "total %d\n", blocks/2)
			}
			printListed(w, in, f, names)
			dirs = slices.Insert(dirs, i+1, below...)
		}
		return status
	})
}

func sortListed(l []listed, f flagSet) {
	slices.SortStableFunc(l, func(a, b listed) int {
		c := 0
		switch {
		case f.on['t']:
			c = b.info.ModTime().Compare(a.info.ModTime())
		case f.on['S']:
			c = cmp.Compare(b.info.Size(), a.info.Size())
		}
		if c == 0 {
			c = strings.Compare(a.name, b.name)
		}
		if f.on['r'] {
			c = -c
		}
		return c
	})
}

func printListed(w *bufio.Writer, l []listed, f flagSet, names map[string]map[int]string) {
	var rows [][]string
	width := make([]int, 6)
	for _, e := range l {
		name := e.name
		if f.on['F'] {
			switch {
			case e.info.IsDir():
				name += "/"
			case e.info.Mode()&fs.ModeSymlink != 0:
				name += "@"
			case e.info.Mode().IsRegular() && e.info.Mode()&0o111 != 0:
				name += "*"
			}
		}
		sys, _ := e.info.Sys().(*syscall.Stat_t)
		if sys == nil {
			sys = &syscall.Stat_t{}
		}
		if f.on['i'] {
			fmt.Fprintf(w, "%d ", sys.Ino)
		}
		if !f.on['l'] && !f.on['n'] {
			fmt.Fprintln(w, name)
			continue
		}
		if e.info.Mode()&fs.ModeSymlink != 0 {
			if target, err := os.Readlink(e.path); err == nil {
				name += " -> " + target
			}
		}
		size := strconv.FormatInt(e.info.Size(), 10)
		if f.on['h'] {
			size = human(e.info.Size())
		}
		if e.info.Mode()&fs.ModeDevice != 0 {
			size = fmt.Sprintf("%d, %d", sys.Rdev>>8&0xfff, sys.Rdev&0xff)
		}
		stamp := "Jan _2 15:04"
		if age := time.Since(e.info.ModTime()); age > 180*24*time.Hour || age < -time.Hour {
			stamp = "Jan _2  2006"
		}
		row := []string{modeString(e.info.Mode()), strconv.FormatUint(sys.Nlink, 10), nameOf(names["/etc/passwd"], sys.Uid), nameOf(names["/etc/group"], sys.Gid), size, e.info.ModTime().Format(stamp), name}
		for i := range width {
			width[i] = max(width[i], len(row[i]))
		}
		rows = append(rows, row)
	}
	for _, r := range rows {
		fmt.Fprintf(w, "%s %*s %-*s %-*s %*s %s %s\n", r[0], width[1], r[1], width[2], r[2], width[3], r[3], width[4], r[4], r[5], r[6])
	}
}

func nameOf(names map[int]string, id uint32) string {
	if n, ok := names[int(id)]; ok {
		return n
	}
	return strconv.FormatUint(uint64(id), 10)
}

func globRegexp(glob string) (*regexp.Regexp, error) {
	q := regexp.QuoteMeta(glob)
	q = strings.NewReplacer(`\*`, ".*", `\?`, ".", `\[`, "[", `\]`, "]").Replace(q)
	return regexp.Compile("^" + q + "$")
}

// stat prints what is known of files; -c takes a format.
func stat(p *proc) int {
	f, err := p.flags("c:Lf", map[string]byte{"format": 'c', "printf": 'c'})
	if err != nil || len(f.args) == 0 {
		return p.usage("[-L] [-c format] file...")
	}
	format, ok := f.vals['c']
	if !ok {
		format = "  File: %n\n  Size: %s\tBlocks: %b\t%F\nDevice: %d\tInode: %i\tLinks: %h\nAccess: (%a/%A)  Uid: (%u/%U)  Gid: (%g/%G)\nModify: %y"
	}
	status := 0
	for _, a := range f.args {
		get := os.Lstat
		if f.on['L'] {
			get = os.Stat
		}
		st, err := get(p.path(a))
		if err != nil {
			status = p.fail(err)
			continue
		}
		sys, _ := st.Sys().(*syscall.Stat_t)
		if sys == nil {
			sys = &syscall.Stat_t{}
		}
		kind := map[rune]string{'d': "directory", 'l': "symbolic link", 'p': "fifo", 's': "socket", 'c': "character special file", 'b': "block special file", 'f': "regular file"}[typeLetter(st.Mode())]
		if kind == "regular file" && st.Size() == 0 {
			kind = "regular empty file"
		}
		var b strings.Builder
		for i := 0; i < len(format); i++ {
			if format[i] != '%' || i+1 == len(format) {
				b.WriteByte(format[i])
				continue
			}
			i++
			vals := map[byte]any{'n': a, 's': st.Size(), 'b': sys.Blocks, 'B': 512, 'F': kind, 'd': sys.Dev, 'i': sys.Ino, 'h': sys.Nlink,
				'a': strconv.FormatUint(uint64(sys.Mode&0o7777), 8), 'A': modeString(st.Mode()), 'f': strconv.FormatUint(uint64(sys.Mode), 16),
				'u': sys.Uid, 'g': sys.Gid, 'U': nameOf(accounts("/etc/passwd"), sys.Uid), 'G': nameOf(accounts("/etc/group"), sys.Gid),
				'y': st.ModTime().Format("2006-01-02 15:04:05.000000000 -0700"), 'Y': st.ModTime().Unix(), 'o': sys.Blksize, '%': "%"}
			if v, ok := vals[format[i]]; ok {
				fmt.Fprint(&b, v)
			} else {
				b.WriteString("?")
			}
		}
		fmt.Fprintln(p.out, b.String())
	}
	return status
}
