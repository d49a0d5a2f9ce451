// Package cursor is where somebody stands in the event streams of several regions.
//
// Each region numbers its events by itself, so a place in all of them is one number for
// each: "eu:7,us:15" is behind event 7 of eu and event 15 of us. Of a region whose
// numbers are not known yet it is a time: "us:@1763836390123", milliseconds since 1970.
// A region that is not named is at its start: so the empty cursor is the start of all,
// and a region that is added later is missed by nobody.
package cursor

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sirocco-run/sirocco/pkg/subject"
)

// Start is how the empty cursor is written.
const Start = "start"

// maxRegions bounds what Parse reads.
const maxRegions = 64

// Position is a place in the event stream of one region: behind the event of this
// sequence or, if Since is set, before the first one at or after that time. The zero
// value is the start.
type Position struct {
	Sequence uint64
	Since    time.Time
}

// Cursor is a position for each region; one that is not in it is at its start.
type Cursor map[string]Position

// String is the inverse of Parse.
func (c Cursor) String() string {
	if len(c) == 0 {
		return Start
	}
	var parts []string
	for _, region := range slices.Sorted(maps.Keys(c)) {
		at := strconv.FormatUint(c[region].Sequence, 10)
		if since := c[region].Since; !since.IsZero() {
			at = "@" + strconv.FormatInt(since.UnixMilli(), 10)
		}
		parts = append(parts, region+":"+at)
	}
	return strings.Join(parts, ",")
}

// Parse reads what String has written.
func Parse(text string) (Cursor, error) {
	c := Cursor{}
	if text == Start {
		return c, nil
	}
	for part := range strings.SplitSeq(text, ",") {
		region, at, ok := strings.Cut(part, ":")
		if !ok || !subject.ValidToken(region) {
			return nil, fmt.Errorf("%.80q is no cursor such as eu:7,us:15", text)
		}
		if _, twice := c[region]; twice || len(c) == maxRegions {
			return nil, fmt.Errorf("the cursor names region %s twice, or too many regions", region)
		}
		position, err := parsePosition(at)
		if err != nil {
			return nil, fmt.Errorf("%.80q is no position in the events of region %s", at, region)
		}
		c[region] = position
	}
	return c, nil
}

func parsePosition(text string) (p Position, err error) {
	if ms, isTime := strings.CutPrefix(text, "@"); isTime {
		n, err := strconv.ParseUint(ms, 10, 48)
		p.Since = time.UnixMilli(int64(n)) //nolint:gosec // 48 bits
		return p, err
	}
	p.Sequence, err = strconv.ParseUint(text, 10, 64)
	return p, err
}
