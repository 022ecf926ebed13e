package libvirt

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"
)

// rpc is what is called of libvirt; *golibvirt.Libvirt has it. See libvirt's own documentation for each.
type rpc interface {
	ConnectListAllDomains(need int32, flags golibvirt.ConnectListAllDomainsFlags) ([]golibvirt.Domain, uint32, error)
	DomainLookupByName(name string) (golibvirt.Domain, error)
	DomainLookupByUUID(id golibvirt.UUID) (golibvirt.Domain, error)
	DomainGetState(d golibvirt.Domain, flags uint32) (state, reason int32, err error)
	DomainIsPersistent(d golibvirt.Domain) (int32, error)
	DomainGetXMLDesc(d golibvirt.Domain, flags golibvirt.DomainXMLFlags) (string, error)
	DomainGetBlockInfo(d golibvirt.Domain, path string, flags uint32) (allocation, capacity, physical uint64, err error)
	DomainBackupBegin(d golibvirt.Domain, backup string, checkpoint golibvirt.OptString, flags golibvirt.DomainBackupBeginFlags) error
	DomainBackupGetXMLDesc(d golibvirt.Domain, flags uint32) (string, error)
	DomainAbortJob(d golibvirt.Domain) error
	DomainListAllCheckpoints(d golibvirt.Domain, need int32, flags uint32) ([]golibvirt.DomainCheckpoint, int32, error)
	DomainCheckpointGetXMLDesc(c golibvirt.DomainCheckpoint, flags uint32) (string, error)
	DomainCheckpointDelete(c golibvirt.DomainCheckpoint, flags golibvirt.DomainCheckpointDeleteFlags) error
	DomainFsfreeze(d golibvirt.Domain, mounts []string, flags uint32) (int32, error)
	DomainFsthaw(d golibvirt.Domain, mounts []string, flags uint32) (int32, error)
}

var _ rpc = (*golibvirt.Libvirt)(nil)

// Conn is a connection to the libvirtd of one host, and to that host's files. Methods may be called from many goroutines.
// A call whose context ends returns at once; libvirtd may still do what it was asked.
type Conn struct {
	uri    URI
	files  Files
	placer Placer
	dial   func(ctx context.Context, socket string) (net.Conn, error)
	lv     rpc
	raw    *golibvirt.Libvirt // nil in tests with a fake
	nc     net.Conn           // raw's
	close  func() error       // what is below: the tunnel

	calls sync.WaitGroup
}

// connectTimeout bounds the opening of a connection, ssh's log-in included.
const connectTimeout = 45 * time.Second

// Connect reaches a libvirtd. KindUnreachable where it does not answer.
func Connect(ctx context.Context, uri URI) (*Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	c := &Conn{uri: uri, close: func() error { return nil }}
	var err error
	if uri.SSH {
		err = c.throughSSH(ctx)
	} else {
		c.files, c.placer, c.dial = Local{}, Local{}, dialUnix
	}
	if err == nil {
		err = c.open(ctx)
	}
	if err != nil {
		return nil, &Error{KindUnreachable, "connect to libvirt on " + uri.place(), errors.Join(err, c.close())}
	}
	return c, nil
}

// place names the host for people.
func (u URI) place() string {
	if u.SSH {
		return u.Host
	}
	return "this machine"
}

func dialUnix(ctx context.Context, socket string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "unix", socket)
}

// open finds libvirtd's socket and says hello.
func (c *Conn) open(ctx context.Context) error {
	var faults []error
	for _, socket := range c.uri.sockets() {
		if c.uri.Socket == "" {
			if _, err := c.files.Stat(ctx, socket); errors.Is(err, os.ErrNotExist) {
				faults = append(faults, fmt.Errorf("there is no %s", socket))
				continue
			}
		}
		nc, err := c.dial(ctx, socket)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		lv := golibvirt.NewWithDialer(dialed{&guarded{Conn: nc}})
		if err := c.await(ctx, func() error { return lv.ConnectToURI(golibvirt.ConnectURI(c.uri.Driver)) }); err != nil {
			_ = nc.Close()
			return fmt.Errorf("%s: %w", socket, err)
		}
		c.lv, c.raw, c.nc = lv, lv, nc
		return nil
	}
	if len(faults) == 2 { // both usual places, on one line
		return fmt.Errorf("%w, %w", faults[0], faults[1])
	}
	return errors.Join(faults...)
}

// dialed hands over a connection that is made already.
type dialed struct{ conn net.Conn }

func (d dialed) Dial() (net.Conn, error) { return d.conn, nil }

// await makes a call that knows no context. One that is given up goes on in its goroutine until Close.
func (c *Conn) await(ctx context.Context, call func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	done := make(chan error, 1)
	c.calls.Go(func() {
		defer func() { // what the library makes of a strange answer is no reason to fall
			if p := recover(); p != nil {
				done <- fmt.Errorf("the answer of libvirtd cannot be read: %v", p)
			}
		}()
		done <- call()
	})
	select {
	case err := <-done:
		return c.named(err)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// named names the loss of the connection, for which the library has errors of its own.
func (c *Conn) named(err error) error {
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, golibvirt.ErrInterrupted) {
		return &Error{KindUnreachable, "talk to libvirt on " + c.uri.place(), errors.New("the connection is lost")}
	}
	return err
}

// call makes a call to libvirt and names it in the error.
func (c *Conn) call(ctx context.Context, op string, call func(lv rpc) error) error {
	return failure(op, c.await(ctx, func() error { return call(c.lv) }))
}

// Raw is libvirt's own API, for calls that this package has no method for. It knows no contexts.
func (c *Conn) Raw() *golibvirt.Libvirt { return c.raw }

// URI says which libvirtd it is.
func (c *Conn) URI() URI { return c.uri }

// Files are the files of the host.
func (c *Conn) Files() Files { return c.files }

// DialUnix connects to a unix socket of the host. The connection ends with its Close; over ssh it is a tunnel of its own.
func (c *Conn) DialUnix(ctx context.Context, socket string) (net.Conn, error) {
	nc, err := c.dial(ctx, socket)
	if err != nil {
		return nil, &Error{KindUnreachable, "connect to " + socket + " on " + c.uri.place(), err}
	}
	return nc, nil
}

// farewell bounds the leave-taking from a libvirtd that does not answer.
const farewell = 5 * time.Second

// Close gives the connection back and waits for calls that were given up.
func (c *Conn) Close() error {
	if c.raw != nil {
		ctx, cancel := context.WithTimeout(context.Background(), farewell)
		_ = c.await(ctx, c.raw.Disconnect) // libvirtd forgets us in any case
		cancel()
		_ = c.nc.Close()
	}
	err := c.close()
	c.calls.Wait()
	return err
}
