package nbd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// ContextAllocation is the metadata context that Extents reads.
const ContextAllocation = "base:allocation"

// ClientOptions say what a client asks for. The zero value opens the default export in plain.
type ClientOptions struct {
	Export string
	// TLS makes the client insist on STARTTLS before anything else. ServerName or InsecureSkipVerify must be set in it; Dial
	// takes the host's name from the address. nil: plain, or the connection is a *tls.Conn already.
	TLS *tls.Config
	// MetaContexts are asked for beside base:allocation, e.g. "qemu:dirty-bitmap:b0". Which the server granted is told by
	// Client.MetaContexts.
	MetaContexts []string
	// SimpleReplies does without structured replies, and so without metadata contexts.
	SimpleReplies bool

	MaxInFlight int           // requests at once; further calls wait. 0: 64
	Timeout     time.Duration // for dialling and the negotiation. 0: 30 s
	// StallTimeout ends a connection whose server stops in the middle of a reply, or takes nothing of a request, for so
	// long. A server that has not begun to answer is waited for as long as the call's context allows. 0: 60 s
	StallTimeout time.Duration
}

func (o ClientOptions) withDefaults() ClientOptions {
	set(&o.MaxInFlight, 64)
	set(&o.Timeout, 30*time.Second)
	set(&o.StallTimeout, time.Minute)
	return o
}

var (
	_ Device     = (*Client)(nil)
	_ Writer     = (*Client)(nil)
	_ FUAWriter  = (*Client)(nil)
	_ Mapper     = (*Client)(nil)
	_ Cacher     = (*Client)(nil)
	_ BlockSizer = (*Client)(nil)
)

// Client is one connection to one export: a Device that lies elsewhere. Its methods are called from many goroutines and
// run at the same time. A failed request is an Errno (errors.As), wrapped with operation and range; when the connection is
// gone every call fails with the *Error that Err returns. A call whose context ends returns once no byte of its buffer is
// being moved; the request goes on at the server. Requests longer than the server's maximum are split.
type Client struct {
	agreed
	out   *outbox
	slots chan struct{} // one element per request in flight
	stall time.Duration
	gone  chan struct{} // closed when the reader has ended

	mu      sync.Mutex // guards what follows
	pending map[uint64]*call
	handle  uint64
	err     error
}

func newClient(a agreed, o ClientOptions) *Client {
	c := &Client{agreed: a, slots: make(chan struct{}, o.MaxInFlight), stall: o.StallTimeout, gone: make(chan struct{}),
		pending: map[uint64]*call{}}
	c.out = newOutbox(a.conn, o.StallTimeout, c.broken)
	go c.receive()
	return c
}

// Size of the export in bytes.
func (c *Client) Size() int64 { return int64(c.size) }

// ReadOnly tells whether the server refuses writes.
func (c *Client) ReadOnly() bool { return c.flags&txReadOnly != 0 }

// MultiConn tells whether several connections to the export see each other's flushed writes.
func (c *Client) MultiConn() bool { return c.flags&txMultiConn != 0 }

// BlockSizes are what the server told, or 1, 4096 and 32 MiB.
func (c *Client) BlockSizes() (minimum, preferred, maximum uint32) { return c.min, c.pref, c.max }

// MetaContexts are the contexts that the server granted.
func (c *Client) MetaContexts() []string {
	var r []string
	for _, x := range c.contexts {
		r = append(r, x.name)
	}
	return r
}

// inside refuses ranges that no server would take, and says whether there is anything to do.
func (c *Client) inside(op command, off, n int64) error {
	if off < 0 || n < 0 || off > c.Size() || n > c.Size()-off {
		return rangeError(op, off, n, EINVAL)
	}
	return nil
}

func rangeError(op command, off, n int64, err error) error {
	return fmt.Errorf("nbd %v of %d bytes at %d: %w", op, n, off, err)
}

