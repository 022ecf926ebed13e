package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"coffer/api"
	"coffer/appliance/internal/harness"
	"coffer/nbd"
)

// server is one that is measured.
type server interface {
	name() string
	read() string  // URI of the disk, read-only
	write() string // URI of one that takes writes; empty: none
	pid() int      // of the process that serves reads
	cool(context.Context) error
	stop() error
}

func start(ctx context.Context, o options) (servers []server, err error) {
	add := func(s server, e error) {
		if s != nil && e == nil {
			servers = append(servers, s)
		}
		err = errors.Join(err, e)
	}
	if o.layer {
		self, e := os.Executable()
		if e != nil {
			return nil, e
		}
		add(startProcess(ctx, o, "nbd", func(socket string) []string { return []string{self, "-serve", o.disk, "-socket", socket} }, nil))
	} else {
		add(startCoffer(ctx, o))
	}
	add(startProcess(ctx, o, "nbdkit", nbdkit(o.disk), nil))
	copied := filepath.Join(o.dir, "written.raw")
	if e := copyDisk(copied, o.disk); e != nil {
		return servers, e
	}
	add(startProcess(ctx, o, "qemu-nbd", func(socket string) []string {
		return []string{"qemu-nbd", "-r", "-t", "-e", "16", "-k", socket, "-f", "raw", o.disk}
	}, func(socket string) []string {
		return []string{"qemu-nbd", "-t", "-e", "16", "-k", socket, "-f", "raw", copied}
	}))
	return servers, err
}

// nbdkit is the command that serves a raw file.
func nbdkit(disk string) func(socket string) []string {
	return func(socket string) []string { return []string{"nbdkit", "-f", "-r", "-U", socket, "file", disk} }
}

// raw is a program that serves the raw file, and perhaps a second one that serves a copy to be written.
type raw struct {
	what    string
	disk    string
	reader  *exec.Cmd
	writer  *exec.Cmd
	readURI string
	wrURI   string
}

func startProcess(ctx context.Context, o options, what string, read, write func(socket string) []string) (server, error) {
	r := &raw{what: what, disk: o.disk}
	var err error
	if r.reader, r.readURI, err = listen(ctx, filepath.Join(o.dir, what+".sock"), read); err != nil {
		return nil, err
	}
	if write != nil {
		if r.writer, r.wrURI, err = listen(ctx, filepath.Join(o.dir, what+"-rw.sock"), write); err != nil {
			return nil, errors.Join(err, r.stop())
		}
	}
	return r, nil
}

func listen(ctx context.Context, socket string, args func(string) []string) (*exec.Cmd, string, error) {
	a := args(socket)
	cmd := exec.Command(a[0], a[1:]...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, "", err
	}
	for {
		c, err := net.Dial("unix", socket)
		if err == nil {
			return cmd, socketURI(socket), c.Close()
		}
		select {
		case <-ctx.Done():
			return nil, "", errors.Join(ctx.Err(), cmd.Process.Kill())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (r *raw) name() string               { return r.what }
func (r *raw) read() string               { return r.readURI }
func (r *raw) write() string              { return r.wrURI }
func (r *raw) pid() int                   { return r.reader.Process.Pid }
func (r *raw) cool(context.Context) error { return evict(r.disk) }

func (r *raw) stop() error {
	for _, c := range []*exec.Cmd{r.reader, r.writer} {
		if c != nil {
			_ = c.Process.Kill() // by its handle: it is ours
			_ = c.Wait()         // it was killed
		}
	}
	return nil
}

// coffer is an appliance with a saveset of the disk and two exports of it: read-only and with an overlay.
type coffer struct {
	a         *harness.Appliance
	reader    api.Export
	overlaid  api.Export
	token     api.NewToken // of frames
	agentStop func() error
}

func startCoffer(ctx context.Context, o options) (_ server, err error) {
	fmt.Fprintln(os.Stderr, "backing the disk up")
	flags, err := configured(o)
	if err != nil {
		return nil, err
	}
	a, err := harness.Start(ctx, harness.Options{Bin: o.bin, Dir: filepath.Join(o.dir, "coffer"), Flags: flags})
	if err != nil {
		return nil, err
	}
	c := &coffer{a: a, agentStop: func() error { return nil }}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.stop())
		}
	}()
	agent, err := a.Agent(ctx, "kvm1")
	if err != nil {
		return nil, err
	}
	c.agentStop = agent.Stop
	for _, args := range [][]string{
		{"task", "add", "disk", "--client", "kvm1", "--source", filepath.Dir(o.disk), "--image", filepath.Base(o.disk)},
		{"backup", "disk", "--level", "full", "--json"},
	} {
		if _, err := a.Coffer(ctx, args...); err != nil {
			return nil, err
		}
	}
	if err := a.JSON(ctx, &c.reader, "export", "add", "latest:disk", o.disk); err != nil {
		return nil, err
	}
	return c, a.JSON(ctx, &c.overlaid, "export", "add", "latest:disk", o.disk, "--overlay")
}

// configured gives cofferd a configuration file where it needs one.
func configured(o options) ([]string, error) {
	if o.cache == 0 {
		return nil, nil
	}
	path := filepath.Join(o.dir, "cofferd.toml")
	text := fmt.Sprintf("[store]\nframe_memory = \"%dMiB\"\n", o.cache)
	return []string{"--config", path}, os.WriteFile(path, []byte(text), 0o600)
}

func (c *coffer) name() string  { return "coffer" }
func (c *coffer) read() string  { return unixURI(c.reader) }
func (c *coffer) write() string { return unixURI(c.overlaid) }
func (c *coffer) pid() int      { return c.a.PID() }
func (c *coffer) stop() error   { return errors.Join(c.agentStop(), c.a.Stop()) }

// unixURI is the export's address on the unix socket, which is the first.
func unixURI(e api.Export) string {
	if len(e.URIs) == 0 {
		return ""
	}
	return e.URIs[0]
}

// cool starts cofferd anew with nothing of the store in the page cache.
func (c *coffer) cool(ctx context.Context) error {
	if err := c.a.Stop(); err != nil {
		return err
	}
	if err := evict(c.a.Data); err != nil {
		return err
	}
	if err := c.a.Launch(ctx); err != nil {
		return err
	}
	for { // the store opens after the API answers
		var e api.Export
		err := c.a.JSON(ctx, &e, "export", "show", c.reader.ID)
		if err == nil && e.State == api.ExportReady {
			return evict(c.a.Data)
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// plain is a file as a device.
type plain struct {
	f    *os.File
	size int64
}

func (p plain) Size() int64 { return p.size }

func (p plain) ReadAt(_ context.Context, b []byte, off int64) error {
	_, err := p.f.ReadAt(b, off)
	return err
}

// only is one export.
type only struct{ d nbd.Device }

func (o only) List(context.Context, nbd.Peer) ([]nbd.ExportInfo, error) {
	return []nbd.ExportInfo{{Name: ""}}, nil
}

func (o only) Open(context.Context, nbd.Peer, string) (nbd.Export, error) {
	return nbd.Export{Device: o.d, MultiConn: true}, nil
}

func serveFile(ctx context.Context, path, socket string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	return serve(ctx, plain{f, st.Size()}, l)
}
