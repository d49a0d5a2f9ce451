package transfer

import (
	"time"

	"github.com/klauspost/compress/zstd"
)

// worthwhile is how small a part must become to go in compressed form: what hardly
// shrinks is not worth the other side's time.
const worthwhile = 0.97

// compressor is zstd at its fastest level. It is there only where a link asks for it.
type compressor struct{ enc *zstd.Encoder }

func newCompressor() (*compressor, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
		zstd.WithWindowSize(partSize), zstd.WithEncoderCRC(false), zstd.WithZeroFrames(false))
	if err != nil {
		return nil, err
	}
	enc.EncodeAll(zeroPage[:], nil) // its tables are made now, not while it is measured
	return &compressor{enc}, nil
}

func (c *compressor) close() { _ = c.enc.Close() }

// sealed is a frame in a room.
type sealed struct {
	frame []byte
	room  *room
}

// compress makes the frame of a part in compressed form, if that is faster; else nil.
func (p *packer) compress(h *part, content []byte) *sealed {
	p.mu.Lock()
	try := !p.plain && len(content) >= pageSize && p.pace.compress()
	p.mu.Unlock()
	if !try {
		return nil
	}
	if p.zstd == nil {
		z, err := newCompressor()
		if err != nil { // of its options; plain content is right too
			return nil
		}
		p.zstd = z
	}
	r := borrow()
	begin := time.Now()
	// Never longer than the room: what does not fit is put elsewhere, and not taken.
	out := p.zstd.enc.EncodeAll(content, r.content()[:0])
	took := time.Since(begin)
	taken := float64(len(out)) <= worthwhile*float64(len(content))
	n := len(out)
	if !taken {
		n = len(content)
	}
	p.mu.Lock()
	p.pace.compressed(len(content), n, took)
	p.mu.Unlock()
	if !taken {
		rooms.Put(r)
		return nil
	}
	h.encoding = encodingZstd
	return &sealed{frame: r.seal(h, n), room: r}
}

// newDecompressor makes what expands a part: nothing longer, however small it came.
func newDecompressor() (*zstd.Decoder, error) {
	return zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(partSize),
		zstd.WithDecoderMaxWindow(partSize), zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderLowmem(true))
}
