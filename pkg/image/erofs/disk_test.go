package erofs_test

import (
	"os"
	"syscall"
)

// blocks is the disk space of a file in bytes.
func blocks(st os.FileInfo) int64 { return st.Sys().(*syscall.Stat_t).Blocks * 512 }
