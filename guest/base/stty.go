package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// sttyFlag is a setting of a terminal that is on or off.
type sttyFlag struct {
	name string
	of   func(*unix.Termios) *uint32
	bit  uint32
}

func inputFlags(t *unix.Termios) *uint32  { return &t.Iflag }
func outputFlags(t *unix.Termios) *uint32 { return &t.Oflag }
func localFlags(t *unix.Termios) *uint32  { return &t.Lflag }

// sttyFlags are those that people switch, in the order in which they are shown.
func sttyFlags() []sttyFlag {
	return []sttyFlag{
		{"brkint", inputFlags, unix.BRKINT}, {"icrnl", inputFlags, unix.ICRNL}, {"inlcr", inputFlags, unix.INLCR},
		{"igncr", inputFlags, unix.IGNCR}, {"ixon", inputFlags, unix.IXON}, {"ixoff", inputFlags, unix.IXOFF}, {"iutf8", inputFlags, unix.IUTF8},
		{"opost", outputFlags, unix.OPOST}, {"onlcr", outputFlags, unix.ONLCR},
		{"isig", localFlags, unix.ISIG}, {"icanon", localFlags, unix.ICANON}, {"iexten", localFlags, unix.IEXTEN},
		{"echo", localFlags, unix.ECHO}, {"echoe", localFlags, unix.ECHOE}, {"echok", localFlags, unix.ECHOK},
		{"echonl", localFlags, unix.ECHONL}, {"noflsh", localFlags, unix.NOFLSH}, {"tostop", localFlags, unix.TOSTOP},
	}
}

// sttyMode returns what a setting of many flags at once stands for; "" if it is
// none.
func sttyMode(word string) string {
	switch word {
	case "raw":
		return "-brkint -icrnl -inlcr -igncr -ixon -opost -isig -icanon -iexten"
	case "-raw", "cooked":
		return "brkint icrnl ixon opost isig icanon iexten"
	case "cbreak":
		return "-icanon"
	case "-cbreak":
		return "icanon"
	case "sane":
		return "brkint icrnl -inlcr -igncr ixon -ixoff opost onlcr isig icanon iexten echo echoe echok -echonl -noflsh -tostop"
	}
	return ""
}

// stty shows and changes the terminal that is its standard input.
func stty(p *proc) int {
	f, ok := p.in.(*os.File)
	if !ok {
		return p.fail(unix.ENOTTY)
	}
	fd := int(f.Fd())
	mode, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return p.fail(fmt.Errorf("standard input: %w", err))
	}
	size, err := unix.IoctlGetWinsize(fd, unix.TIOCGWINSZ)
	if err != nil {
		return p.fail(fmt.Errorf("standard input: %w", err))
	}
	if len(p.args) == 0 || p.args[0] == "-a" {
		fmt.Fprintf(p.out, "rows %d; columns %d;\n%s\n", size.Row, size.Col, sttyText(mode))
		return 0
	}
	was, wasSize := *mode, *size
	for i := 0; i < len(p.args); i++ {
		a := p.args[i]
		switch a {
		case "size":
			fmt.Fprintf(p.out, "%d %d\n", size.Row, size.Col)
			continue
		case "-g":
			fmt.Fprintln(p.out, sttySaved(mode))
			continue
		case "rows", "cols", "columns", "min", "time":
			i++
			if i == len(p.args) || !sttyNumber(mode, size, a, p.args[i]) {
				return p.usage(sttyUsage)
			}
			continue
		}
		if !sttySet(mode, a) && !sttyRestore(mode, a) {
			fmt.Fprintf(p.err, "stty: invalid argument %q\n", a)
			return 1
		}
	}
	if *mode != was {
		err = unix.IoctlSetTermios(fd, unix.TCSETSW, mode)
	}
	if err == nil && *size != wasSize {
		err = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, size)
	}
	if err != nil {
		return p.fail(err)
	}
	return 0
}

const sttyUsage = "[-a | -g | size | rows n | cols n | min n | time n | [-]flag | raw | cooked | cbreak | sane | saved]..."

func sttyText(t *unix.Termios) string {
	var words []string
	for _, f := range sttyFlags() {
		if *f.of(t)&f.bit == 0 {
			words = append(words, "-"+f.name)
		} else {
			words = append(words, f.name)
		}
	}
	return strings.Join(words, " ")
}

// sttySet switches a flag or a mode, and says whether there is such a one.
func sttySet(t *unix.Termios, word string) bool {
	if words := sttyMode(word); words != "" {
		for w := range strings.FieldsSeq(words) {
			sttySet(t, w)
		}
		if word == "raw" {
			t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
		}
		return true
	}
	name, off := strings.CutPrefix(word, "-")
	for _, f := range sttyFlags() {
		if f.name == name {
			if off {
				*f.of(t) &^= f.bit
			} else {
				*f.of(t) |= f.bit
			}
			return true
		}
	}
	return false
}

func sttyNumber(t *unix.Termios, size *unix.Winsize, what, text string) bool {
	n, err := strconv.ParseUint(text, 10, 16)
	switch what {
	case "rows":
		size.Row = uint16(n)
	case "cols", "columns":
		size.Col = uint16(n)
	case "min":
		t.Cc[unix.VMIN] = uint8(n)
	case "time":
		t.Cc[unix.VTIME] = uint8(n)
	}
	return err == nil && (n < 256 || what == "rows" || strings.HasPrefix(what, "col"))
}

// sttySaved is the state of a terminal as one word, for sttyRestore.
func sttySaved(t *unix.Termios) string {
	words := []string{hex32(t.Iflag), hex32(t.Oflag), hex32(t.Cflag), hex32(t.Lflag)}
	for _, c := range t.Cc {
		words = append(words, hex32(uint32(c)))
	}
	return strings.Join(words, ":")
}

func hex32(n uint32) string { return strconv.FormatUint(uint64(n), 16) }

func sttyRestore(t *unix.Termios, saved string) bool {
	words := strings.Split(saved, ":")
	if len(words) != 4+len(t.Cc) {
		return false
	}
	n := make([]uint32, len(words))
	for i, w := range words {
		v, err := strconv.ParseUint(w, 16, 32)
		if err != nil || i >= 4 && v > 255 {
			return false
		}
		n[i] = uint32(v)
	}
	t.Iflag, t.Oflag, t.Cflag, t.Lflag = n[0], n[1], n[2], n[3]
	for i := range t.Cc {
		t.Cc[i] = uint8(n[4+i])
	}
	return true
}
