package relay

import (
	"errors"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

// target is one placement of a sandbox, and a port of it.
type target struct {
	tenant, id string
	epoch      uint64
	phase      phase
	revision   uint64
	port       uint16
	address    string
	// since is when the sandbox came into its state.
	since time.Time
	// arriving: it has been moved there from another region, whose record does not
	// show yet that it runs there. The node knows.
	arriving bool
}

// phase tells the times apart that a placement is in one state. A move that is
// called off makes a new one.
type phase struct {
	state siroccov1.State
	at    int64 // in Unix nanoseconds
}

func phaseOf(sb *siroccov1.Sandbox) phase { return phase{sb.GetState(), runningSince(sb).UnixNano()} }

func targetOf(sb *siroccov1.Sandbox, port uint16) target {
	return target{
		tenant: sb.GetTenant(), id: sb.GetId(), epoch: sb.GetPlacement().GetEpoch(), phase: phaseOf(sb), revision: sb.GetRevision(),
		port: port, address: sb.GetPlacement().GetNodeAddress(), since: runningSince(sb), arriving: arriving(sb),
	}
}

// host is the name under which connections to the target are pooled. What was
// opened in one phase of a sandbox is not used in the next.
func (t target) host() string {
	var b [96]byte
	out := append(append(b[:0], t.id...), '.')
	out = append(strconv.AppendUint(out, t.epoch, 10), '.')
	out = append(strconv.AppendUint(out, uint64(t.port), 10), '.')
	out = append(strconv.AppendInt(out, int64(t.phase.state), 10), '.')
	return string(strconv.AppendInt(out, t.phase.at, 10))
}

// parseTargetHost returns what host put together.
func parseTargetHost(addr string) (target, error) {
	if h, _, serr := net.SplitHostPort(addr); serr == nil {
		addr = h
	}
	parts := strings.Split(addr, ".")
	if len(parts) != 5 {
		return target{}, errStale
	}
	epoch, err1 := strconv.ParseUint(parts[1], 10, 64)
	port, err2 := strconv.ParseUint(parts[2], 10, 16)
	state, err3 := strconv.ParseInt(parts[3], 10, 32)
	at, err4 := strconv.ParseInt(parts[4], 10, 64)
	return target{
		id: parts[0], epoch: epoch, port: uint16(port), phase: phase{siroccov1.State(state), at}, //nolint:gosec // parsed as 16 and 32 bits
	}, errors.Join(err1, err2, err3, err4)
}

// arriving says whether a sandbox has left for another region, and the record does
// not show yet that it runs there.
func arriving(sb *siroccov1.Sandbox) bool {
	p, m := sb.GetPlacement(), sb.GetMove()
	return sb.GetState() == siroccov1.State_STATE_MIGRATING && m != nil && lifecycle.Departed(sb, m.GetEpoch()) && p.GetRegion() != m.GetFromRegion()
}

// leaving says whether a sandbox is to be moved, and the move is not made yet.
func leaving(sb *siroccov1.Sandbox) bool {
	return sb.GetState() == siroccov1.State_STATE_MIGRATING && !lifecycle.Departed(sb, sb.GetMove().GetEpoch())
}

// runningSince is when the sandbox last became able to answer: the newest entry
// of its history.
func runningSince(sb *siroccov1.Sandbox) time.Time {
	if h := sb.GetHistory(); len(h) > 0 {
		return h[len(h)-1].GetAt().AsTime()
	}
	return time.Time{}
}
