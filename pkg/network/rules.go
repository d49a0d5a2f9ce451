package network

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Chains and sets of the table. A slot is in one map and, under policy Allowed,
// in one set; no rule is ever added for it.
const (
	chainOpen    = "open"
	chainAllowed = "allowed"
	chainRefuse  = "refuse"
	chainOut     = "from-slot"
	chainThrough = "forward-out"
	chainTo      = "to-slot"
)

// rules is the node's table. Its methods may be called concurrently.
type rules struct {
	mu     sync.Mutex
	prefix string
	cidr   netip.Prefix
	uplink string
	perSec int
	flows  int
	deny   []netip.Prefix

	table     *nftables.Table
	slots     *nftables.Set // interface . source -> policy chain
	allowed   *nftables.Set // source . destination range
	never     *nftables.Set
	resolvers *nftables.Set
	rate      *nftables.Set
	count     *nftables.Set

	conn   *nftables.Conn // see transaction
	dns    []netip.Addr
	inside map[string]*Slot // what the table holds, by interface

	// waiting guards removals, which nobody has taken yet; it may be locked under mu.
	waiting  sync.Mutex
	removals []removal
}

func newRules(cfg Config, n names, cidr netip.Prefix) *rules {
	r := &rules{
		prefix: n.prefix, cidr: cidr, uplink: cfg.Uplink,
		perSec: cfg.NewPerSecond, flows: cfg.MaxFlows, deny: denied(cfg.Deny),
		table:  &nftables.Table{Family: nftables.TableFamilyINet, Name: n.table},
		inside: map[string]*Slot{},
	}
	r.slots = &nftables.Set{
		Table: r.table, Name: "slots", IsMap: true, Concatenation: true, DataType: nftables.TypeVerdict,
		KeyType: nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeIPAddr),
	}
	r.allowed = &nftables.Set{
		Table: r.table, Name: "allowed-ranges", Interval: true, Concatenation: true,
		KeyType: nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeIPAddr),
	}
	r.never = &nftables.Set{Table: r.table, Name: "never", Interval: true, KeyType: nftables.TypeIPAddr}
	r.resolvers = &nftables.Set{Table: r.table, Name: "resolvers", KeyType: nftables.TypeIPAddr}
	r.rate = &nftables.Set{
		Table: r.table, Name: "new-rate", Dynamic: true, HasTimeout: true, Timeout: rateMemory,
		Size: 1 << 16, KeyType: nftables.TypeIPAddr,
	}
	r.count = &nftables.Set{Table: r.table, Name: "flows", Dynamic: true, Size: 1 << 16, KeyType: nftables.TypeIPAddr}
	return r
}

// install replaces the whole table in one transaction: there is no moment
// without rules, and packets of the slots given pass before and after.
func (r *rules) install(resolvers []netip.Addr, held map[string]*Slot) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dns = resolvers
	for _, s := range held {
		r.inside[s.Interface] = s
	}
	return r.write()
}

// transaction returns the connection, which stays open: to close one after a
// removal waits for the kernel's next grace period, some ten milliseconds.
// Flush reads an answer to every message, after errors too, so the next
// transaction starts clean.
func (r *rules) transaction() (*nftables.Conn, error) {
	if r.conn == nil {
		c, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(roomy))
		if err != nil {
			return nil, fmt.Errorf("connect to nftables: %w", err)
		}
		r.conn = c
	}
	return r.conn, nil
}

// socketBuffer is how much a transaction, and the answers to all of its messages, may take,
// in bytes: the kernel drops answers that find no room, and who waits for one waits for
// ever. Linux gives 208 KiB, which is room for some 270 answers.
const socketBuffer = 16 << 20

func roomy(c *netlink.Conn) error {
	return errors.Join(c.SetReadBuffer(socketBuffer), c.SetWriteBuffer(socketBuffer))
}

// flush carries a transaction out. Where answers have been dropped all the same, the
// next one has a connection of its own: what is left to be read here is not its.
func (r *rules) flush(c *nftables.Conn) error {
	err := c.Flush()
	if errors.Is(err, unix.ENOBUFS) {
		r.conn = nil
		err = errors.Join(err, c.CloseLasting())
	}
	return err
}

