package main

import (
	"bytes"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// stackMax is how much of the end of the stack is searched: the environment is
// its last part, and that of a supervisor is small.
const stackMax = 256 << 10

// wipe overwrites an entry of the environment where the kernel put it, which is
// what /proc/1/environ shows. Where that is not possible, the process is still
// not dumpable, which keeps others from reading it.
func wipe(entry []byte) {
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return
	}
	for line := range strings.SplitSeq(string(maps), "\n") {
		if !strings.HasSuffix(line, "[stack]") {
			continue
		}
		span, _, _ := strings.Cut(line, " ")
		from, to, _ := strings.Cut(span, "-")
		start, err1 := strconv.ParseUint(from, 16, 64)
		end, err2 := strconv.ParseUint(to, 16, 64)
		if err1 != nil || err2 != nil || end <= start {
			return
		}
		wipeRange(uintptr(max(start, end-min(end, stackMax))), uintptr(end), entry)
		return
	}
}

func wipeRange(start, end uintptr, entry []byte) {
	pid := os.Getpid()
	buf := make([]byte, end-start)
	n, err := copyMemory(unix.ProcessVMReadv, pid, buf, start)
	if err != nil {
		return
	}
	if at := bytes.Index(buf[:n], entry); at >= 0 {
		clear(buf[at : at+len(entry)])
		_, _ = copyMemory(unix.ProcessVMWritev, pid, buf[at:at+len(entry)], start+uintptr(at))
	}
	clear(buf)
}

type copier func(pid int, local []unix.Iovec, remote []unix.RemoteIovec, flags uint) (int, error)

func copyMemory(do copier, pid int, p []byte, at uintptr) (int, error) {
	local := []unix.Iovec{{Base: &p[0]}}
	local[0].SetLen(len(p))
	return do(pid, local, []unix.RemoteIovec{{Base: at, Len: len(p)}}, 0)
}
