package first

import "syscall"

// prCapBSetDrop is PR_CAPBSET_DROP of prctl(2).
const prCapBSetDrop = 24

// unused are the capabilities that no process of a sandbox needs on this machine, not
// even to set itself up: capabilities(7), by number.
var unused = []uintptr{
	9,  // LINUX_IMMUTABLE
	11, // NET_BROADCAST
	14, // IPC_LOCK
	15, // IPC_OWNER
	16, // SYS_MODULE
	17, // SYS_RAWIO
	20, // SYS_PACCT
	22, // SYS_BOOT
	23, // SYS_NICE
	25, // SYS_TIME
	26, // SYS_TTY_CONFIG
	28, // LEASE
	29, // AUDIT_WRITE
	30, // AUDIT_CONTROL
	32, // MAC_OVERRIDE
	33, // MAC_ADMIN
	34, // SYSLOG
	35, // WAKE_ALARM
	36, // BLOCK_SUSPEND
	37, // AUDIT_READ
	38, // PERFMON
	39, // BPF
	40, // CHECKPOINT_RESTORE
}

// dropCapabilities takes from this thread, and from what it will start, the chance to
// get the unused ones. gVisor drops all but those of the sandbox, by stopping all
// threads for each; what is gone by then it need not. So a failure is not reported.
func dropCapabilities() {
	for _, c := range unused {
		_, _, _ = syscall.RawSyscall(syscall.SYS_PRCTL, prCapBSetDrop, c, 0)
	}
}
