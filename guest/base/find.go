package main

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// finder is one run of find: tests that must all hold, then actions.
type finder struct {
	p        *proc
	min, max int
	tests    []func(path string, info fs.FileInfo) bool
	acted    bool
	deepest  bool
	status   int
}

func findFiles(p *proc) int {
	f := &finder{p: p, max: 1 << 30}
	var roots []string
	args := p.args
	for len(args) > 0 && !strings.HasPrefix(args[0], "-") && args[0] != "!" {
		roots, args = append(roots, args[0]), args[1:]
	}
	if len(roots) == 0 {
		roots = []string{"."}
	}
	if err := f.parse(args); err != nil {
		return p.fail(err)
	}
	if !f.acted {
		f.tests = append(f.tests, f.print("\n"))
	}
	for _, root := range roots {
		info, err := os.Lstat(p.path(root))
		if err != nil {
			f.status = p.fail(err)
			continue
		}
		f.walk(root, info, 0)
	}
	return f.status
}

func (f *finder) parse(args []string) error {
	not := false
	add := func(t func(string, fs.FileInfo) bool) {
		if not {
			inner := t
			t = func(p string, i fs.FileInfo) bool { return !inner(p, i) }
			not = false
		}
		f.tests = append(f.tests, t)
	}
	for len(args) > 0 {
		op := args[0]
		args = args[1:]
		value := func() (string, error) {
			if len(args) == 0 {
				return "", fmt.Errorf("%s needs a value", op)
			}
			v := args[0]
			args = args[1:]
			return v, nil
		}
		switch op {
		case "!", "-not":
			not = !not
		case "-a", "-and", "-xdev", "-mount":
			// One file system is all there is in most sandboxes.
		case "-print":
			f.acted = true
			add(f.print("\n"))
		case "-print0":
			f.acted = true
			add(f.print("\x00"))
		case "-delete":
			f.acted, f.deepest = true, true
			add(func(path string, _ fs.FileInfo) bool {
				if err := os.Remove(f.p.path(path)); err != nil {
					f.status = f.p.fail(err)
				}
				return true
			})
		case "-depth":
			f.deepest = true
		case "-empty":
			add(f.empty)
		case "-exec":
			end := -1
			for i, a := range args {
				if a == ";" || a == "+" {
					end = i
					break
				}
			}
			if end < 1 {
				return fmt.Errorf("-exec needs a command and \";\"")
			}
			f.acted = true
			add(f.run(args[:end]))
			args = args[end+1:]
		default:
			v, err := value()
			if err != nil {
				return err
			}
			t, err := f.test(op, v)
			if err != nil {
				return err
			}
			if t != nil {
				add(t)
			}
		}
	}
	return nil
}

