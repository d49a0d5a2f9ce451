// Package network gives every sandbox a network slot: a network namespace that
// is complete (loopback, one interface, address, routes, neighbour) before the
// sandbox is made, because gVisor copies what it finds there into its own stack.
//
// # Shape
//
// A slot is a namespace and a veth pair. Inside, the interface is called eth0
// and has one address of a /31; the other address of the pair is the gateway,
// on the host side. There is no bridge, and nothing is shared between slots.
// Both ends know each other's hardware address for good and the host's end does
// no ARP at all, so nothing that a sandbox says on the wire about addresses is
// listened to, and no probing tells it which addresses the host has. Hardware
// addresses are the same in every slot, so that a restored sandbox finds the
// ones it knew.
//
// # Policy
//
// What a sandbox may reach is decided outside of it, in one nftables table per
// node, which also masquerades. Every packet that comes from a slot is looked
// up by (interface, source address) in one map; what is not in it is dropped,
// so a wrong source address is, and so is a slot that nobody holds. The map
// names a chain for the policy. Sets hold what varies, so that the number of
// rules does not depend on the number of sandboxes.
//
// Under every policy the following can't be reached: the host at any of its
// addresses, other sandboxes of this and every other node on the machine, cloud
// metadata, link-local, private (RFC 1918), shared (100.64.0.0/10), loopback,
// multicast, broadcast and every other range that is not global, and what
// Config.Deny adds (the control plane's public addresses belong there). IPv6 is
// off. The single exception is DNS (port 53, UDP and TCP) to exactly the
// configured resolvers, where the policy lets anything out at all. The rules
// hold twice: before connection tracking sees the packet, and once more after
// any address translation of the machine itself.
//
// New connections are limited for each sandbox in rate and number (see
// Config.NewPerSecond and Config.MaxFlows), so that one can't fill the machine's
// connection table.
//
// # What it changes on the machine
//
// Forwarding is switched on for the slots' interfaces, for the uplinks (the
// interfaces of default routes) and for those that lead to resolvers, not
// globally; the setting stays after Close. Where the machine was no router
// before, its neighbours on those networks could now use it as one between
// exactly these interfaces, unless its firewall says otherwise.
// One unreachable route reserves the node's range, also against other agents on
// the machine. Nothing else of the machine's firewall is touched: if another
// table drops forwarded packets, Check says so.
//
// # Concurrency
//
// All methods of Pool may be called from any goroutine. Run owns the only
// background goroutine. Threads that enter a namespace are thrown away when
// they can't come back.
package network
