package link

import (
	"errors"

	"github.com/libp2p/go-yamux/v5"
)

// HeaderLeaving is set on an answer of the data services that stands for the refusal
// Leaving: the call was not made, and comes again.
const HeaderLeaving = "Sirocco-Leaving"

// Break says why an agent breaks a stream off in the middle. The numbers are sent
// with the mux's reset; its own codes are small.
type Break uint32

const (
	// BrokeUnknown: no agent said why.
	BrokeUnknown Break = 0
	// BrokeUnheard: nothing of what came after the last answer has reached the
	// sandbox, which is being moved. It may be sent again, whatever it is.
	BrokeUnheard Break = 0x51520001
	// BrokeMoved: the sandbox has been moved, and with it whatever would have
	// answered.
	BrokeMoved Break = 0x51520002
)

// Break ends the stream at once and tells the peer why. What is under way in
// either direction is lost.
func (c *Conn) Break(why Break) error { return c.ResetWithError(uint32(why)) }

// WhyBroken returns why the peer broke a stream off, from an error of Read or
// Write.
func WhyBroken(err error) Break {
	var reset *yamux.StreamError
	if !errors.As(err, &reset) || !reset.Remote {
		return BrokeUnknown
	}
	switch why := Break(reset.ErrorCode); why {
	case BrokeUnheard, BrokeMoved:
		return why
	}
	return BrokeUnknown
}
