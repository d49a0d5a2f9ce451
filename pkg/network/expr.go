package network

import (
	"encoding/binary"
	"net"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The parts rules are made of. Those that load something into a register name
// it; the others use reg1.

func one(e expr.Any) []expr.Any { return []expr.Any{e} }

func concat(parts ...[]expr.Any) []expr.Any {
	var all []expr.Any
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

func cmp(op expr.CmpOp, data []byte) []expr.Any {
	return one(&expr.Cmp{Op: op, Register: reg1, Data: data})
}

func native32(v uint32) []byte { return binaryutil.NativeEndian.PutUint32(v) }

func verdict(kind expr.VerdictKind, chain string) []expr.Any {
	return one(&expr.Verdict{Kind: kind, Chain: chain})
}

// iface compares an interface's name; without a zero byte at its end the name is
// a prefix.
func iface(key expr.MetaKey, op expr.CmpOp, name string) []expr.Any {
	return append(one(&expr.Meta{Key: key, Register: reg1}), cmp(op, []byte(name))...)
}

func ipv4(op expr.CmpOp) []expr.Any {
	return append(one(&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg1}), cmp(op, []byte{unix.NFPROTO_IPV4})...)
}

func l4(proto byte) []expr.Any {
	return append(one(&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg1}), cmp(expr.CmpOpEq, []byte{proto})...)
}

func saddr(reg uint32) []expr.Any { return address(reg, 12) }
func daddr(reg uint32) []expr.Any { return address(reg, 16) }

func address(reg, at uint32) []expr.Any {
	return one(&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: at, Len: net.IPv4len})
}

func dport(port uint16) []expr.Any {
	return append(one(&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}),
		cmp(expr.CmpOpEq, binary.BigEndian.AppendUint16(nil, port))...)
}

// dport53 compares the port a connection was opened to, before any translation.
func dport53() []expr.Any {
	return append(one(&expr.Ct{Register: reg1, Key: expr.CtKeyPROTODST, Direction: 0}),
		cmp(expr.CmpOpEq, binary.BigEndian.AppendUint16(nil, 53))...)
}

func in(set *nftables.Set, reg uint32) []expr.Any {
	return one(&expr.Lookup{SourceRegister: reg, SetName: set.Name, SetID: set.ID})
}

// ctState matches if the connection's state is one of those in the mask.
func ctState(mask uint32) []expr.Any {
	return concat(
		one(&expr.Ct{Register: reg1, Key: expr.CtKeySTATE}),
		one(&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 4, Mask: native32(mask), Xor: native32(0)}),
		cmp(expr.CmpOpNeq, native32(0)))
}

// over keeps one limit for each key in reg1 and matches once it is exceeded.
func (r *rules) over(set *nftables.Set, op uint32, limit expr.Any) []expr.Any {
	return one(&expr.Dynset{SrcRegKey: reg1, SetName: set.Name, SetID: set.ID, Operation: op, Exprs: one(limit)})
}

// fromRange matches source addresses of the node's slots.
func (r *rules) fromRange() []expr.Any {
	mask := net.CIDRMask(r.cidr.Bits(), 32)
	return concat(saddr(reg1),
		one(&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 4, Mask: mask, Xor: make([]byte, 4)}),
		cmp(expr.CmpOpEq, r.cidr.Addr().AsSlice()))
}
