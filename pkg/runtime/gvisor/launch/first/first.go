// Package first is what runsc does before gVisor's packages initialise, which takes
// 5 to 8 ms of a processor and leaves some threads behind.
//
// Its work is in the value of a variable: the Go linker initialises packages in the
// order of their paths as far as imports allow, and this one comes before the many of
// gvisor.dev. It imports next to nothing, so that its own way is short. A wrong guess
// about the order costs only time.
package first

import "os"

var _ = run(os.Args)

// run does what the command line asks for. It returns to whatever gVisor does with
// that command line, or not at all.
func run(args []string) struct{} {
	if isUnmount(args) {
		os.Exit(unmount(args))
	}
	joinErr = joinAndRestart(args)
	return struct{}{}
}
