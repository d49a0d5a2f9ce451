package main

import (
	"github.com/u-root/u-root/pkg/core/base64"
	"github.com/u-root/u-root/pkg/core/chmod"
	"github.com/u-root/u-root/pkg/core/mkdir"
	"github.com/u-root/u-root/pkg/core/touch"
)

// find returns the command of a name, or nil. It is a switch and not a map, so
// that nothing has to be built before a command can run.
func find(name string) command {
	switch name {
	case "sh", "bash", "ash":
		return sh
	case "nohup":
		return nohup
	case "env":
		return env
	case "timeout":
		return timeout
	}
	if run := network(name); run != nil {
		return run
	}
	return inProcess(name)
}

// inProcess returns a command that the shell may run without a process of its
// own: one that ends when its context does or its input is at the end.
func inProcess(name string) command {
	switch name {
	case "[", "test", "printf":
		return builtin
	case "base64":
		return uroot(base64.New)
	case "basename":
		return basename
	case "cat":
		return cat
	case "chmod":
		return uroot(chmod.New)
	case "chown", "chgrp":
		return chown
	case "cp":
		return cp
	case "cut":
		return cut
	case "date":
		return date
	case "dd":
		return dd
	case "df":
		return df
	case "dirname":
		return dirname
	case "du":
		return du
	case "echo":
		return echo
	case "false":
		return func(*proc) int { return 1 }
	case "find":
		return findFiles
	case "free":
		return free
	case "grep", "egrep", "fgrep":
		return grep
	case "gzip", "gunzip", "zcat":
		return gzipFiles
	case "head":
		return head
	case "hexdump":
		return hexdump
	case "hostname":
		return hostname
	case "id", "whoami":
		return id
	case "kill":
		return kill
	case "ln":
		return ln
	case "ls":
		return ls
	case "md5sum":
		return md5sum
	case "mkdir":
		return uroot(mkdir.New)
	case "mktemp":
		return mktemp
	case "mv":
		return mv
	case "nproc":
		return nproc
	case "pgrep", "pkill", "pidof":
		return pgrep
	case "printenv":
		return printenv
	case "ps":
		return ps
	case "pwd":
		return pwd
	case "readlink", "realpath":
		return readlink
	case "rm":
		return rm
	case "rmdir":
		return rmdir
	case "sed":
		return sed
	case "seq":
		return seq
	case "sha1sum":
		return sha1sum
	case "sha256sum":
		return sha256sum
	case "sha512sum":
		return sha512sum
	case "sleep":
		return sleep
	case "sort":
		return sortLines
	case "stat":
		return stat
	case "stty":
		return stty
	case "sync":
		return syncDisks
	case "tac":
		return tac
	case "tail":
		return tail
	case "tar":
		return tarFiles
	case "tee":
		return tee
	case "touch":
		return uroot(touch.New)
	case "tr":
		return tr
	case "true":
		return func(*proc) int { return 0 }
	case "truncate":
		return truncate
	case "tty":
		return tty
	case "uname":
		return uname
	case "uniq":
		return uniq
	case "uptime":
		return uptime
	case "wc":
		return wc
	case "which":
		return which
	case "xargs":
		return xargs
	case "yes":
		return yes
	}
	return nil
}
