package sms

import (
	"encoding/binary"
	"time"

	"coffer/dedup/digest"
	"coffer/dedup/recipe"
)

// cursor reads a message. The first fault sticks: everything read after it is zero, and end reports it.
type cursor struct {
	p   []byte
	err *Error
}

func (c *cursor) fail(what string) {
	if c.err == nil {
		c.err = Errorf(CodeProtocol, "malformed message: %s", what)
	}
	c.p = nil
}

// take returns the next n bytes, part of the message.
func (c *cursor) take(n int) []byte {
	if n < 0 || n > len(c.p) {
		c.fail("it is too short")
		return nil
	}
	b := c.p[:n:n]
	c.p = c.p[n:]
	return b
}

func (c *cursor) u8() uint8 {
	if b := c.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (c *cursor) u16() uint16 {
	if b := c.take(2); b != nil {
		return binary.LittleEndian.Uint16(b)
	}
	return 0
}

func (c *cursor) u32() uint32 {
	if b := c.take(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (c *cursor) u64() uint64 {
	if b := c.take(8); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

func (c *cursor) digest() (d digest.Digest) {
	copy(d[:], c.take(len(d)))
	return d
}

// bytes returns a copy of a field with its length (u16) in front.
func (c *cursor) bytes() []byte {
	b := c.take(int(c.u16()))
	if len(b) == 0 {
		return nil
	}
	return append([]byte(nil), b...)
}

func (c *cursor) str() string { return string(c.take(int(c.u16()))) }

func (c *cursor) time() time.Time {
	sec, nsec := int64(c.u64()), c.u32()
	if nsec >= 1e9 {
		c.fail("a time has too many nanoseconds")
		return time.Time{}
	}
	if sec == zeroSec && nsec == 0 {
		return time.Time{}
	}
	return time.Unix(sec, int64(nsec)).UTC()
}

func (c *cursor) ref() recipe.Ref {
	return recipe.Ref{Digest: c.digest(), Totals: recipe.Totals{Entries: c.u64(), Bytes: c.u64()}}
}

// rest returns what is left, part of the message.
func (c *cursor) rest() []byte { return c.take(len(c.p)) }

// end reports the first fault; bytes that are left over are one.
func (c *cursor) end() error {
	if c.err == nil && len(c.p) > 0 {
		c.fail("it has bytes left over")
	}
	if c.err != nil {
		return c.err
	}
	return nil
}

// zeroSec stands for the zero time.Time.
const zeroSec = -1 << 63

func appendTime(b []byte, t time.Time) []byte {
	sec, nsec := int64(zeroSec), uint32(0)
	if !t.IsZero() {
		sec, nsec = t.Unix(), uint32(t.Nanosecond())
	}
	b = binary.LittleEndian.AppendUint64(b, uint64(sec))
	return binary.LittleEndian.AppendUint32(b, nsec)
}

// appendBytes appends a field of up to 65535 bytes; what is longer is cut off.
func appendBytes[T []byte | string](b []byte, f T) []byte {
	n := min(len(f), 1<<16-1)
	b = binary.LittleEndian.AppendUint16(b, uint16(n))
	return append(b, f[:n]...)
}

func appendRef(b []byte, r recipe.Ref) []byte {
	b = append(b, r.Digest[:]...)
	b = binary.LittleEndian.AppendUint64(b, r.Totals.Entries)
	return binary.LittleEndian.AppendUint64(b, r.Totals.Bytes)
}
