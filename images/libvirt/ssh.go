package libvirt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// tunnel is one ssh process. Its session is the SFTP subsystem, which carries files and keeps the process alive: when this
// program dies, however it does, the session sees the end of its input, and ssh ends with it. Beside it ssh forwards one
// unix socket of the host into a directory that only this user can enter, or sockets of this machine to the host.
type tunnel struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	sftp   *sftp
	errors *tail
	dir    string // of the forwarded socket
	ended  chan struct{}
	once   sync.Once
}

const (
	// tunnelPrefix begins the names of the directories of tunnels, in the directory for temporary files; the id of the
	// process that made it follows.
	tunnelPrefix = "coffer-ssh-"
	// forwarded is the name of the socket there.
	forwarded = "s"
	// sshGrace is how long ssh has to end by itself.
	sshGrace = 5 * time.Second
)

// sshArgs are the arguments of an ssh whose session is SFTP. forwards are those that say which sockets it carries.
func sshArgs(u URI, forwards ...string) []string {
	return append(append(sshOptions(u), forwards...), "-s", "--", u.Host, "sftp")
}

// sshOptions are the arguments of every ssh. Nothing is asked for, and an unknown or changed host key ends it: whatever a
// configuration says, for these come first and the first one counts (ssh_config(5)).
func sshOptions(u URI) []string {
	args := []string{"-T", "-x", "-a"}
	for _, o := range []string{"BatchMode=yes", "StrictHostKeyChecking=yes", "ControlMaster=no", "ControlPath=none", "PermitLocalCommand=no",
		"ExitOnForwardFailure=yes", "StreamLocalBindMask=0177", "ConnectTimeout=20", "ServerAliveInterval=15", "ServerAliveCountMax=4"} {
		args = append(args, "-o", o)
	}
	if u.KnownHosts != "" {
		args = append(args, "-o", "UserKnownHostsFile="+sshQuote(u.KnownHosts), "-o", "GlobalKnownHostsFile=none")
	}
	if u.KeyFile != "" {
		args = append(args, "-o", "IdentitiesOnly=yes", "-i", u.KeyFile)
	}
	if u.User != "" {
		args = append(args, "-l", u.User)
	}
	if u.Port != "" {
		args = append(args, "-p", u.Port)
	}
	return args
}

// sshQuote keeps a path one word in the value of an option, and its percent signs what they are.
func sshQuote(path string) string {
	return `"` + strings.ReplaceAll(path, "%", "%%") + `"`
}

// openTunnel starts ssh and waits until the host answers. remote is the socket of the host to reach, or empty; back are sockets
// of this machine that the host gets, by their paths there.
func openTunnel(ctx context.Context, u URI, remote string, back map[string]string) (*tunnel, error) {
	t := &tunnel{errors: &tail{}, ended: make(chan struct{})}
	var err error
	if t.dir, err = os.MkdirTemp("", tunnelPrefix+strconv.Itoa(os.Getpid())+"-"); err != nil {
		return nil, err
	}
	var forwards []string
	if remote != "" {
		forwards = append(forwards, "-L", t.socket()+":"+remote)
	}
	for there, here := range back {
		forwards = append(forwards, "-R", there+":"+here)
	}
	t.cmd = exec.Command("ssh", sshArgs(u, forwards...)...) // not of ctx, which is for the opening alone
	t.cmd.Stderr = t.errors
	out, err := t.cmd.StdoutPipe()
	if err == nil {
		t.stdin, err = t.cmd.StdinPipe()
	}
	if err == nil {
		err = t.cmd.Start()
	}
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(t.dir))
	}
	t.sftp = newSFTP(out, t.stdin)
	hello := make(chan error, 1)
	go func() {
		hello <- t.sftp.hello()
		<-t.sftp.gone // all that ssh wrote is read
		_ = t.cmd.Wait()
		close(t.ended)
	}()
	select {
	case err = <-hello:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = t.close()
		return nil, t.explain(err)
	}
	return t, nil
}

// explain adds what ssh said about its end.
func (t *tunnel) explain(err error) error {
	if said := t.errors.String(); said != "" {
		return fmt.Errorf("ssh: %s", said)
	}
	return fmt.Errorf("ssh: %w", err)
}

func (t *tunnel) socket() string { return filepath.Join(t.dir, forwarded) }

// close ends ssh.
func (t *tunnel) close() error {
	var err error
	t.once.Do(func() {
		_ = t.stdin.Close()
		select {
		case <-t.ended:
		case <-time.After(sshGrace):
			_ = t.cmd.Process.Kill()
			<-t.ended
		}
		err = os.RemoveAll(t.dir)
	})
	return err
}

// throughSSH makes the connection one over ssh. The first usual socket that the host has is the one that is forwarded.
func (c *Conn) throughSSH(ctx context.Context) error {
	sweepTunnels()
	t, err := openTunnel(ctx, c.uri, "", nil)
	if err != nil {
		return err
	}
	c.files, c.placer, c.close = t.sftp, t.sftp, t.close
	c.dial = func(ctx context.Context, socket string) (net.Conn, error) { return dialTunnel(ctx, c.uri, socket) }
	return nil
}

// dialTunnel connects to a socket of the host, through an ssh of its own.
func dialTunnel(ctx context.Context, u URI, socket string) (net.Conn, error) {
	if !strings.HasPrefix(socket, "/") || strings.ContainsAny(socket, ":\x00\n") {
		return nil, fmt.Errorf("ssh cannot forward the socket %q", socket)
	}
	t, err := openTunnel(ctx, u, socket, nil)
	if err != nil {
		return nil, err
	}
	nc, err := dialUnix(ctx, t.socket())
	if err != nil {
		return nil, errors.Join(t.explain(err), t.close())
	}
	return &tunnelled{nc, t}, nil
}

// tunnelled is a connection with the tunnel that it goes through.
type tunnelled struct {
	net.Conn
	t *tunnel
}

// Close implements net.Conn.
func (c *tunnelled) Close() error { return errors.Join(c.Conn.Close(), c.t.close()) }

// sweepTunnels removes the directories that killed processes left.
func sweepTunnels() {
	dirs, _ := filepath.Glob(filepath.Join(os.TempDir(), tunnelPrefix+"*"))
	for _, dir := range dirs {
		pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), tunnelPrefix), "-")
		if n, err := strconv.Atoi(pid); err == nil && !alive(n) {
			_ = os.RemoveAll(dir)
		}
	}
}

// tail keeps the end of what is written.
type tail struct {
	mu  sync.Mutex // guards buf
	buf []byte
}

const maxTail = 2 << 10

// Write implements io.Writer.
func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	t.buf = t.buf[max(0, len(t.buf)-maxTail):]
	return len(p), nil
}

// String returns it as one line.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.Join(strings.FieldsFunc(string(bytes.ToValidUTF8(t.buf, nil)), func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
}
