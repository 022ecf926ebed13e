package vm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path"
	"path/filepath"

	"coffer/appliance/sms"
	"coffer/images/libvirt"
	"coffer/nbd"
	"coffer/nbd/relay"
)

// relays are the sockets of one machine: QEMU connects to them, and finds the appliance's exports.
type relays struct {
	dir    string              // of the sockets here
	hosted string              // of the sockets where QEMU runs: the same, but on a host that ssh reaches
	by     map[string]*relayed // by target
	owner  *libvirt.User       // of the sockets; nil: this program's user
	far    *libvirt.Exposed    // nil: QEMU runs here
}

// relayed is one export on one socket.
type relayed struct {
	export string
	socket string
	dev    *relay.Device
	l      net.Listener
	stop   context.CancelFunc
	ended  chan struct{}
}

// dialer connects to the appliance's NBD server.
type dialer func(ctx context.Context) (net.Conn, error)

// openRelays makes the sockets below dir, which is made. What fails leaves none of them.
func openRelays(ctx context.Context, dir string, disks []sms.MachineDisk, dial dialer, log *slog.Logger, owner *libvirt.User) (*relays, error) {
	r := &relays{dir: dir, hosted: dir, by: map[string]*relayed{}, owner: owner}
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, err
	}
	for _, d := range disks {
		x, err := r.open(ctx, d, dial, log)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("reach the export of disk %s: %w", d.Target, err), r.close())
		}
		r.by[d.Target] = x
	}
	return r, nil
}

// openFar makes them here, below dir, and on a host that ssh reaches, below hosted.
func openFar(ctx context.Context, u libvirt.URI, dir, hosted string, disks []sms.MachineDisk, dial dialer, log *slog.Logger, owner *libvirt.User) (*relays, error) {
	r, err := openRelays(ctx, dir, disks, dial, log, nil)
	if err != nil {
		return nil, err
	}
	sockets := map[string]string{}
	for _, x := range r.by {
		sockets[filepath.Base(x.socket)] = x.socket
	}
	if r.far, err = libvirt.Expose(ctx, u, hosted, sockets, owner, log); err != nil {
		return nil, errors.Join(err, r.close())
	}
	r.hosted = hosted
	return r, nil
}

func (r *relays) open(ctx context.Context, d sms.MachineDisk, dial dialer, log *slog.Logger) (*relayed, error) {
	dev, err := relay.Open(ctx, relay.Options{Dial: dial, Export: d.Export, Logger: log})
	if err != nil {
		return nil, err
	}
	x := &relayed{export: d.Export, socket: filepath.Join(r.dir, d.Target+".sock"), dev: dev, ended: make(chan struct{})}
	if x.l, err = r.listen(x.socket); err != nil {
		return nil, errors.Join(err, dev.Close())
	}
	ctx, x.stop = context.WithCancel(context.WithoutCancel(ctx))
	server := nbd.NewServer(only{x}, nbd.ServerOptions{Logger: log})
	go func() {
		defer close(x.ended)
		if err := server.Serve(ctx, x.l); err != nil && ctx.Err() == nil {
			log.Error("socket of a machine's disk", "socket", x.socket, "error", err)
		}
	}()
	return x, nil
}

// listen makes a socket that QEMU's user alone may use.
func (r *relays) listen(socket string) (net.Listener, error) {
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) { // of an agent that was killed
		return nil, err
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		return nil, err
	}
	err = os.Chmod(socket, 0o600)
	if err == nil && r.owner != nil {
		err = os.Chown(socket, r.owner.UID, r.owner.GID)
	}
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// close ends them all and removes their directory.
func (r *relays) close() error {
	var errs []error
	if r.far != nil {
		errs = append(errs, r.far.Close())
	}
	for _, x := range r.by {
		x.stop()
		errs = append(errs, x.dev.Close())
		_ = x.l.Close() // the server may have done it
		<-x.ended
	}
	return errors.Join(append(errs, os.RemoveAll(r.dir))...)
}

// disks returns what a machine's definition says.
func (r *relays) disks() map[string]libvirt.NBDDisk {
	out := make(map[string]libvirt.NBDDisk, len(r.by))
	for target, x := range r.by {
		out[target] = libvirt.NBDDisk{Export: x.export, Socket: path.Join(r.hosted, filepath.Base(x.socket))}
	}
	return out
}

// only serves one export.
type only struct{ x *relayed }

var _ nbd.Exports = only{}

// List implements nbd.Exports.
func (o only) List(context.Context, nbd.Peer) ([]nbd.ExportInfo, error) {
	return []nbd.ExportInfo{{Name: o.x.export}}, nil
}

// Open implements nbd.Exports.
func (o only) Open(_ context.Context, _ nbd.Peer, name string) (nbd.Export, error) {
	if name != o.x.export {
		return nbd.Export{}, &nbd.Error{Kind: nbd.KindUnknownExport, Op: "open export", Name: name}
	}
	return nbd.Export{Name: name, Device: o.x.dev, ReadOnly: o.x.dev.ReadOnly(), MultiConn: true}, nil
}
