// Package relay gives an export of a server far away a life beyond its connection: a Device that connects again when the
// connection is lost, and repeats what was in flight. Whoever uses it sees slow requests where the far server is restarted,
// and no errors.
//
// Repeating is safe: the order of requests in flight is nobody's promise in NBD, the far server lets no lost connection change
// anything after the next one has (Turns), and it keeps an acknowledged write beyond its own death (nbd.Writer). It cannot promise that beyond a loss of power, unless it was flushed; such a server must
// not let the relay in again (nbd.KindPolicy), and the relay then fails for good: going on would show its user a disk that
// forgot what was written to it.
//
// It does not decide where to connect to, nor who may use it.
package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"coffer/nbd"
)

// Defaults of Options.
const (
	DefaultMinBackoff = 200 * time.Millisecond
	DefaultMaxBackoff = 5 * time.Second
	DefaultPatience   = 15 * time.Minute
)

// Options of a Device. Dial is needed.
type Options struct {
	// Dial makes a connection, with TLS where it needs some.
	Dial func(ctx context.Context) (net.Conn, error)
	// Export is the name that the far server knows. It is asked for by Name.
	Export string
	// Patience is how long a lost connection is tried for before requests fail with EIO; then the next request tries again,
	// for as long.
	Patience               time.Duration
	MinBackoff, MaxBackoff time.Duration
	// Timeout of dialling and negotiation; 0 = 30 s.
	Timeout time.Duration
	Logger  *slog.Logger
}

// Device is an export of another server. Its methods may be called from many goroutines.
type Device struct {
	o    Options
	size int64
	log  *slog.Logger
	stop context.CancelFunc
	ctx  context.Context // of the connections; ends with Close

	mu     sync.Mutex
	client *nbd.Client   // guarded by mu; nil while there is no connection
	redial chan struct{} // guarded by mu: closed when somebody who connects has ended; nil = nobody does
	failed error         // guarded by mu: why it is over
}

var (
	_ nbd.Device     = (*Device)(nil)
	_ nbd.Writer     = (*Device)(nil)
	_ nbd.FUAWriter  = (*Device)(nil)
	_ nbd.Mapper     = (*Device)(nil)
	_ nbd.Cacher     = (*Device)(nil)
	_ nbd.BlockSizer = (*Device)(nil)
)

// Open connects for the first time, without patience: an export that is not there is an error at once.
func Open(ctx context.Context, o Options) (*Device, error) {
	o.Patience, o.MinBackoff, o.MaxBackoff = orDefault(o.Patience, DefaultPatience), orDefault(o.MinBackoff, DefaultMinBackoff), orDefault(o.MaxBackoff, DefaultMaxBackoff)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	d := &Device{o: o, log: o.Logger}
	d.ctx, d.stop = context.WithCancel(context.WithoutCancel(ctx))
	c, err := d.connect(ctx)
	if err != nil {
		d.stop()
		return nil, fmt.Errorf("open export %s: %w", o.Export, err)
	}
	d.client, d.size = c, c.Size()
	return d, nil
}

func orDefault(d, otherwise time.Duration) time.Duration {
	if d == 0 {
		return otherwise
	}
	return d
}

// Close ends the connection. Requests that wait fail.
func (d *Device) Close() error {
	d.stop()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.failed == nil {
		d.failed = net.ErrClosed
	}
	if d.client == nil {
		return nil
	}
	return d.client.Close()
}

// ReadOnly reports whether the far export takes no writes.
func (d *Device) ReadOnly() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.client != nil && d.client.ReadOnly()
}

// connect makes one connection.
func (d *Device) connect(ctx context.Context) (*nbd.Client, error) {
	conn, err := d.o.Dial(ctx)
	if err != nil {
		return nil, err
	}
	c, err := nbd.NewClient(ctx, conn, nbd.ClientOptions{Export: Name(d.o.Export), Timeout: d.o.Timeout})
	if err != nil {
		return nil, errors.Join(err, ignoreClosed(conn.Close()))
	}
	return c, nil
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// do runs a request, and again on a new connection where the one that it ran on was lost.
func (d *Device) do(ctx context.Context, request func(*nbd.Client) error) error {
	for {
		c, err := d.connected(ctx)
		if err != nil {
			return err
		}
		err = request(c)
		if err == nil || ctx.Err() != nil || !lost(err) {
			return err
		}
		d.drop(c, err)
	}
}

// lost tells a failure of the connection from the far server's answer.
func lost(err error) bool {
	var answer nbd.Errno
	return !errors.As(err, &answer) || answer == nbd.ESHUTDOWN
}

func isDone(c *nbd.Client) bool {
	select {
	case <-c.Done():
		return true
	default:
		return false
	}
}

// drop gives up a connection.
func (d *Device) drop(c *nbd.Client, why error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.client != c {
		return
	}
	d.client = nil
	d.log.Warn("connection to the export is lost; trying to get it back", "export", d.o.Export, "error", why)
	_ = c.Close()
}

// connected returns the connection, and waits for one where there is none. One caller connects, the others wait for it.
func (d *Device) connected(ctx context.Context) (*nbd.Client, error) {
	for {
		d.mu.Lock()
		if d.failed != nil {
			defer d.mu.Unlock()
			return nil, d.failed
		}
		if d.client != nil && !isDone(d.client) {
			defer d.mu.Unlock()
			return d.client, nil
		}
		wait := d.redial
		if wait == nil {
			wait = make(chan struct{})
			d.redial = wait
			go d.reconnect(wait)
		}
		d.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if err := d.gaveUp(); err != nil {
			return nil, err
		}
	}
}

// errPatience is what requests get while the far server cannot be reached.
var errPatience = errors.New("the appliance cannot be reached")

// gaveUp tells whether the attempt that a caller waited for ended without a connection.
func (d *Device) gaveUp() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.failed != nil:
		return d.failed
	case d.client == nil:
		return errPatience
	}
	return nil
}

