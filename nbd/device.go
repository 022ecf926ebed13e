package nbd

import "context"

// Device is what an export serves: a fixed number of bytes that can be read. The server asks only for ranges inside
// Size, so that an implementation need not check. Methods are called from many goroutines at once. The context ends with
// the client's connection. An error reaches the client as the Errno that ErrnoOf finds in it.
type Device interface {
	// Size is in bytes and constant while an export of the device is open.
	Size() int64
	// ReadAt fills p or fails. The caller owns p, before and after.
	ReadAt(ctx context.Context, p []byte, off int64) error
}

// Writer is a Device that can be written.
type Writer interface {
	// WriteAt returns when the write is acknowledged: it then survives the death of this process, and it survives the loss
	// of power after the next Flush. It keeps no reference to p.
	WriteAt(ctx context.Context, p []byte, off int64) error
	// Zero makes the range read as zeroes. mayPunch allows to give the space back; without it, later writes to the range
	// must not fail for want of space where the device can promise that.
	Zero(ctx context.Context, off, n int64, mayPunch bool) error
	// Trim says that the range's contents are no longer needed. A device may do nothing.
	Trim(ctx context.Context, off, n int64) error
	// Flush returns when all that was acknowledged before it began is durable.
	Flush(ctx context.Context) error
}

// FUAWriter is a Writer that can make one write durable at less than a Flush costs. Without it the server calls Flush
// after a write with forced unit access.
type FUAWriter interface {
	WriteFUA(ctx context.Context, p []byte, off int64) error
}

// Mapper is a Device that knows where it is allocated.
type Mapper interface {
	// Extents yields the extents of the range in order, each n > 0 bytes long, until the range is covered or yield returns
	// false. Neighbours may have equal flags. It may stop early only with an error.
	Extents(ctx context.Context, off, n int64, yield func(n int64, f ExtentFlags) bool) error
}

// Lender is a Device that has bytes in memory which can be sent without a copy.
type Lender interface {
	// Lend returns bytes from off on, at least one and at most n: nobody changes them as long as somebody refers to them. None,
	// and no error, where they have to be read.
	Lend(ctx context.Context, off, n int64) ([]byte, error)
}

// Cacher is a Device that can fetch a range ahead of its reading.
type Cacher interface {
	Cache(ctx context.Context, off, n int64) error
}

// BlockSizer is a Device that wants requests of certain sizes, in bytes: powers of two, 1 ≤ minimum ≤ preferred, and
// minimum ≤ 64 KiB; maximum is a multiple of minimum, or 0 for the server's own limit, which binds in any case. The server
// refuses requests that are not aligned to minimum with EINVAL.
type BlockSizer interface {
	BlockSizes() (minimum, preferred, maximum uint32)
}

// ExtentFlags are the states of an extent in the context base:allocation (proto.md, "Metadata contexts"). Unlike other
// flags of the protocol they mean "known": an extent without flags may still be a hole or read as zeroes.
type ExtentFlags uint32

const (
	Hole ExtentFlags = 1 << 0 // NBD_STATE_HOLE: not allocated
	Zero ExtentFlags = 1 << 1 // NBD_STATE_ZERO: reads as zeroes
)