// ReadAt reads len(p) bytes. Where the server wants aligned requests, it reads more and copies.
func (c *Client) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := c.inside(cmdRead, off, int64(len(p))); err != nil {
		return err
	}
	if b := int64(c.min); off%b != 0 || int64(len(p))%b != 0 {
		return c.readUnaligned(ctx, p, off)
	}
	return pieces(off, int64(len(p)), int64(c.max), func(at, n int64) error {
		return c.do(ctx, &call{op: cmdRead, off: at, n: n, into: p[at-off : at-off+n]})
	})
}

func (c *Client) readUnaligned(ctx context.Context, p []byte, off int64) error {
	from, size := c.widen(off, int64(len(p)))
	return pieces(from, size, int64(c.max), func(at, n int64) error {
		q := make([]byte, n)
		if err := c.do(ctx, &call{op: cmdRead, off: at, n: n, into: q}); err != nil {
			return err
		}
		if skip := off - at; skip > 0 {
			copy(p, q[skip:])
		} else {
			copy(p[at-off:], q)
		}
		return nil
	})
}

// widen moves a range's ends outwards to where the server wants them.
func (c *Client) widen(off, n int64) (int64, int64) {
	b := int64(c.min)
	from, to := off-off%b, off+n
	return from, min(to+(b-to%b)%b, c.Size()) - from
}

// pieces splits a range.
func pieces(off, n, most int64, f func(off, n int64) error) error {
	for n > 0 {
		d := min(n, most)
		if err := f(off, d); err != nil {
			return err
		}
		off, n = off+d, n-d
	}
	return nil
}

// WriteAt writes p.
func (c *Client) WriteAt(ctx context.Context, p []byte, off int64) error {
	return c.write(ctx, p, off, 0)
}

// WriteFUA writes p, durable when it returns. Where the server does not know FUA it flushes.
func (c *Client) WriteFUA(ctx context.Context, p []byte, off int64) error {
	if c.flags&txFUA != 0 {
		return c.write(ctx, p, off, cmdFlagFUA)
	}
	if err := c.write(ctx, p, off, 0); err != nil {
		return err
	}
	return c.Flush(ctx)
}

func (c *Client) write(ctx context.Context, p []byte, off int64, flags uint16) error {
	if err := c.change(cmdWrite, off, int64(len(p))); err != nil {
		return err
	}
	return pieces(off, int64(len(p)), int64(c.max), func(at, n int64) error {
		return c.do(ctx, &call{op: cmdWrite, flags: flags, off: at, n: n, from: p[at-off : at-off+n]})
	})
}

// change checks what is common to all that changes an export.
func (c *Client) change(op command, off, n int64) error {
	if c.ReadOnly() {
		return rangeError(op, off, n, EPERM)
	}
	return c.inside(op, off, n)
}

const (
	longRange = 1 << 30 // bytes of one request that moves no data
	zeroPiece = 1 << 20
)

// Zero writes zeroes. Where the server does not know WRITE_ZEROES it writes them out.
func (c *Client) Zero(ctx context.Context, off, n int64, mayPunch bool) error {
	if err := c.change(cmdWriteZeroes, off, n); err != nil {
		return err
	}
	if c.flags&txWriteZeroes == 0 {
		zeroes := make([]byte, min(n, zeroPiece))
		return pieces(off, n, zeroPiece, func(at, n int64) error { return c.write(ctx, zeroes[:n], at, 0) })
	}
	var flags uint16
	if !mayPunch {
		flags = cmdFlagNoHole
	}
	return c.ranged(ctx, cmdWriteZeroes, flags, off, n, longRange)
}

// Trim discards a range; nothing where the server does not know TRIM.
func (c *Client) Trim(ctx context.Context, off, n int64) error {
	if err := c.change(cmdTrim, off, n); err != nil || c.flags&txTrim == 0 {
		return err
	}
	return c.ranged(ctx, cmdTrim, 0, off, n, longRange)
}

