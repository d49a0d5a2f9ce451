package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// accounts maps the ids of passwd or group to names.

func accounts(file string) map[int]string {
	out := map[int]string{}
	b, err := os.ReadFile(file)
	if err != nil {
		return out
	}
	for _, l := range strings.Split(string(b), "\n") {
		if f := strings.Split(l, ":"); len(f) > 2 {
			if id, err := strconv.Atoi(f[2]); err == nil {
				if _, ok := out[id]; !ok {
					out[id] = f[0]
				}
			}
		}
	}
	return out
}

// accountID is the id of a name, or the number it is.

func accountID(file, name string) (int, error) {
	if id, err := strconv.Atoi(name); err == nil {
		return id, nil
	}
	for id, n := range accounts(file) {
		if n == name {
			return id, nil
		}
	}
	return 0, fmt.Errorf("no such account %q", name)
}

func uname(p *proc) int {
	f, err := p.flags("asnrvmpio", map[string]byte{"all": 'a'})
	if err != nil {
		return p.fail(err)
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return p.fail(err)
	}
	var out []string
	for _, part := range []struct {
		c byte
		v []byte
	}{{'s', u.Sysname[:]}, {'n', u.Nodename[:]}, {'r', u.Release[:]}, {'v', u.Version[:]}, {'m', u.Machine[:]}, {'o', []byte("GNU/Linux")}} {
		if f.on[part.c] || f.on['a'] || len(f.on) == 0 && part.c == 's' || (f.on['p'] || f.on['i']) && part.c == 'm' {
			v, _, _ := bytes.Cut(part.v, []byte{0})
			out = append(out, string(v))
		}
	}
	fmt.Fprintln(p.out, strings.Join(out, " "))
	return 0
}

func hostname(p *proc) int {
	if len(p.args) > 0 && !strings.HasPrefix(p.args[0], "-") {
		if err := unix.Sethostname([]byte(p.args[0])); err != nil {
			return p.fail(err)
		}
		return 0
	}
	name, err := os.Hostname()
	if err != nil {
		return p.fail(err)
	}
	fmt.Fprintln(p.out, name)
	return 0
}

func env(p *proc) int {
	list, args := slices.Clone(p.env), p.args
	for len(args) > 0 {
		switch a := args[0]; {
		case a == "-i" || a == "-":
			list = nil
		case a == "-u" && len(args) > 1:
			args = args[1:]
			list = slices.DeleteFunc(list, func(e string) bool { return strings.HasPrefix(e, args[0]+"=") })
		case strings.Contains(a, "="):
			name, _, _ := strings.Cut(a, "=")
			list = slices.DeleteFunc(list, func(e string) bool { return strings.HasPrefix(e, name+"=") })
			list = append(list, a)
		default:
			p.env = list
			return p.spawn(args, nil)
		}
		args = args[1:]
	}
	for _, e := range list {
		fmt.Fprintln(p.out, e)
	}
	return 0
}

func printenv(p *proc) int {
	if len(p.args) == 0 {
		return env(p)
	}
	status := 0
	for _, a := range p.args {
		if v, ok := p.lookupEnv(a); ok {
			fmt.Fprintln(p.out, v)
		} else {
			status = 1
		}
	}
	return status
}

func id(p *proc) int {
	f, err := p.flags("ugGnr", nil)
	if err != nil {
		return p.fail(err)
	}
	users, groups := accounts("/etc/passwd"), accounts("/etc/group")
	uid, gid := os.Geteuid(), os.Getegid()
	if p.name == "whoami" {
		f.on = map[byte]bool{'u': true, 'n': true}
	}
	show := func(names map[int]string, n int) string {
		if v, ok := names[n]; ok && f.on['n'] {
			return v
		}
		return strconv.Itoa(n)
	}
	all, _ := os.Getgroups()
	if !slices.Contains(all, gid) {
		all = append([]int{gid}, all...)
	}
	var list []string
	switch {
	case f.on['u']:
		fmt.Fprintln(p.out, show(users, uid))
	case f.on['g']:
		fmt.Fprintln(p.out, show(groups, gid))
	case f.on['G']:
		for _, g := range all {
			list = append(list, show(groups, g))
		}
		fmt.Fprintln(p.out, strings.Join(list, " "))
	default:
		both := func(names map[int]string, n int) string {
			if v, ok := names[n]; ok {
				return fmt.Sprintf("%d(%s)", n, v)
			}
			return strconv.Itoa(n)
		}
		for _, g := range all {
			list = append(list, both(groups, g))
		}
		fmt.Fprintf(p.out, "uid=%s gid=%s groups=%s\n", both(users, uid), both(groups, gid), strings.Join(list, ","))
	}
	return 0
}

