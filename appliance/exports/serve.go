package exports

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync/atomic"

	"coffer/nbd"
	"coffer/nbd/relay"
)

// Served is what an nbd.Server asks.
func (m *Manager) Served() nbd.Exports { return served{m} }

type served struct{ m *Manager }

var _ nbd.Exports = served{}

// viewer is a peer, as far as it matters for what it sees.
type viewer struct {
	local  bool
	client string
	name   string // for people
}

func (m *Manager) viewer(ctx context.Context, p nbd.Peer) viewer {
	v := viewer{name: peerName(p)}
	switch {
	case p.Cert == nil:
		v.local = p.Local()
	case m.o.ClientOf != nil:
		client, err := m.o.ClientOf(ctx, p.Cert)
		if err != nil {
			m.log.Warn("certificate of an NBD client does not count", "peer", v.name, "certificate", p.Cert.Subject.CommonName, "error", err)
			break
		}
		v.client = client
		v.name = "client " + client + " at " + v.name
	}
	return v
}

func peerName(p nbd.Peer) string {
	if p.Unix || p.Remote == nil {
		return "the unix socket"
	}
	if host, _, err := net.SplitHostPort(p.Remote.String()); err == nil {
		return host
	}
	return p.Remote.String()
}

// sees tells whether an export exists for a viewer.
func (v viewer) sees(e *export) bool {
	allow := e.rec.Allow
	return v.local || slices.Contains(allow, Anybody) || v.client != "" && slices.Contains(allow, v.client)
}

// List implements nbd.Exports.
func (s served) List(ctx context.Context, p nbd.Peer) (out []nbd.ExportInfo, err error) {
	v := s.m.viewer(ctx, p)
	for _, e := range s.m.all() {
		if v.sees(e) {
			out = append(out, nbd.ExportInfo{Name: e.rec.wireName(), Description: e.describe()})
		}
	}
	return out, nil
}

func (e *export) describe() string {
	s := e.rec.Disk + " of task " + e.rec.Task + ", client " + e.rec.Client
	if e.rec.Overlay {
		s += ", with overlay"
	}
	return s
}

// Open implements nbd.Exports. An export has two names: that of its list, and its id, which relays know it by.
func (s served) Open(ctx context.Context, p nbd.Peer, name string) (nbd.Export, error) {
	v := s.m.viewer(ctx, p)
	id, relayed := relay.Named(name)
	for _, e := range s.m.all() {
		if (e.rec.ID == id || e.rec.wireName() == name) && v.sees(e) {
			return e.open(ctx, v, relayed)
		}
	}
	return nbd.Export{}, &nbd.Error{Kind: nbd.KindUnknownExport, Op: "open export", Name: name}
}

// open opens the export for one connection.
func (e *export) open(ctx context.Context, v viewer, relayed bool) (nbd.Export, error) {
	refuse := func(err error) (nbd.Export, error) {
		return nbd.Export{}, &nbd.Error{Kind: refusal(err), Op: "open export", Name: e.rec.wireName(), Err: err}
	}
	peer, err := e.join(v)
	if err != nil {
		return refuse(err)
	}
	if _, err := e.device(ctx); err != nil {
		e.leave(v)
		return refuse(err)
	}
	c := &conn{e: e, v: v, peer: peer, take: atOnce}
	if relayed {
		c.take = e.turns.Next().Take
	}
	out := nbd.Export{Name: e.rec.wireName(), Description: e.describe(), ReadOnly: !e.rec.Overlay, MultiConn: true,
		Close: func() { e.leave(v) }}
	if e.rec.Overlay {
		out.Device = writeConn{c}
	} else {
		out.Device = c
	}
	return out, nil
}

// refusal tells what passes by itself, or with what a person does to the appliance, from what is for good: relays of machines
// try again after the one, and give up after the other.
func refusal(err error) nbd.Kind {
	switch KindOf(err) {
	case Broken, NotFound, Invalid:
		return nbd.KindPolicy
	}
	return nbd.KindShutdown
}

// join counts a connection, where the export takes one.
func (e *export) join(v viewer) (*peerConns, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if _, err := e.state(); err != nil {
		return nil, err
	}
	if e.rec.Machine != "" && e.overlay != nil && e.overlay.Unclean() {
		return nil, failf(Broken, nil, "the appliance lost power while machine %s wrote to export %s, and what was not flushed may be lost", e.rec.Machine, e.rec.ID)
	}
	if e.ended {
		return nil, failf(NotFound, nil, "export %s was dropped", e.rec.ID)
	}
	c := e.conns[v.name]
	if c == nil {
		c = &peerConns{client: v.client}
		e.conns[v.name] = c
	}
	c.n++
	return c, nil
}

