package chunk

import "io"

// readSize is how many bytes a Cutter asks its reader for at once.
const readSize = 512 << 10

// Cutter cuts one stream after the other into chunks. It holds a read buffer of 512 KiB: keep one per goroutine
// and Reset it for each stream. A Cutter is not safe for concurrent use.
//
// It cuts exactly where restic/chunker cuts, in half the time.
type Cutter struct {
	params Params
	rabin  *rabin
	r      io.Reader
	buf    []byte // what was read
	ahead  []byte // the part of buf that no chunk has yet
	err    error  // the reader's, io.EOF included
}

// NewCutter returns a Cutter for p, or p.Validate's error. Call Reset before the first Next.
func NewCutter(p Params) (*Cutter, error) {
	if err := p.Validate(); err != nil {
		return nil, err
	}
	return &Cutter{params: p, rabin: newRabin(p), buf: make([]byte, readSize), err: io.EOF}, nil
}

// Reset starts a new stream that is read from r.
func (c *Cutter) Reset(r io.Reader) {
	c.r, c.ahead, c.err = r, nil, nil
}

// Next returns the next chunk of the stream, at least one byte long, or io.EOF after the last one. The chunk lies
// in buf where buf's capacity suffices (Params.Max always does) and is the caller's. An error of the reader is
// returned as it is, in place of the chunk that it struck; then only Reset may follow.
func (c *Cutter) Next(buf []byte) ([]byte, error) {
	chunk := buf[:0]
	for len(chunk) < c.params.Max {
		if len(c.ahead) == 0 {
			if err := c.fill(); err == io.EOF && len(chunk) > 0 {
				return chunk, nil
			} else if err != nil {
				return nil, err
			}
		}
		was := len(chunk)
		n := min(len(c.ahead), c.params.Max-was)
		chunk = append(chunk, c.ahead[:n]...)
		end := c.rabin.scan(chunk, max(was, c.params.Min-1))
		if end >= 0 {
			chunk = chunk[:end+1]
		}
		c.ahead = c.ahead[len(chunk)-was:]
		if end >= 0 {
			break
		}
	}
	return chunk, nil
}

// fill reads ahead. It returns the reader's error when there is nothing left before it.
func (c *Cutter) fill() error {
	if c.err != nil {
		return c.err
	}
	n, err := io.ReadFull(c.r, c.buf)
	if err == io.ErrUnexpectedEOF {
		err = io.EOF
	}
	c.ahead, c.err = c.buf[:n], err
	if n == 0 {
		return err
	}
	return nil
}
