package network

import (
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// rateMemory is how long the rate limit remembers a slot that is silent; with a
// burst of five seconds' worth, forgetting it sooner would not be noticed.
const rateMemory = time.Minute

// Refusals are answered, so that a program in a sandbox fails at once instead of
// waiting, but no faster than this for the whole node.
const refusalsPerSecond = 1000

// Registers: reg1 has 16 bytes, reg2 the next 16; word0 and word1 are the first
// two 4-byte words of reg1.
const (
	reg1  = unix.NFT_REG_1
	reg2  = unix.NFT_REG_2
	word0 = unix.NFT_REG32_00
	word1 = unix.NFT_REG32_01
)

// chains writes all chains and rules. The order of the rules is the policy.
func (r *rules) chains(c *nftables.Conn) {
	accept := nftables.ChainPolicyAccept
	base := func(name string, hook *nftables.ChainHook, prio *nftables.ChainPriority, kind nftables.ChainType) *nftables.Chain {
		return c.AddChain(&nftables.Chain{Table: r.table, Name: name, Hooknum: hook, Priority: prio, Type: kind, Policy: &accept})
	}
	chain := func(name string) *nftables.Chain { return c.AddChain(&nftables.Chain{Table: r.table, Name: name}) }
	rule := func(ch *nftables.Chain, parts ...[]expr.Any) {
		var all []expr.Any
		for _, p := range parts {
			all = append(all, p...)
		}
		c.AddRule(&nftables.Rule{Table: r.table, Chain: ch, Exprs: all})
	}

	// Chains that others point to come first.
	refuse, open, allowed := chain(chainRefuse), chain(chainOpen), chain(chainAllowed)
	out, through, to := chain(chainOut), chain(chainThrough), chain(chainTo)

	limit := &expr.Limit{Type: expr.LimitTypePkts, Rate: refusalsPerSecond, Unit: expr.LimitTimeSecond, Burst: 100}
	rule(refuse, one(limit), l4(unix.IPPROTO_TCP), one(&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}))
	rule(refuse, one(limit), one(&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_HOST_UNREACH}))
	rule(refuse, verdict(expr.VerdictDrop, ""))

	for _, ch := range []*nftables.Chain{open, allowed} {
		for _, proto := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
			rule(ch, l4(proto), dport(53), daddr(reg1), in(r.resolvers, reg1), verdict(expr.VerdictAccept, ""))
		}
		rule(ch, daddr(reg1), in(r.never, reg1), verdict(expr.VerdictGoto, chainRefuse))
		// The host's own addresses, broadcasts and what has no route.
		rule(ch, one(&expr.Fib{Register: reg1, ResultADDRTYPE: true, FlagDADDR: true}),
			cmp(expr.CmpOpNeq, native32(unix.RTN_UNICAST)), verdict(expr.VerdictGoto, chainRefuse))
	}
	rule(open, verdict(expr.VerdictAccept, ""))
	rule(allowed, saddr(word0), daddr(word1), in(r.allowed, word0), verdict(expr.VerdictAccept, ""))
	rule(allowed, verdict(expr.VerdictGoto, chainRefuse))

	byPolicy := concat(one(&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg1}), saddr(reg2),
		one(&expr.Lookup{SourceRegister: reg1, DestRegister: unix.NFT_REG_VERDICT, IsDestRegSet: true, SetName: r.slots.Name, SetID: r.slots.ID}))

	// Before connection tracking and any translation. The policy is applied to
	// every packet, not just the first of a connection: sandboxes answer nobody.
	rule(out, ipv4(expr.CmpOpNeq), verdict(expr.VerdictDrop, ""))
	// IP options (source routing among them) have no honest use here.
	rule(out, one(&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseNetworkHeader, Offset: 0, Len: 1}),
		one(&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 1, Mask: []byte{0x0f}, Xor: []byte{0}}),
		cmp(expr.CmpOpNeq, []byte{5}), verdict(expr.VerdictDrop, ""))
	rule(out, byPolicy)
	rule(out, verdict(expr.VerdictDrop, ""))

	// After translation: the same once more, and the limits.
	rule(through, ipv4(expr.CmpOpNeq), verdict(expr.VerdictDrop, ""))
	if r.uplink != "" {
		rule(through, iface(expr.MetaKeyOIFNAME, expr.CmpOpNeq, r.uplink+"\x00"), verdict(expr.VerdictGoto, chainRefuse))
	}
	rule(through, ctState(expr.CtStateBitINVALID), verdict(expr.VerdictDrop, ""))
	rule(through, ctState(expr.CtStateBitNEW), saddr(reg1), r.over(r.rate, unix.NFT_DYNSET_OP_UPDATE, &expr.Limit{
		Type: expr.LimitTypePkts, Rate: uint64(r.perSec), Unit: expr.LimitTimeSecond, Burst: uint32(r.perSec) * 5, Over: true,
	}), verdict(expr.VerdictDrop, ""))
	rule(through, ctState(expr.CtStateBitNEW), saddr(reg1), r.over(r.count, unix.NFT_DYNSET_OP_ADD,
		&expr.Connlimit{Count: uint32(r.flows), Flags: expr.NFT_CONNLIMIT_F_INV}), verdict(expr.VerdictDrop, ""))
	// A resolver's address that the machine itself translates (a cluster's DNS
	// service does) was judged before, as what it was.
	rule(through, dport53(), one(&expr.Ct{Register: reg1, Key: expr.CtKeyDST, Direction: 0}), in(r.resolvers, reg1),
		verdict(expr.VerdictAccept, ""))
	rule(through, byPolicy)
	rule(through, verdict(expr.VerdictDrop, ""))

	rule(to, iface(expr.MetaKeyIIFNAME, expr.CmpOpEq, r.prefix), verdict(expr.VerdictDrop, ""))
	rule(to, ctState(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), verdict(expr.VerdictAccept, ""))
	rule(to, verdict(expr.VerdictDrop, ""))

	fromSlot := iface(expr.MetaKeyIIFNAME, expr.CmpOpEq, r.prefix)
	toSlot := iface(expr.MetaKeyOIFNAME, expr.CmpOpEq, r.prefix)
	rule(base("prerouting", nftables.ChainHookPrerouting, nftables.ChainPriorityRaw, nftables.ChainTypeFilter),
		fromSlot, verdict(expr.VerdictGoto, chainOut))
	rule(base("input", nftables.ChainHookInput, nftables.ChainPriorityFilter, nftables.ChainTypeFilter),
		fromSlot, verdict(expr.VerdictDrop, ""))
	forward := base("forward", nftables.ChainHookForward, nftables.ChainPriorityFilter, nftables.ChainTypeFilter)
	rule(forward, toSlot, verdict(expr.VerdictGoto, chainTo))
	rule(forward, fromSlot, verdict(expr.VerdictGoto, chainThrough))
	// The machine may answer a sandbox's packets with errors, not talk to it.
	rule(base("output", nftables.ChainHookOutput, nftables.ChainPriorityFilter, nftables.ChainTypeFilter),
		toSlot, ctState(expr.CtStateBitNEW), verdict(expr.VerdictDrop, ""))
	rule(base("postrouting", nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource, nftables.ChainTypeNAT),
		ipv4(expr.CmpOpEq), r.fromRange(), iface(expr.MetaKeyOIFNAME, expr.CmpOpNeq, r.prefix), one(&expr.Masq{}))
}
