//go:build !sirocco_net

package main

// network returns nothing: this program was built without the network commands.
func network(string) command { return nil }
