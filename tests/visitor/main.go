// Command visitor is what the end-to-end tests run inside sandboxes: servers of
// every kind that tunnels carry, and a guest that tries what it must not be able
// to do. It is a static program, so that it runs in any image.
package main

import (
	"fmt"
	"os"
	"strconv"
)

func main() {
	if len(os.Args) < 2 {
		fail("want a command")
	}
	args := os.Args[2:]
	commands := map[string]func([]string) error{
		"http": serveHTTP, "tcp": serveTCP, "tls": serveTLS,
		"eat": eat, "fork": fork, "fill": fill, "spew": spew, "try": try, "dial": dial, "route": route, "catch": catch, "size": size,
	}
	run, ok := commands[os.Args[1]]
	if !ok {
		fail("no command " + os.Args[1])
	}
	if err := run(args); err != nil {
		fail(err.Error())
	}
}

func fail(why string) {
	fmt.Fprintln(os.Stderr, "visitor:", why)
	os.Exit(1)
}

// number returns argument i as a number, or def without one.
func number(args []string, i, def int) int {
	if i >= len(args) {
		return def
	}
	n, err := strconv.Atoi(args[i])
	if err != nil {
		fail(err.Error())
	}
	return n
}
