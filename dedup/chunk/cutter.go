package chunk

import (
	"io"

	"github.com/restic/chunker"
)

// Cutter cuts one stream after the other into chunks. It holds a read buffer of 512 KiB: keep one per goroutine
// and Reset it for each stream. A Cutter is not safe for concurrent use.
type Cutter struct {
	params Params
	c      *chunker.Chunker
}

// NewCutter returns a Cutter for p, or p.Validate's error. Call Reset before the first Next.
func NewCutter(p Params) (*Cutter, error) {
	if err := p.Validate(); err != nil {
		return nil, err
	}
	c := &Cutter{params: p}
	c.c = chunker.NewWithBoundaries(noBytes{}, chunker.Pol(p.Polynomial), uint(p.Min), uint(p.Max))
	c.c.SetAverageBits(p.AvgBits)
	return c, nil
}

// Reset starts a new stream that is read from r.
func (c *Cutter) Reset(r io.Reader) {
	c.c.ResetWithBoundaries(r, chunker.Pol(c.params.Polynomial), uint(c.params.Min), uint(c.params.Max))
	c.c.SetAverageBits(c.params.AvgBits)
}

// Next returns the next chunk of the stream, at least one byte long, or io.EOF after the last one. The chunk lies
// in buf where buf's capacity suffices (Params.Max always does) and is the caller's. An error of the reader is
// returned as it is; then only Reset may follow.
func (c *Cutter) Next(buf []byte) ([]byte, error) {
	ch, err := c.c.Next(buf[:0])
	if err != nil {
		return nil, err
	}
	return ch.Data, nil
}

// noBytes is the stream of a Cutter that was not Reset yet.
type noBytes struct{}

func (noBytes) Read([]byte) (int, error) { return 0, io.EOF }
