// Package applet names the commands of the base userland, for the program that
// is all of them and for the image that has a symbolic link for each.
package applet

import "slices"

// The file names of the programs in /bin of the base image. NetProgram is the
// same program built with the tag sirocco_net; without it, Program is linked to
// all names.
const (
	Program    = "sirocco-base"
	NetProgram = "sirocco-base-net"
)

// Net says whether a command needs the program with the network commands.
func Net(name string) bool { return slices.Contains([]string{"httpd", "nc", "wget"}, name) }

// Names returns the names of all commands, sorted.
func Names() []string {
	return []string{
		"[", "ash", "base64", "basename", "bash", "cat", "chgrp", "chmod", "chown", "cp", "cut", "date", "dd", "df", "dirname", "du",
		"echo", "egrep", "env", "false", "fgrep", "find", "free", "grep", "gunzip", "gzip", "head", "hexdump", "hostname", "httpd",
		"id", "kill", "ln", "ls", "md5sum", "mkdir", "mktemp", "mv", "nc", "nohup", "nproc", "pgrep", "pidof", "pkill", "printenv",
		"printf", "ps", "pwd", "readlink", "realpath", "rm", "rmdir", "sed", "seq", "sh", "sha1sum", "sha256sum", "sha512sum",
		"sleep", "sort", "stat", "stty", "sync", "tac", "tail", "tar", "tee", "test", "timeout", "touch", "tr", "true", "truncate", "tty",
		"uname", "uniq", "uptime", "wc", "wget", "which", "whoami", "xargs", "yes", "zcat",
	}
}
