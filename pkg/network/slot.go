package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
)

// Slot is the network of one sandbox. It does not change while it is held, and
// nobody may change it.
type Slot struct {
	// ID is the sandbox that holds it.
	ID string
	// NetNS is the path of the namespace.
	NetNS string
	// Interface is the host's end. Inside, the interface is called eth0.
	Interface string
	// Address is the sandbox's and Gateway the host's; together they are a network
	// of length 31.
	Address, Gateway netip.Addr
	// MAC is the hardware address inside, the same in every slot.
	MAC net.HardwareAddr
	// MTU of both ends, in bytes: that of the uplink.
	MTU int
	// DNS are the resolvers the sandbox may use, unless its policy is Blocked.
	DNS []netip.Addr
	// Policy that applies to it.
	Policy Policy

	index int
}

// slot describes an index; nothing on the machine is touched.
func (p *Pool) slot(index int) *Slot {
	gateway, address := p.addrs.pair(index)
	return &Slot{
		NetNS: p.names.netns(index), Interface: p.names.link(index),
		Address: address, Gateway: gateway, MAC: slices.Clone(guestMAC), MTU: p.mtu, DNS: slices.Clone(p.dns), index: index,
	}
}

// build makes the namespace and the interfaces of a slot. It can reach nothing
// yet. On an error nothing of it stays behind.
func (p *Pool) build(s *Slot) error {
	w := wire{host: s.Interface, gateway: s.Gateway, address: s.Address, mtu: s.MTU, outer: p.host}
	err := makeNetNS(s.NetNS, w.fill)
	if err != nil {
		err = fmt.Errorf("make slot %s: %w", s.Interface, err)
		if undo := errors.Join(deleteLink(s.Interface), removeNetNS(s.NetNS)); undo != nil {
			p.log.Error("half-made network slot can't be removed", "slot", s.Interface, "err", undo)
		}
	}
	return err
}
