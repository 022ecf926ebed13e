package recipe

import "encoding/binary"

// cursor reads a record's bytes front to back. A read past the end, or a number that is not in its shortest form,
// makes it bad; from then on it reads zeros. INVARIANT: off <= len(b).
type cursor struct {
	b   []byte
	off int
	bad bool
}

func (c *cursor) left() int { return len(c.b) - c.off }

func (c *cursor) fail() {
	c.off = len(c.b)
	c.bad = true
}

// uvarint reads an unsigned LEB128 number of at most 64 bits.
func (c *cursor) uvarint() uint64 {
	if c.off < len(c.b) && c.b[c.off] < 0x80 {
		c.off++
		return uint64(c.b[c.off-1])
	}
	return c.uvarintLong()
}

func (c *cursor) uvarintLong() uint64 {
	v, n := binary.Uvarint(c.b[c.off:])
	if n <= 0 || n > 1 && c.b[c.off+n-1] == 0 {
		c.fail()
		return 0
	}
	c.off += n
	return v
}

// varint reads a zigzag number.
func (c *cursor) varint() int64 {
	v := c.uvarint()
	return int64(v>>1) ^ -int64(v&1)
}

func (c *cursor) u32() uint32 {
	if c.left() < 4 {
		c.fail()
		return 0
	}
	c.off += 4
	return binary.LittleEndian.Uint32(c.b[c.off-4:])
}

func (c *cursor) u64() uint64 {
	if c.left() < 8 {
		c.fail()
		return 0
	}
	c.off += 8
	return binary.LittleEndian.Uint64(c.b[c.off-8:])
}

func (c *cursor) u8() byte {
	if c.left() < 1 {
		c.fail()
		return 0
	}
	c.off++
	return c.b[c.off-1]
}

// span reads a length of at most limit and steps over as many bytes; it returns where they lie.
func (c *cursor) span(limit int) (from, to int) {
	n := c.uvarint()
	if n > uint64(limit) || n > uint64(c.left()) {
		c.fail()
		return c.off, c.off
	}
	from = c.off
	c.off += int(n)
	return from, c.off
}

func zigzag(v int64) uint64 { return uint64(v)<<1 ^ uint64(v>>63) }

// appendUvarint is binary.AppendUvarint with a short way for the usual small number.
func appendUvarint(b []byte, v uint64) []byte {
	if v < 0x80 {
		return append(b, byte(v))
	}
	return binary.AppendUvarint(b, v)
}