// perMessage is how many elements go in one message, whose attributes are 64 KiB at most.
const perMessage = 256

// inPieces does something with elements, so many of them at a time as fit in a message.
func inPieces(do func(*nftables.Set, []nftables.SetElement) error, set *nftables.Set, elements []nftables.SetElement) error {
	for piece := range slices.Chunk(elements, perMessage) {
		if err := do(set, piece); err != nil {
			return err
		}
	}
	return nil
}

// close lets go of the connection; the table stays.
func (r *rules) close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conn == nil {
		return nil
	}
	c := r.conn
	r.conn = nil
	return c.CloseLasting()
}

func (r *rules) write() error {
	c, err := r.transaction()
	if err != nil {
		return err
	}
	c.AddTable(r.table)
	c.DelTable(r.table)
	c.AddTable(r.table)
	var dns []nftables.SetElement
	for _, a := range r.dns {
		dns = append(dns, nftables.SetElement{Key: a.AsSlice()})
	}
	err = errors.Join(
		c.AddSet(r.slots, nil), c.AddSet(r.allowed, nil), c.AddSet(r.never, intervals(r.deny)),
		c.AddSet(r.resolvers, dns), c.AddSet(r.rate, nil), c.AddSet(r.count, nil))
	if err != nil {
		return err
	}
	r.chains(c)
	if err := r.addTo(c, slices.Collect(maps.Values(r.inside))...); err != nil {
		return err
	}
	if err := r.flush(c); err != nil {
		return fmt.Errorf("install table %s: %w", r.table.Name, err)
	}
	return nil
}

// guard puts the table back if somebody has removed it (reloading a machine's
// firewall often flushes all tables), or has changed which slots it holds; true
// if so.
func (r *rules) guard() (bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c, err := r.transaction()
	if err != nil {
		return false, err
	}
	elements, err := c.GetSetElements(r.slots)
	if err == nil && len(elements) == len(r.inside) {
		rules, err := c.GetRules(r.table, &nftables.Chain{Name: chainOut})
		if err == nil && len(rules) > 0 {
			return false, nil
		}
	}
	return true, r.write()
}

// uninstall removes the table. One that is not there is no error.
func (r *rules) uninstall() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	c, err := r.transaction()
	if err != nil {
		return err
	}
	c.AddTable(r.table)
	c.DelTable(r.table)
	if err := r.flush(c); err != nil {
		return fmt.Errorf("remove table %s: %w", r.table.Name, err)
	}
	return nil
}

// add lets a slot out, as far as its policy goes.
func (r *rules) add(s *Slot) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	c, err := r.transaction()
	if err != nil {
		return err
	}
	if err := r.addTo(c, s); err != nil {
		return err
	}
	if err := r.flush(c); err != nil {
		return fmt.Errorf("add rules of slot %s: %w", s.Interface, err)
	}
	r.inside[s.Interface] = s
	return nil
}

// removal is a slot that is to be shut off.
type removal struct {
	slot *Slot
	done chan error
}

// remove shuts a slot off. One that is not in is no error. Those that come while a
// transaction is under way share the next one: each waits for the kernel's grace period.
func (r *rules) remove(s *Slot) error {
	own := removal{s, make(chan error, 1)}
	r.waiting.Lock()
	r.removals = append(r.removals, own)
	r.waiting.Unlock()

	r.mu.Lock()
	defer r.mu.Unlock()
	r.waiting.Lock()
	batch := r.removals
	r.removals = nil
	r.waiting.Unlock()
	if len(batch) > 0 {
		err := r.removeLocked(batch)
		for _, w := range batch {
			w.done <- err
		}
	}
	return <-own.done
}