// test returns the test of an option that has a value.
func (f *finder) test(op, v string) (func(string, fs.FileInfo) bool, error) {
	switch op {
	case "-maxdepth", "-mindepth":
		n, err := strconv.Atoi(v)
		if err != nil {
			return nil, fmt.Errorf("%s: %q is not a number", op, v)
		}
		if op == "-maxdepth" {
			f.max = n
		} else {
			f.min = n
		}
		return nil, nil
	case "-name", "-iname":
		fold := func(s string) string { return s }
		if op == "-iname" {
			fold = strings.ToLower
		}
		if _, err := filepath.Match(v, ""); err != nil {
			return nil, fmt.Errorf("%s: bad pattern %q", op, v)
		}
		return func(path string, _ fs.FileInfo) bool {
			ok, _ := filepath.Match(fold(v), fold(filepath.Base(path)))
			return ok
		}, nil
	case "-path":
		re, err := globRegexp(v)
		if err != nil {
			return nil, err
		}
		return func(path string, _ fs.FileInfo) bool { return re.MatchString(path) }, nil
	case "-type":
		return func(_ string, info fs.FileInfo) bool { return strings.ContainsRune(v, typeLetter(info.Mode())) }, nil
	case "-size", "-mtime", "-mmin":
		sign, num := 0, v
		switch {
		case strings.HasPrefix(v, "+"):
			sign, num = 1, v[1:]
		case strings.HasPrefix(v, "-"):
			sign, num = -1, v[1:]
		}
		unit := strings.TrimLeft(num, "0123456789")
		n, err := strconv.ParseInt(strings.TrimSuffix(num, unit), 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%s: bad number %q", op, v)
		}
		return func(_ string, info fs.FileInfo) bool {
			var have int64
			switch op {
			case "-mtime":
				have = int64(time.Since(info.ModTime()) / (24 * time.Hour))
			case "-mmin":
				have = int64(time.Since(info.ModTime()) / time.Minute)
			default:
				u := map[string]int64{"": 512, "b": 512, "c": 1, "k": 1 << 10, "M": 1 << 20, "G": 1 << 30}[unit]
				have = (info.Size() + max(u, 1) - 1) / max(u, 1)
			}
			return sign < 0 && have < n || sign > 0 && have > n || sign == 0 && have == n
		}, nil
	case "-newer":
		ref, err := os.Stat(f.p.path(v))
		if err != nil {
			return nil, err
		}
		return func(_ string, info fs.FileInfo) bool { return info.ModTime().After(ref.ModTime()) }, nil
	default:
		return nil, fmt.Errorf("unknown test %q", op)
	}
}

func (f *finder) walk(path string, info fs.FileInfo, depth int) {
	if f.p.ctx.Err() != nil {
		return
	}
	if !f.deepest {
		f.visit(path, info, depth)
	}
	if info.IsDir() && depth < f.max {
		list, err := os.ReadDir(f.p.path(path))
		if err != nil {
			f.status = f.p.fail(err)
		}
		for _, e := range list {
			if child, err := e.Info(); err == nil {
				f.walk(strings.TrimSuffix(path, "/")+"/"+e.Name(), child, depth+1)
			}
		}
	}
	if f.deepest {
		f.visit(path, info, depth)
	}
}

func (f *finder) visit(path string, info fs.FileInfo, depth int) {
	if depth < f.min {
		return
	}
	for _, t := range f.tests {
		if !t(path, info) {
			return
		}
	}
}

func (f *finder) print(end string) func(string, fs.FileInfo) bool {
	return func(path string, _ fs.FileInfo) bool {
		_, err := fmt.Fprint(f.p.out, path, end)
		return err == nil
	}
}

func (f *finder) empty(path string, info fs.FileInfo) bool {
	if !info.IsDir() {
		return info.Mode().IsRegular() && info.Size() == 0
	}
	list, err := os.ReadDir(f.p.path(path))
	return err == nil && len(list) == 0
}

func (f *finder) run(words []string) func(string, fs.FileInfo) bool {
	return func(path string, _ fs.FileInfo) bool {
		args := make([]string, len(words))
		for i, w := range words {
			args[i] = strings.ReplaceAll(w, "{}", path)
		}
		return f.p.spawn(args, nil) == 0
	}
}

// spawn runs another program and waits for it; more is added to the
// environment.
func (p *proc) spawn(args, more []string) int {
	path, err := p.lookPath(args[0])
	if err != nil {
		fmt.Fprintf(p.err, "%s: %s: not found\n", p.name, args[0])
		return 127
	}
	cmd := exec.CommandContext(p.ctx, path, args[1:]...)
	cmd.Args[0] = args[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = p.in, p.out, p.err
	cmd.Dir, cmd.Env = p.dir, slices.Concat(p.env, more)
	return statusCode(waitStatus(cmd.Run()))
}

// lookPath finds a program by the command's own PATH.
func (p *proc) lookPath(name string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	list, ok := p.lookupEnv("PATH")
	if !ok {
		list = "/usr/local/bin:/usr/bin:/bin"
	}
	for _, dir := range filepath.SplitList(list) {
		path := filepath.Join(p.path(dir), name)
		if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", exec.ErrNotFound
}
