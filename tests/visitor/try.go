package main

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// eat takes memory, in MiB, and touches it. It never gives up.
func eat(args []string) error {
	var kept [][]byte
	for range number(args, 0, 1<<20) {
		b := make([]byte, 1<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		kept = append(kept, b)
	}
	fmt.Println("ate", len(kept), "MiB")
	return nil
}

// fork starts itself twice, again and again.
func fork([]string) error {
	for {
		for range 2 {
			cmd := exec.Command("/proc/self/exe", "fork")
			_ = cmd.Start()
		}
	}
}

// fill writes a file until the disk is full and prints how much it took.
func fill(args []string) error {
	f, err := os.Create(args[0])
	if err != nil {
		return err
	}
	var total int64
	buf := make([]byte, 1<<20)
	for i := range buf {
		buf[i] = byte(i * 7)
	}
	for {
		n, err := f.Write(buf)
		total += int64(n)
		if err != nil {
			fmt.Println(total, errors.Is(err, unix.ENOSPC))
			return nil
		}
	}
}

// spew prints n numbered lines on each output.
func spew(args []string) error {
	out, errs := bufio.NewWriter(os.Stdout), bufio.NewWriter(os.Stderr)
	for i := range number(args, 0, 1) {
		fmt.Fprintf(out, "out %09d\n", i)
		fmt.Fprintf(errs, "err %09d\n", i)
	}
	return errors.Join(out.Flush(), errs.Flush())
}

// try does what a sandbox must not be able to do, and prints what it could.
func try([]string) error {
	_ = os.MkdirAll("/tmp/m", 0o700)
	attempts := map[string]func() error{
		"mount a device":        func() error { return unix.Mount("/dev/sda1", "/tmp/m", "ext4", 0, "") },
		"mount cgroups":         func() error { return unix.Mount("none", "/tmp/m", "cgroup2", 0, "") },
		"mount the host":        func() error { return unix.Mount("/", "/tmp/m", "9p", 0, "trans=fd,rfdno=3,wfdno=3") },
		"load a module":         func() error { return unix.InitModule([]byte("x"), "") },
		"make a device":         func() error { return readDevice("/tmp/dev", unix.S_IFBLK|0o600, int(unix.Mkdev(8, 0))) },
		"read kernel memory":    func() error { return readDevice("/tmp/mem", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 1))) },
		"set the clock":         func() error { return unix.Settimeofday(&unix.Timeval{Sec: 1}) },
		"reboot":                func() error { return unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART) },
		"trace process 1":       func() error { return unix.PtraceAttach(1) },
		"enter a host process":  func() error { return chrootTo("/proc/1/root/../../..") },
		"open the host's mem":   func() error { return open("/dev/mem") },
		"open the host's disk":  func() error { return open("/dev/sda") },
		"open kvm":              func() error { return open("/dev/kvm") },
		"read the host's sysrq": func() error { return os.WriteFile("/proc/sysrq-trigger", []byte("h"), 0o200) },
		"open a raw socket":     rawSocket,
	}
	for name, attempt := range attempts {
		if err := attempt(); err == nil {
			fmt.Println(name)
		}
	}
	return nil
}

func open(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err == nil {
		_ = f.Close()
	}
	return err
}

// readDevice makes a device node and reads from it: the node alone is nothing.
func readDevice(path string, mode uint32, dev int) error {
	if err := unix.Mknod(path, mode, dev); err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	_, err = f.Read(make([]byte, 512))
	return err
}

// chrootTo succeeds if a path leads to another root than this one.
func chrootTo(path string) error {
	var here, there unix.Stat_t
	if err := errors.Join(unix.Stat("/", &here), unix.Stat(path, &there)); err != nil {
		return err
	}
	if here.Dev == there.Dev && here.Ino == there.Ino {
		return errors.New("the same root")
	}
	return nil
}

func rawSocket() error {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
	if err == nil {
		_ = unix.Close(fd)
	}
	return err
}

// dial tries to connect to each address and prints those that answer. An answer
// "refused" by the other side counts: somebody was reached.
func dial(args []string) error {
	var wg sync.WaitGroup
	for _, address := range args {
		wg.Go(func() {
			c, err := (&net.Dialer{Timeout: 2 * time.Second}).DialContext(context.Background(), "tcp", address)
			if err == nil {
				fmt.Println("reached", address)
				_ = c.Close()
			} else {
				fmt.Fprintln(os.Stderr, err)
			}
		})
	}
	wg.Wait()
	return nil
}

// route prints the default gateway.
func route([]string) error {
	raw, err := os.ReadFile("/proc/net/route")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(raw)) {
		f := strings.Fields(line)
		if len(f) < 8 || f[1] != "00000000" || f[7] != "00000000" {
			continue
		}
		b, err := hex.DecodeString(f[2])
		if err != nil || len(b) != 4 {
			continue
		}
		fmt.Println(netip.AddrFrom4([4]byte{b[3], b[2], b[1], b[0]}))
	}
	return nil
}

// catch waits for SIGTERM, says so and exits with 5.
func catch([]string) error {
	terms := make(chan os.Signal, 1)
	signal.Notify(terms, unix.SIGTERM)
	fmt.Println("ready")
	<-terms
	fmt.Println("caught")
	os.Exit(5)
	return nil
}

// size prints the rows and columns of its terminal.
func size([]string) error {
	ws, err := unix.IoctlGetWinsize(0, unix.TIOCGWINSZ)
	if err == nil {
		fmt.Println(ws.Row, ws.Col)
	}
	return err
}