func (r *rules) removeLocked(batch []removal) error {
	c, err := r.transaction()
	if err != nil {
		return err
	}
	var gone []*Slot
	for _, w := range batch {
		if s := w.slot; r.inside[s.Interface] != nil {
			delete(r.inside, s.Interface)
			gone = append(gone, s)
		}
	}
	if len(gone) == 0 {
		return nil
	}
	slots, allowed := r.elements(gone)
	if err = errors.Join(inPieces(c.SetDeleteElements, r.slots, slots), inPieces(c.SetDeleteElements, r.allowed, allowed)); err == nil {
		err = r.flush(c)
	}
	if err == nil {
		return nil
	}
	// Somebody else changed the table, or nothing of this was done.
	if werr := r.write(); werr != nil {
		return fmt.Errorf("remove rules of slot %s and %d more: %w", gone[0].Interface, len(gone)-1, errors.Join(err, werr))
	}
	return nil
}

// forget removes what the limits remember of addresses whose slots are gone.
// They forget by themselves too: this keeps a new holder from inheriting a used
// up limit, so an error is of no consequence. Only what is there is removed, as
// a transaction that fails holds everybody up for a grace period.
func (r *rules) forget(addrs []netip.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, set := range []*nftables.Set{r.rate, r.count} {
		c, err := r.transaction()
		if err != nil {
			return
		}
		there, err := c.GetSetElements(set)
		if err != nil {
			return
		}
		var old []nftables.SetElement
		for _, e := range there {
			if a, ok := netip.AddrFromSlice(e.Key); ok && slices.Contains(addrs, a) {
				old = append(old, nftables.SetElement{Key: e.Key})
			}
		}
		if len(old) > 0 && inPieces(c.SetDeleteElements, set, old) == nil {
			_ = r.flush(c)
		}
	}
}

func (r *rules) addTo(c *nftables.Conn, slots ...*Slot) error {
	of, allowed := r.elements(slots)
	return errors.Join(inPieces(c.SetAddElements, r.slots, of), inPieces(c.SetAddElements, r.allowed, allowed))
}

// elements returns what the sets hold of slots.
func (r *rules) elements(slots []*Slot) (of, allowed []nftables.SetElement) {
	for _, s := range slots {
		of = append(of, slotElement(s))
		if s.Policy.Mode == Allowed {
			allowed = append(allowed, allowedElements(s)...)
		}
	}
	return of, allowed
}

func slotElement(s *Slot) nftables.SetElement {
	key := make([]byte, unix.IFNAMSIZ, unix.IFNAMSIZ+4)
	copy(key, s.Interface)
	chain := map[Mode]string{Open: chainOpen, Allowed: chainAllowed, Blocked: chainRefuse}[s.Policy.Mode]
	return nftables.SetElement{
		Key:         append(key, s.Address.AsSlice()...),
		VerdictData: &expr.Verdict{Kind: expr.VerdictGoto, Chain: chain},
	}
}

func allowedElements(s *Slot) []nftables.SetElement {
	from := s.Address.AsSlice()
	var out []nftables.SetElement
	for _, p := range s.Policy.Allowed {
		out = append(out, nftables.SetElement{
			Key:    append(from[:4:4], p.Addr().AsSlice()...),
			KeyEnd: append(from[:4:4], last(p).AsSlice()...),
		})
	}
	return out
}

// last returns the highest address of an IPv4 range.
func last(p netip.Prefix) netip.Addr {
	return offset(p.Masked().Addr(), uint32(1<<(32-p.Bits())-1))
}

// intervals turns ranges, sorted and apart from each other, into set elements.
func intervals(ranges []netip.Prefix) []nftables.SetElement {
	var out []nftables.SetElement
	for i, p := range ranges {
		if i == 0 || last(ranges[i-1]).Next() != p.Addr() {
			out = append(out, nftables.SetElement{Key: p.Addr().AsSlice()})
		}
		end := last(p).Next()
		// The range that ends with the last address has no end element; of two
		// that touch, only the second one has.
		if end.Is4() && end.IsValid() && (i+1 == len(ranges) || ranges[i+1].Addr() != end) {
			out = append(out, nftables.SetElement{Key: end.AsSlice(), IntervalEnd: true})
		}
	}
	return out
}
