package platform

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// cutPrefix begins the names of the tables that tests make.
const cutPrefix = "sirocco-tests-"

// Network cuts processes of this machine off from each other: packets between them
// vanish, in both directions, as they do when a cable is pulled. Nobody is told:
// connections stay open and hang, new ones get no answer. A proxy between them would
// close or stall connections instead, would have to stand between each pair, and
// servers that tell clients of each other (as NATS does) would lead around it.
//
// All speak over loopback with one address, so a packet does not say whose it is;
// the kernel knows the cgroup of the socket that sends it, and of the one that is to
// have it. Its table is its own: no rule of anybody else is touched.
type Network struct {
	conn    *nftables.Conn
	table   *nftables.Table
	in, out *nftables.Chain
}

// openNetwork makes the table, without a rule.
func openNetwork(fleet string) (*Network, error) {
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return nil, fmt.Errorf("connect to nftables: %w", err)
	}
	n := &Network{conn: conn}
	n.table = conn.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: cutPrefix + strconv.Itoa(os.Getpid()) + "-" + fleet})
	chain := func(name string, hook *nftables.ChainHook) *nftables.Chain {
		return conn.AddChain(&nftables.Chain{Table: n.table, Name: name, Hooknum: hook, Priority: nftables.ChainPriorityFilter, Type: nftables.ChainTypeFilter})
	}
	n.in, n.out = chain("in", nftables.ChainHookInput), chain("out", nftables.ChainHookOutput)
	if err := conn.Flush(); err != nil {
		return nil, errors.Join(fmt.Errorf("make the table of cuts: %w", err), conn.CloseLasting())
	}
	return n, nil
}

// Isolate cuts a process off from everybody on loopback.
func (n *Network) Isolate(p *Process) error {
	if err := n.drop(p, n.out, 0, 0); err != nil {
		return err
	}
	if err := n.drop(p, n.in, 0, 0); err != nil {
		return err
	}
	return n.flush()
}

// Cut cuts a process off from others, and them from it.
func (n *Network) Cut(p *Process, others ...*Process) error {
	for _, other := range others {
		for _, pair := range [][2]*Process{{p, other}, {other, p}} {
			for _, port := range pair[1].ports {
				// What it sends to the other's port, and what comes from there.
				if err := n.drop(pair[0], n.out, toPort, port); err != nil {
					return err
				}
				if err := n.drop(pair[0], n.in, fromPort, port); err != nil {
					return err
				}
			}
		}
	}
	return n.flush()
}

// Where a TCP header has its ports.
const (
	fromPort = 0
	toPort   = 2
)

// drop adds a rule: packets of the process's sockets, those with a port only unless
// it is 0, vanish.
func (n *Network) drop(p *Process, chain *nftables.Chain, where uint32, port int) error {
	if p.group == nil {
		return fmt.Errorf("%s has no cgroup of its own", p.Name)
	}
	id, err := p.group.id()
	if err != nil {
		return err
	}
	const reg = 1
	match := []expr.Any{
		&expr.Socket{Key: expr.SocketKeyCgroupv2, Level: groupLevel, Register: reg},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: binaryutil.NativeEndian.PutUint64(id)},
	}
	if port != 0 {
		match = append(match,
			&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: where, Len: 2},
			&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: binary.BigEndian.AppendUint16(nil, uint16(port))}) //nolint:gosec // a port
	}
	match = append(match, &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop})
	n.conn.AddRule(&nftables.Rule{Table: n.table, Chain: chain, Exprs: match})
	return nil
}

func (n *Network) flush() error {
	if err := n.conn.Flush(); err != nil {
		return fmt.Errorf("cut the network: %w", err)
	}
	return nil
}

// Dropped returns how many packets have vanished since the network was cut.
func (n *Network) Dropped() (packets uint64, err error) {
	for _, chain := range []*nftables.Chain{n.in, n.out} {
		rules, err := n.conn.GetRules(n.table, chain)
		if err != nil {
			return 0, fmt.Errorf("read the rules of cuts: %w", err)
		}
		for _, r := range rules {
			for _, e := range r.Exprs {
				if c, ok := e.(*expr.Counter); ok {
					packets += c.Packets
				}
			}
		}
	}
	return packets, nil
}

// Heal lets all packets pass again.
func (n *Network) Heal() error {
	n.conn.FlushChain(n.in)
	n.conn.FlushChain(n.out)
	if err := n.conn.Flush(); err != nil {
		return fmt.Errorf("heal the network: %w", err)
	}
	return nil
}

func (n *Network) close() error {
	n.conn.DelTable(n.table)
	return errors.Join(n.conn.Flush(), n.conn.CloseLasting())
}

// sweepCuts removes the tables of tests that are gone.
func sweepCuts() error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("connect to nftables: %w", err)
	}
	tables, err := conn.ListTablesOfFamily(unix.NFPROTO_IPV4)
	if err != nil {
		return fmt.Errorf("list tables: %w", err)
	}
	for _, t := range tables {
		if strings.HasPrefix(t.Name, cutPrefix) && orphaned(t.Name) {
			conn.DelTable(t)
		}
	}
	return conn.Flush()
}
