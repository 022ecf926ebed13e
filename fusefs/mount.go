//go:build linux

package fusefs

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const (
	// maxRequest is the most that the kernel reads in one request; it needs buffers of that size for no other reason.
	maxRequest = 1 << 20
	// readAheadKiB is how far the kernel reads ahead of a program that reads in order.
	readAheadKiB = 2048
	// stopWait is how long Unmount waits for the serving goroutines after the connection is cut.
	stopWait = 5 * time.Second

	// fsType is shown as the type of the mount; it also tells our own mounts from others'.
	fsType = "fuse.coffer"
)

// Options of a mount. The zero value is a mount for root alone.
type Options struct {
	// AllowOther lets other users in, under the modes, owners and ACLs that the files show.
	AllowOther bool
	// FSName is shown as the mount's source; "coffer" if empty.
	FSName string
	// Timeout is when a request ends with EIO; 0 = 60 s.
	Timeout time.Duration
	// MaxInodes is how many files the kernel may hold in its caches, beside those in use, before the oldest are dropped:
	// each takes about half a KiB here. 0 = 200,000.
	MaxInodes int
	// Space is what df shows; nil = nothing.
	Space func() Space
	// Logger takes a line for each failed request; nil = slog.Default().
	Logger *slog.Logger
}

func (o Options) withDefaults() Options {
	if o.FSName == "" {
		o.FSName = "coffer"
	}
	if o.Timeout == 0 {
		o.Timeout = time.Minute
	}
	if o.MaxInodes == 0 {
		o.MaxInodes = 200_000
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return o
}

// Mounted is a mounted file system. Its methods may be called from many goroutines.
type Mounted struct {
	dir    string
	server *server
	done   chan struct{} // closed when serving has ended

	once sync.Once
	err  error
}

// Available tells why nothing can be mounted here; nil = it can.
func Available() error {
	if os.Geteuid() != 0 {
		return errors.New("mounting needs root")
	}
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("mounting needs the kernel's FUSE device (modprobe fuse; in a container: --device /dev/fuse): %w", err)
	}
	return f.Close()
}

// Mount shows root in the directory dir, which must be empty or hold nothing but a stale mount of ours, and serves it
// until Unmount or until it is unmounted by other means. The root directory's methods may be called before Mount returns.
func Mount(ctx context.Context, dir string, root Dir, o Options) (*Mounted, error) {
	o = o.withDefaults()
	m, err := mount(ctx, dir, root, o)
	if err != nil {
		return nil, fmt.Errorf("mount on %s: %w", dir, err)
	}
	return m, nil
}

func mount(ctx context.Context, dir string, root Dir, o Options) (*Mounted, error) {
	if err := Available(); err != nil {
		return nil, err
	}
	dir, err := resolve(dir)
	if err != nil {
		return nil, err
	}
	if err := ClearStale(ctx, dir); err != nil {
		return nil, err
	}
	if err := mustBeEmpty(dir); err != nil {
		return nil, err
	}
	fd, err := attach(dir, o)
	if err != nil {
		return nil, err
	}
	s := newServer(root, o)
	fs, err := fuse.NewServer(s, "/dev/fd/"+strconv.Itoa(fd), serverOptions(o))
	if err != nil {
		s.watch.close()
		detach(dir)
		return nil, err
	}
	m := &Mounted{dir: dir, server: s, done: make(chan struct{})}
	go func() {
		defer close(m.done)
		var wg sync.WaitGroup
		wg.Go(func() {
			s.inodes.prune(s.watch.base, func(parent uint64, name string) { _ = fs.EntryNotify(parent, name) })
		})
		fs.Serve()
		s.watch.close()
		wg.Wait()
	}()
	m.prepare(o.Logger)
	return m, nil
}