// Revoke cuts the connections of a client off, whose certificate is not accepted any more.
func (m *Manager) Revoke(client string) {
	for _, e := range m.all() {
		e.mu.Lock()
		for _, c := range e.conns {
			if c.client == client {
				c.cut.Store(true)
			}
		}
		e.mu.Unlock()
	}
}

func (e *export) leave(v viewer) {
	e.mu.Lock()
	defer e.mu.Unlock()
	c := e.conns[v.name]
	if c.n--; c.n == 0 {
		delete(e.conns, v.name)
	}
}

// accessed records the first access of a peer. Connections that only ask for sizes are none.
func (e *export) accessed(v viewer) {
	e.mu.Lock()
	c := e.conns[v.name]
	first := c != nil && !c.recorded
	if first {
		c.recorded = true
	}
	e.mu.Unlock()
	if first {
		e.m.o.Accessed(Access{Export: e.rec.ID, Saveset: e.rec.Saveset.String(), Disk: e.rec.Disk, Peer: v.name, Write: e.rec.Overlay})
	}
}

// disk is what connections use.
type disk interface {
	nbd.Device
	nbd.Mapper
}

// conn is one connection to an export; writeConn is one that takes writes.
type conn struct {
	e    *export
	v    viewer
	used atomic.Bool // it has read or written
	peer *peerConns
	take func(change func() error) error // runs a change when it is this connection's turn
}

// atOnce is the turn of a connection that no other one follows on.
func atOnce(change func() error) error { return change() }

type writeConn struct{ *conn }

var (
	_ nbd.Device     = (*conn)(nil)
	_ nbd.Mapper     = (*conn)(nil)
	_ nbd.BlockSizer = (*conn)(nil)
	_ nbd.Lender     = (*conn)(nil)
	_ nbd.Writer     = writeConn{}
)

// disk returns the device in use: the overlay, or the disk in the saveset.
func (c *conn) disk() (disk, error) {
	c.e.mu.Lock()
	o, ended := c.e.overlay, c.e.ended
	c.e.mu.Unlock()
	if ended {
		return nil, c.e.gone()
	}
	if c.peer.cut.Load() {
		return nil, nbd.EPERM
	}
	if !c.used.Load() && !c.used.Swap(true) {
		c.e.accessed(c.v)
	}
	if o != nil {
		return o, nil
	}
	return base{c.e}, nil
}

// told adds the number for the client to an error of this package.
func told(err error) error {
	switch KindOf(err) {
	case Sealed:
		return errors.Join(err, nbd.EPERM)
	case Locked:
		return errors.Join(err, nbd.ESHUTDOWN)
	}
	return err
}

func (c *conn) Size() int64 { return c.e.rec.Size }

// BlockSizes implements nbd.BlockSizer: any request will do.
func (c *conn) BlockSizes() (minimum, preferred, maximum uint32) { return 1, 4096, 0 }

func (c *conn) ReadAt(ctx context.Context, p []byte, off int64) error {
	d, err := c.disk()
	if err == nil {
		err = d.ReadAt(ctx, p, off)
	}
	if err != nil {
		return told(err)
	}
	c.e.read.Add(int64(len(p)))
	return nil
}

// Lend implements nbd.Lender. An overlay lends nothing.
func (c *conn) Lend(ctx context.Context, off, n int64) ([]byte, error) {
	d, err := c.disk()
	l, ok := d.(nbd.Lender)
	if err != nil || !ok {
		return nil, told(err)
	}
	p, err := l.Lend(ctx, off, n)
	if err != nil {
		return nil, told(err)
	}
	c.e.read.Add(int64(len(p)))
	return p, nil
}

func (c *conn) Extents(ctx context.Context, off, n int64, yield func(n int64, f nbd.ExtentFlags) bool) error {
	d, err := c.disk()
	if err == nil {
		err = d.Extents(ctx, off, n, yield)
	}
	return told(err)
}

// change runs what changes the overlay.
func (c writeConn) change(f func(nbd.Writer) error) error {
	d, err := c.disk()
	if err != nil {
		return told(err)
	}
	w, ok := d.(nbd.Writer)
	if !ok {
		return nbd.EPERM
	}
	return told(c.take(func() error { return f(w) }))
}

func (c writeConn) WriteAt(ctx context.Context, p []byte, off int64) error {
	err := c.change(func(w nbd.Writer) error { return w.WriteAt(ctx, p, off) })
	if err == nil {
		c.e.written.Add(int64(len(p)))
	}
	return err
}

func (c writeConn) Zero(ctx context.Context, off, n int64, mayPunch bool) error {
	return c.change(func(w nbd.Writer) error { return w.Zero(ctx, off, n, mayPunch) })
}

func (c writeConn) Trim(ctx context.Context, off, n int64) error {
	return c.change(func(w nbd.Writer) error { return w.Trim(ctx, off, n) })
}

func (c writeConn) Flush(ctx context.Context) error {
	return c.change(func(w nbd.Writer) error { return w.Flush(ctx) })
}
