package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"
)

// state is what the program is to keep over a checkpoint.
var state kept

type kept struct {
	mu     sync.Mutex
	count  int
	block  []byte
	ends   []string
	spin   sync.Once
	gap    time.Duration
	verify func() error
}

// do carries out a line and returns the answer.
func (k *kept) do(f []string) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch f[0] {
	case "bump":
		k.count++
		return fmt.Sprint(k.count)
	case "keep":
		k.block = make([]byte, number(f[1]))
		_, _ = rand.Read(k.block)
		return fmt.Sprintf("%x", sha256.Sum256(k.block))
	case "kept":
		return fmt.Sprintf("%x", sha256.Sum256(k.block))
	case "spin":
		k.spin.Do(func() { go k.watch() })
		return "ok"
	case "gap":
		gap := k.gap
		k.gap = 0
		return fmt.Sprint(int64(gap))
	case "ends":
		return strings.Join(k.ends, "\n")
	case "prepare":
		verify, err := prepare()
		if err != nil {
			return err.Error()
		}
		k.verify = verify
		return "ok"
	}
	if err := k.verify(); err != nil {
		return err.Error()
	}
	return "ok"
}

func (k *kept) watch() {
	for last := time.Now(); ; {
		now := time.Now()
		k.mu.Lock()
		k.gap = max(k.gap, now.Sub(last))
		k.mu.Unlock()
		last = now
	}
}

func (k *kept) hold(r io.Reader) {
	n, err := io.Copy(io.Discard, r)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.ends = append(k.ends, fmt.Sprintf("%d %v", n, err))
}

// alarmAfter is when the timer of prepare goes off: after a checkpoint, if that is
// taken at once.
const alarmAfter = 300 * time.Millisecond

// prepare sets things up, and returns what looks at them once.
func prepare() (func() error, error) {
	text := bytes.Repeat([]byte("sand"), 100_000)
	dir := "/tmp/state"
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := errors.Join(os.WriteFile(dir+"/file", text, 0o640), os.WriteFile("/dev/shm/file", text, 0o600), os.Symlink("file", dir+"/link"),
		os.Chdir(dir), syscall.Sethostname([]byte("renamed"))); err != nil {
		return nil, err
	}
	open, err := os.OpenFile(dir+"/file", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	if _, err := open.Seek(100_002, io.SeekStart); err != nil {
		return nil, err
	}
	unlinked, err := os.Create(dir + "/unlinked")
	if err != nil {
		return nil, err
	}
	if _, err := unlinked.Write(text); err != nil {
		return nil, err
	}
	if err := os.Remove(dir + "/unlinked"); err != nil {
		return nil, err
	}
	pipeR, pipeW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	if _, err := pipeW.WriteString("in the pipe"); err != nil {
		return nil, err
	}
	here, there, err := connection()
	if err != nil {
		return nil, err
	}
	if _, err := here.Write(text[:50_000]); err != nil {
		return nil, err
	}
	child := exec.Command("/proc/self/exe", "cat")
	toChild, err := child.StdinPipe()
	if err != nil {
		return nil, err
	}
	fromChild, err := child.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := child.Start(); err != nil {
		return nil, err
	}
	alarms := make(chan os.Signal, 2)
	signal.Notify(alarms, syscall.SIGALRM)
	after := [4]int64{2: 0, 3: alarmAfter.Microseconds()} // struct itimerval
	if _, _, errno := syscall.Syscall(syscall.SYS_SETITIMER, 0, uintptr(unsafe.Pointer(&after)), 0); errno != 0 {
		return nil, errno
	}
	return func() error {
		var errs []error
		same := func(what string, r io.Reader, want []byte) {
			got := make([]byte, len(want))
			if _, err := io.ReadFull(r, got); err != nil || !bytes.Equal(got, want) {
				errs = append(errs, fmt.Errorf("%s: %.20q, want %.20q, %v", what, got, want, err))
			}
		}
		for _, name := range []string{"file", "link", "/dev/shm/file"} {
			b, err := os.ReadFile(name)
			if err != nil || !bytes.Equal(b, text) {
				errs = append(errs, fmt.Errorf("%s: %d bytes, %v", name, len(b), err))
			}
		}
		if host, err := os.Hostname(); host != "renamed" {
			errs = append(errs, fmt.Errorf("hostname %q, %v", host, err))
		}
		same("open file", open, text[100_002:])
		if _, err := unlinked.Seek(0, io.SeekStart); err != nil {
			errs = append(errs, err)
		}
		same("unlinked file", unlinked, text)
		if _, err := pipeW.WriteString(" and more"); err != nil {
			errs = append(errs, err)
		}
		same("pipe", pipeR, []byte("in the pipe and more"))
		same("socket", there, text[:50_000])
		if _, err := there.Write([]byte("back")); err != nil {
			errs = append(errs, err)
		}
		same("socket", here, []byte("back"))
		if _, err := io.WriteString(toChild, "to a child"); err != nil {
			errs = append(errs, err)
		}
		same("child", fromChild, []byte("to a child"))
		select {
		case <-alarms:
		case <-time.After(10 * alarmAfter):
			errs = append(errs, errors.New("the timer did not go off"))
		}
		return errors.Join(append(errs, toChild.Close(), child.Wait())...)
	}, nil
}

// connection returns both ends of one over the loopback device.
func connection() (here, there net.Conn, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	defer l.Close()
	if here, err = (&net.Dialer{}).DialContext(context.Background(), "tcp", l.Addr().String()); err != nil {
		return nil, nil, err
	}
	there, err = l.Accept()
	return here, there, err
}

// tick prints a number for each line.
func tick() {
	lines := bufio.NewScanner(os.Stdin)
	for n := 1; ; n++ {
		fmt.Println(n)
		if !lines.Scan() {
			return
		}
	}
}