// strftime formats a time the way date does.

func strftime(format string, t time.Time) string {
	var b strings.Builder
	for i := 0; i < len(format); i++ {
		if format[i] != '%' || i+1 == len(format) {
			b.WriteByte(format[i])
			continue
		}
		i++
		layouts := map[byte]string{'Y': "2006", 'y': "06", 'm': "01", 'd': "02", 'e': "_2", 'H': "15", 'I': "03", 'M': "04", 'S': "05", 'p': "PM",
			'Z': "MST", 'z': "-0700", 'A': "Monday", 'a': "Mon", 'B': "January", 'b': "Jan", 'F': "2006-01-02", 'T': "15:04:05", 'R': "15:04", 'D': "01/02/06", 'c': "Mon Jan _2 15:04:05 2006"}
		switch c := format[i]; c {
		case 's':
			fmt.Fprint(&b, t.Unix())
		case 'N':
			fmt.Fprintf(&b, "%09d", t.Nanosecond())
		case 'j':
			fmt.Fprintf(&b, "%03d", t.YearDay())
		case 'u':
			fmt.Fprint(&b, (int(t.Weekday())+6)%7+1)
		case 'w':
			fmt.Fprint(&b, int(t.Weekday()))
		case 'n':
			b.WriteByte('\n')
		case 't':
			b.WriteByte('\t')
		case '%':
			b.WriteByte('%')
		default:
			if l, ok := layouts[c]; ok {
				b.WriteString(t.Format(l))
			} else {
				b.WriteString(format[i-1 : i+1])
			}
		}
	}
	return b.String()
}

func date(p *proc) int {
	f, err := p.flags("uRI:d:r:", map[string]byte{"utc": 'u', "date": 'd', "reference": 'r'})
	if err != nil {
		return p.fail(err)
	}
	t := time.Now()
	if name := f.vals['r']; name != "" {
		st, err := os.Stat(p.path(name))
		if err != nil {
			return p.fail(err)
		}
		t = st.ModTime()
	}
	if d := f.vals['d']; d != "" {
		if t, err = parseDate(d); err != nil {
			return p.fail(err)
		}
	}
	if f.on['u'] {
		t = t.UTC()
	}
	format := "%a %b %e %H:%M:%S %Z %Y"
	switch {
	case len(f.args) > 0 && strings.HasPrefix(f.args[0], "+"):
		format = f.args[0][1:]
	case strings.HasPrefix(f.vals['I'], "s"):
		format = "%FT%T%z"
	case f.on['I']:
		format = "%F"
	case f.on['R']:
		format = "%a, %d %b %Y %T %z"
	}
	fmt.Fprintln(p.out, strftime(format, t))
	return 0
}

func parseDate(d string) (time.Time, error) {
	if s, ok := strings.CutPrefix(d, "@"); ok {
		n, err := strconv.ParseInt(s, 10, 64)
		return time.Unix(n, 0), err
	}
	for _, l := range []string{time.RFC3339, "2006-01-02 15:04:05", "2006-01-02T15:04:05", "2006-01-02 15:04", "2006-01-02"} {
		if t, err := time.ParseInLocation(l, d, time.Local); err == nil {
			return t, nil
		}
	}
	if d == "now" {
		return time.Now(), nil
	}
	return time.Time{}, fmt.Errorf("%q is not a date", d)
}

// duration reads seconds, or a number with s, m, h or d.

// signalNumber reads a signal by name or number.

// process is one line of ps.

// pgrep and pkill find processes by a part of their name.

func nproc(p *proc) int {
	var set unix.CPUSet
	n := 1
	if err := unix.SchedGetaffinity(0, &set); err == nil {
		n = set.Count()
	}
	fmt.Fprintln(p.out, n)
	return 0
}

func uptime(p *proc) int {
	var s unix.Sysinfo_t
	if err := unix.Sysinfo(&s); err != nil {
		return p.fail(err)
	}
	fmt.Fprintf(p.out, "up %s, load average: %.2f %.2f %.2f\n", time.Duration(s.Uptime)*time.Second,
		float64(s.Loads[0])/65536, float64(s.Loads[1])/65536, float64(s.Loads[2])/65536)
	return 0
}