func serverOptions(o Options) *fuse.MountOptions {
	return &fuse.MountOptions{
		AllowOther:           o.AllowOther,
		EnableAcl:            o.AllowOther, // the kernel then checks ACLs, beside modes
		EnableSymlinkCaching: true,
		ExtraCapabilities:    fuse.CAP_NO_OPENDIR_SUPPORT,
		MaxWrite:             maxRequest, // bounds reads, too
		MaxBackground:        64,
		DisableSplice:        true, // answers lie in memory
		Logger:               log.New(logWriter{o.Logger}, "", 0),
	}
}

// logWriter passes go-fuse's own few lines on.
type logWriter struct{ log *slog.Logger }

func (w logWriter) Write(p []byte) (int, error) {
	w.log.Warn("mounted file system: " + string(p[:max(len(p)-1, 0)]))
	return len(p), nil
}

// attach opens a FUSE connection and mounts it. go-fuse would do it, but with a descriptor that child processes inherit:
// one of them would keep the mount alive, and hanging, after this process was killed.
func attach(dir string, o Options) (fd int, err error) {
	fd, err = unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open /dev/fuse: %w", err)
	}
	data := fmt.Sprintf("fd=%d,rootmode=%o,user_id=0,group_id=0,max_read=%d", fd, unix.S_IFDIR, maxRequest)
	if o.AllowOther {
		data += ",allow_other,default_permissions"
	}
	const flags = unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_NOATIME
	if err := unix.Mount(o.FSName, dir, fsType, flags, data); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("mount(2): %w", err)
	}
	return fd, nil
}

// prepare does what can only be done with the mount in service. All of it is for speed or comfort, and may fail.
func (m *Mounted) prepare(log *slog.Logger) {
	if err := m.settlePolling(); err != nil {
		log.Debug("mounted file system: first contact", "err", err)
	}
	var st unix.Stat_t
	if err := unix.Stat(m.dir, &st); err != nil {
		return
	}
	bdi := fmt.Sprintf("/sys/class/bdi/%d:%d/read_ahead_kb", unix.Major(st.Dev), unix.Minor(st.Dev))
	if err := os.WriteFile(bdi, []byte(strconv.Itoa(readAheadKiB)), 0); err != nil {
		log.Debug("mounted file system: keep the kernel's read-ahead", "err", err)
	}
}

// settlePolling makes the kernel learn that files here cannot be polled. Go's runtime polls every file that it opens, and
// does so while it holds one of its processors: without this, a Go program that reads its own mount could wait for itself.
// The name is answered by go-fuse.
func (m *Mounted) settlePolling() error {
	fd, err := unix.Open(filepath.Join(m.dir, ".go-fuse-epoll-hack"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	return err
}

// Dir returns the mount point.
func (m *Mounted) Dir() string { return m.dir }

// Done is closed when the file system is no longer served, also when somebody else unmounted it.
func (m *Mounted) Done() <-chan struct{} { return m.done }

// Inodes tells how many inodes the kernel holds at the moment.
func (m *Mounted) Inodes() int { return m.server.inodes.size() }

// Unmount ends the file system: gently if nobody uses it, else by cutting the connection and detaching the mount, so that
// its users get errors instead of waiting. It returns when nothing is served any more. Calls after the first return the
// same.
func (m *Mounted) Unmount() error {
	m.once.Do(func() { m.err = m.unmount() })
	return m.err
}

func (m *Mounted) unmount() error {
	select {
	case <-m.done: // somebody else did it
		return nil
	default:
	}
	m.server.watch.stop(errStopped) // requests that wait for the store let go
	// It is cut, and not only taken out of the tree: another mount namespace may have a copy, which alone would keep it served.
	if err := detach(m.dir); err != nil {
		return fmt.Errorf("unmount %s: %w", m.dir, err)
	}
	select {
	case <-m.done:
		return nil
	case <-time.After(stopWait):
		return fmt.Errorf("unmount %s: still served after %v", m.dir, stopWait)
	}
}

// detach cuts the connection of a FUSE mount (MNT_FORCE does that) and takes it out of the tree, busy or not.
func detach(dir string) error {
	err := unix.Unmount(dir, unix.MNT_FORCE|unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EINVAL) {
		return nil // not mounted any more
	}
	return err
}
