package libvirt

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path"
	"strings"
	"time"
)

// Exposed are sockets of this machine that a host has, too: what connects to them there is carried here by ssh. When the ssh
// connection is lost it is made anew, for as long as it takes. Whoever is connected sees a lost connection, and may connect
// again.
type Exposed struct {
	uri   URI
	dir   string
	back  map[string]string // of this machine, by the path there
	owner *User
	log   *slog.Logger
	stop  context.CancelFunc
	ended chan struct{}
}

const (
	exposeMinPause = 500 * time.Millisecond
	exposeMaxPause = 10 * time.Second
)

// Expose makes the sockets appear in a directory of the host that is made, by their names there. Only the owner may connect.
func Expose(ctx context.Context, u URI, dir string, sockets map[string]string, owner *User, log *slog.Logger) (*Exposed, error) {
	e := &Exposed{uri: u, dir: dir, back: map[string]string{}, owner: owner, log: log, ended: make(chan struct{})}
	for name, here := range sockets {
		there := path.Join(dir, name)
		if strings.ContainsAny(there+here, ":\x00\n") {
			return nil, failf(KindInvalid, "give the host a socket", "ssh cannot forward %q to %q", there, here)
		}
		e.back[there] = here
	}
	t, err := e.open(ctx)
	if err != nil {
		return nil, &Error{KindUnreachable, "give " + u.Host + " the sockets of the disks", errors.Join(err, e.remove(context.WithoutCancel(ctx)))}
	}
	ctx, e.stop = context.WithCancel(context.WithoutCancel(ctx))
	go e.keep(ctx, t)
	return e, nil
}

// open makes the sockets once. sshd does not replace a socket that is there, so that of a lost connection goes before.
func (e *Exposed) open(ctx context.Context) (*tunnel, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	if err := e.prepare(ctx); err != nil {
		return nil, err
	}
	t, err := openTunnel(ctx, e.uri, "", e.back)
	if err != nil {
		return nil, fmt.Errorf("%w (sshd there must have AllowStreamLocalForwarding)", err)
	}
	for there := range e.back {
		if err := t.sftp.Own(ctx, there, 0o600, e.owner); err != nil {
			return nil, errors.Join(fmt.Errorf("the user of ssh must be root there: %w", err), t.close())
		}
	}
	return t, nil
}

func (e *Exposed) prepare(ctx context.Context) error {
	t, err := openTunnel(ctx, e.uri, "", nil)
	if err != nil {
		return err
	}
	c := &Conn{files: t.sftp, placer: t.sftp}
	err = c.MakeDirs(ctx, e.dir, 0o711)
	for there := range e.back {
		if err == nil {
			err = ignoreMissing(t.sftp.Remove(ctx, there))
		}
	}
	return errors.Join(err, t.close())
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// keep has the sockets there until Close.
func (e *Exposed) keep(ctx context.Context, t *tunnel) {
	defer close(e.ended)
	for pause := exposeMinPause; ; {
		if t != nil {
			select {
			case <-t.ended:
				e.log.Warn("ssh that carries the disks of a machine ended; it is started again", "host", e.uri.Host, "ssh", t.errors.String())
			case <-ctx.Done():
			}
			_ = t.close()
			pause = exposeMinPause
		}
		select {
		case <-time.After(pause):
			pause = min(2*pause, exposeMaxPause)
		case <-ctx.Done():
			return
		}
		var err error
		if t, err = e.open(ctx); err != nil {
			t = nil
			e.log.Warn("the host cannot be reached", "host", e.uri.Host, "error", err)
		}
	}
}

// Close takes the sockets away, with their directory. A host that cannot be reached keeps what nobody listens on.
func (e *Exposed) Close() error {
	e.stop()
	<-e.ended
	if err := e.remove(context.Background()); err != nil {
		e.log.Warn("sockets stay on the host", "host", e.uri.Host, "dir", e.dir, "error", err)
	}
	return nil
}

func (e *Exposed) remove(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	t, err := openTunnel(ctx, e.uri, "", nil)
	if err != nil {
		return err
	}
	return errors.Join(removeDir(ctx, t.sftp, e.dir, 0), t.close())
}

// RemoveDir removes a directory of the host that has nothing but files and sockets in it. None is no error.
func (c *Conn) RemoveDir(ctx context.Context, dir string) error {
	return failure("remove "+dir, removeDir(ctx, c.files, dir, 0))
}