func free(p *proc) int {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return p.fail(err)
	}
	v := map[string]int64{}
	for _, l := range strings.Split(string(b), "\n") {
		if f := strings.Fields(l); len(f) > 1 {
			n, _ := strconv.ParseInt(f[1], 10, 64)
			v[strings.TrimSuffix(f[0], ":")] = n
		}
	}
	fmt.Fprintf(p.out, "%-6s %12s %12s %12s %12s\n", "", "total", "used", "free", "available")
	fmt.Fprintf(p.out, "%-6s %12d %12d %12d %12d\n", "Mem:", v["MemTotal"], v["MemTotal"]-v["MemAvailable"], v["MemFree"], v["MemAvailable"])
	fmt.Fprintf(p.out, "%-6s %12d %12d %12d\n", "Swap:", v["SwapTotal"], v["SwapTotal"]-v["SwapFree"], v["SwapFree"])
	return 0
}

func df(p *proc) int {
	f, err := p.flags("hkPTa", nil)
	if err != nil {
		return p.fail(err)
	}
	if len(f.args) == 0 {
		b, err := os.ReadFile("/proc/self/mounts")
		if err != nil {
			return p.fail(err)
		}
		for _, l := range strings.Split(string(b), "\n") {
			if m := strings.Fields(l); len(m) > 1 {
				f.args = append(f.args, m[1])
			}
		}
	}
	size := func(n uint64) string {
		if f.on['h'] {
			return human(int64(n))
		}
		return strconv.FormatUint(n/1024, 10)
	}
	fmt.Fprintf(p.out, "%12s %12s %12s %4s %s\n", "Size", "Used", "Available", "Use%", "Mounted on")
	status := 0
	for _, a := range f.args {
		var s unix.Statfs_t
		if err := unix.Statfs(p.path(a), &s); err != nil {
			status = p.fail(fmt.Errorf("%s: %w", a, err))
			continue
		}
		unit := uint64(max(s.Bsize, 1))
		if s.Blocks == 0 {
			continue
		}
		used := s.Blocks - s.Bfree
		fmt.Fprintf(p.out, "%12s %12s %12s %3d%% %s\n", size(s.Blocks*unit), size(used*unit), size(s.Bavail*unit), used*100/s.Blocks, a)
	}
	return status
}

func du(p *proc) int {
	f, err := p.flags("shakd:cbx", map[string]byte{"summarize": 's', "max-depth": 'd', "human-readable": 'h'})
	if err != nil {
		return p.fail(err)
	}
	depth, err := f.number('d', 1<<30)
	if err != nil {
		return p.fail(err)
	}
	if f.on['s'] {
		depth = 0
	}
	if len(f.args) == 0 {
		f.args = []string{"."}
	}
	seen := map[uint64]bool{}
	status := 0
	var walk func(path string, level int64) int64
	walk = func(path string, level int64) int64 {
		st, err := os.Lstat(p.path(path))
		if err != nil {
			status = p.fail(err)
			return 0
		}
		total := st.Size()
		if sys, ok := st.Sys().(*syscall.Stat_t); ok {
			if !f.on['b'] {
				total = sys.Blocks * 512
			}
			if sys.Nlink > 1 && !st.IsDir() {
				if seen[sys.Ino] {
					return 0
				}
				seen[sys.Ino] = true
			}
		}
		if st.IsDir() {
			list, err := os.ReadDir(p.path(path))
			if err != nil {
				status = p.fail(err)
			}
			for _, e := range list {
				total += walk(filepath.Join(path, e.Name()), level+1)
			}
		}
		if level <= depth && (st.IsDir() || f.on['a'] || level == 0) {
			n := strconv.FormatInt((total+1023)/1024, 10)
			switch {
			case f.on['h']:
				n = human(total)
			case f.on['b']:
				n = strconv.FormatInt(total, 10)
			}
			fmt.Fprintf(p.out, "%s\t%s\n", n, path)
		}
		return total
	}
	for _, a := range f.args {
		walk(a, 0)
	}
	return status
}

func tty(p *proc) int {
	f, ok := p.in.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		fmt.Fprintln(p.out, "not a tty")
		return 1
	}
	name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	if err != nil {
		return p.fail(err)
	}
	fmt.Fprintln(p.out, name)
	return 0
}

func syncDisks(*proc) int {
	unix.Sync()
	return 0
}