// reconnect tries to connect until it succeeds, is refused for good, or patience ends.
func (d *Device) reconnect(done chan struct{}) {
	ctx, cancel := context.WithTimeout(d.ctx, d.o.Patience)
	defer cancel()
	backoff := d.o.MinBackoff
	for {
		c, err := d.connect(ctx)
		if err == nil {
			err = d.same(c)
		}
		switch {
		case err == nil:
			d.log.Info("connected to the export again", "export", d.o.Export)
			d.end(done, c, nil)
			return
		case forGood(err):
			d.log.Error("the export is gone", "export", d.o.Export, "error", err)
			d.end(done, nil, fmt.Errorf("export %s: %w", d.o.Export, err))
			return
		}
		select {
		case <-time.After(backoff):
			backoff = min(2*backoff, d.o.MaxBackoff)
		case <-ctx.Done():
			d.end(done, nil, nil)
			return
		}
	}
}

func (d *Device) end(done chan struct{}, c *nbd.Client, failed error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.failed != nil && c != nil { // closed meanwhile
		_ = c.Close()
		c = nil
	}
	d.client, d.redial = c, nil
	if d.failed == nil {
		d.failed = failed
	}
	close(done)
}

// errChanged: what is there under the name is another disk.
var errChanged = errors.New("the export has another size than before")

// same holds a new connection against what the relay's users know.
func (d *Device) same(c *nbd.Client) error {
	if c.Size() == d.size {
		return nil
	}
	return errors.Join(errChanged, c.Close())
}

// forGood tells an answer that no later attempt may go past. An export that is not known may only not be there yet.
func forGood(err error) bool {
	var e *nbd.Error
	return errors.Is(err, errChanged) || errors.As(err, &e) && e.Kind == nbd.KindPolicy
}

// Size implements nbd.Device.
func (d *Device) Size() int64 { return d.size }

// BlockSizes implements nbd.BlockSizer.
func (d *Device) BlockSizes() (minimum, preferred, maximum uint32) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.client == nil {
		return 1, 4096, 0
	}
	return d.client.BlockSizes()
}

// ReadAt implements nbd.Device.
func (d *Device) ReadAt(ctx context.Context, p []byte, off int64) error {
	return d.do(ctx, func(c *nbd.Client) error { return c.ReadAt(ctx, p, off) })
}

// WriteAt implements nbd.Writer.
func (d *Device) WriteAt(ctx context.Context, p []byte, off int64) error {
	return d.do(ctx, func(c *nbd.Client) error { return c.WriteAt(ctx, p, off) })
}

// WriteFUA implements nbd.FUAWriter.
func (d *Device) WriteFUA(ctx context.Context, p []byte, off int64) error {
	return d.do(ctx, func(c *nbd.Client) error { return c.WriteFUA(ctx, p, off) })
}

// Zero implements nbd.Writer.
func (d *Device) Zero(ctx context.Context, off, n int64, mayPunch bool) error {
	return d.do(ctx, func(c *nbd.Client) error { return c.Zero(ctx, off, n, mayPunch) })
}

// Trim implements nbd.Writer.
func (d *Device) Trim(ctx context.Context, off, n int64) error {
	return d.do(ctx, func(c *nbd.Client) error { return c.Trim(ctx, off, n) })
}

// Flush implements nbd.Writer.
func (d *Device) Flush(ctx context.Context) error {
	return d.do(ctx, func(c *nbd.Client) error { return c.Flush(ctx) })
}

// Cache implements nbd.Cacher.
func (d *Device) Cache(ctx context.Context, off, n int64) error {
	return d.do(ctx, func(c *nbd.Client) error { return c.Cache(ctx, off, n) })
}

// Extents implements nbd.Mapper. Where the connection is lost in between, it goes on behind what was yielded.
func (d *Device) Extents(ctx context.Context, off, n int64, yield func(n int64, f nbd.ExtentFlags) bool) error {
	stopped := false
	return d.do(ctx, func(c *nbd.Client) error {
		if stopped || n == 0 {
			return nil
		}
		return c.Extents(ctx, off, n, func(length int64, f nbd.ExtentFlags) bool {
			off, n = off+length, n-length
			stopped = !yield(length, f)
			return !stopped
		})
	})
}
