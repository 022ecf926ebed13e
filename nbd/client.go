package nbd

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"time"
)

// ContextAllocation is the metadata context that Extents reads.
const ContextAllocation = "base:allocation"

// ClientOptions say what a client asks for. The zero value opens the default export in plain.
type ClientOptions struct {
	Export string
	// TLS makes the client insist on STARTTLS before anything else. ServerName or InsecureSkipVerify must be set in it. nil:
	// plain (or the connection is a *tls.Conn already).
	TLS *tls.Config
	// MetaContexts are asked for beside base:allocation, e.g. "qemu:dirty-bitmap:b0". Which the server granted is told by
	// Client.MetaContexts.
	MetaContexts []string
	// SimpleReplies does without structured replies, and so without metadata contexts.
	SimpleReplies bool

	MaxInFlight int           // requests at once; further calls wait. 0: 64
	Timeout     time.Duration // for the negotiation. 0: 30 s
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
// gone every call fails with the *Error that Err returns. A call whose context ends returns at once; the request goes on
// at the server, and a buffer it reads into may not be used again by the caller before the call has returned, but may after.
// Requests longer than the server's maximum are split.
type Client struct{}

// Dial connects and negotiates. Networks are those of net.Dial.
func Dial(ctx context.Context, network, address string, o ClientOptions) (*Client, error) {
	return nil, errors.ErrUnsupported
}

// NewClient negotiates on a connection, which it owns from then on, in failure too.
func NewClient(ctx context.Context, conn net.Conn, o ClientOptions) (*Client, error) {
	return nil, errors.ErrUnsupported
}

// List asks a server for its exports (NBD_OPT_LIST) and closes the connection. Options other than TLS and Timeout are not used.
func List(ctx context.Context, conn net.Conn, o ClientOptions) ([]ExportInfo, error) {
	return nil, errors.ErrUnsupported
}

// Size of the export in bytes.
func (c *Client) Size() int64 { return 0 }

// ReadOnly tells whether the server refuses writes.
func (c *Client) ReadOnly() bool { return false }

// MultiConn tells whether several connections to the export see each other's flushed writes.
func (c *Client) MultiConn() bool { return false }

// BlockSizes are what the server told, or 1, 4096 and 32 MiB.
func (c *Client) BlockSizes() (minimum, preferred, maximum uint32) { return 1, 4096, 32 << 20 }

// MetaContexts are the contexts that the server granted.
func (c *Client) MetaContexts() []string { return nil }

// ReadAt reads len(p) bytes.
func (c *Client) ReadAt(ctx context.Context, p []byte, off int64) error { return errors.ErrUnsupported }

// WriteAt writes p.
func (c *Client) WriteAt(ctx context.Context, p []byte, off int64) error { return errors.ErrUnsupported }

// WriteFUA writes p, durable when it returns. Where the server does not know FUA it flushes.
func (c *Client) WriteFUA(ctx context.Context, p []byte, off int64) error {
	return errors.ErrUnsupported
}

// Zero writes zeroes. Where the server does not know WRITE_ZEROES it writes them out.
func (c *Client) Zero(ctx context.Context, off, n int64, mayPunch bool) error {
	return errors.ErrUnsupported
}

// Trim discards a range; nothing where the server does not know TRIM.
func (c *Client) Trim(ctx context.Context, off, n int64) error { return errors.ErrUnsupported }

// Flush makes durable what was written; nothing where the server does not know FLUSH.
func (c *Client) Flush(ctx context.Context) error { return errors.ErrUnsupported }

// Cache asks the server to fetch a range ahead; nothing where it does not know CACHE.
func (c *Client) Cache(ctx context.Context, off, n int64) error { return errors.ErrUnsupported }

// Extents yields the extents of base:allocation; one extent without flags where the server does not tell.
func (c *Client) Extents(ctx context.Context, off, n int64, yield func(n int64, f ExtentFlags) bool) error {
	return errors.ErrUnsupported
}

// BlockStatus yields the extents of a context that the server granted, in order until the range is covered or yield
// returns false. Flags are the context's: bit 0 of a qemu:dirty-bitmap context means dirty.
func (c *Client) BlockStatus(ctx context.Context, metaContext string, off, n int64, yield func(n int64, flags uint32) bool) error {
	return errors.ErrUnsupported
}

// Done is closed when the connection is gone, by Close or by failure.
func (c *Client) Done() <-chan struct{} { return nil }

// Err is why the connection is gone; nil before, and *Error of KindDisconnected after Close.
func (c *Client) Err() error { return nil }

// Close waits for the requests in flight, takes leave of the server and closes the connection.
func (c *Client) Close() error { return errors.ErrUnsupported }