// Cache asks the server to fetch a range ahead; nothing where it does not know CACHE.
func (c *Client) Cache(ctx context.Context, off, n int64) error {
	if err := c.inside(cmdCache, off, n); err != nil || c.flags&txCache == 0 {
		return err
	}
	return c.ranged(ctx, cmdCache, 0, off, n, int64(c.max))
}

func (c *Client) ranged(ctx context.Context, op command, flags uint16, off, n, most int64) error {
	return pieces(off, n, most, func(at, n int64) error {
		return c.do(ctx, &call{op: op, flags: flags, off: at, n: n})
	})
}

// Flush makes durable what was written; nothing where the server does not know FLUSH.
func (c *Client) Flush(ctx context.Context) error {
	if c.flags&txFlush == 0 {
		return c.Err()
	}
	return c.do(ctx, &call{op: cmdFlush})
}

// Extents yields the extents of base:allocation; one extent without flags where the server does not tell.
func (c *Client) Extents(ctx context.Context, off, n int64, yield func(n int64, f ExtentFlags) bool) error {
	if _, ok := c.context(ContextAllocation); !ok {
		if err := c.inside(cmdBlockStatus, off, n); err != nil {
			return err
		}
		yield(n, 0)
		return c.Err()
	}
	return c.BlockStatus(ctx, ContextAllocation, off, n, func(n int64, flags uint32) bool {
		return yield(n, ExtentFlags(flags)&(Hole|Zero))
	})
}

func (c *Client) context(name string) (uint32, bool) {
	for _, x := range c.contexts {
		if x.name == name {
			return x.id, true
		}
	}
	return 0, false
}

// BlockStatus yields the extents of a context that the server granted, in order until the range is covered or yield
// returns false. Flags are the context's: bit 0 of a qemu:dirty-bitmap context means dirty.
func (c *Client) BlockStatus(ctx context.Context, metaContext string, off, n int64, yield func(n int64, flags uint32) bool) error {
	id, ok := c.context(metaContext)
	if !ok {
		return fmt.Errorf("nbd block status of %s: %w", metaContext, errors.ErrUnsupported)
	}
	if err := c.inside(cmdBlockStatus, off, n); err != nil {
		return err
	}
	for n > 0 {
		before := off
		from, size := c.widen(off, min(n, longRange))
		k := &call{op: cmdBlockStatus, off: from, n: size, context: id}
		if err := c.do(ctx, k); err != nil {
			return err
		}
		for _, d := range k.status { // the first may begin before what was asked, the last reach past it
			from += int64(d.length)
			l := min(from-off, n)
			if l <= 0 {
				continue
			}
			if !yield(l, d.flags) {
				return nil
			}
			off, n = off+l, n-l
		}
		if off == before {
			return rangeError(cmdBlockStatus, off, n, EIO) // extents that do not reach what was asked
		}
	}
	return nil
}

// Done is closed when the connection is gone, by Close or by failure, and no call is left.
func (c *Client) Done() <-chan struct{} { return c.gone }

// Err is why the connection is gone; nil before, and an *Error of KindDisconnected after Close.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close takes leave of the server and closes the connection. Calls in flight fail: let them end first.
func (c *Client) Close() error {
	c.mu.Lock()
	quiet := c.err == nil && len(c.pending) == 0
	if c.err == nil {
		c.err = &Error{Kind: KindDisconnected, Op: "nbd client", Err: net.ErrClosed}
	}
	c.mu.Unlock()
	if quiet {
		c.out.put(packet{head: appendRequest(nil, request{Type: uint16(cmdDisc)}), owner: nobody{}})
	}
	err := c.conn.Close()
	<-c.gone
	if errors.Is(err, net.ErrClosed) {
		return nil // it had failed before
	}
	return err
}

// nobody owns the packet that takes leave.
type nobody struct{}

func (nobody) sent(error) {}
