package appliance

import (
	"context"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"time"

	"coffer/api"
	"coffer/api/server"
	"coffer/appliance/config"
	"coffer/appliance/exports"
	"coffer/appliance/jobs"
	"coffer/dedup"
	"coffer/dedup/digest"
	"coffer/dedup/recipe"
	"coffer/dedup/seal"
	"coffer/nbd"
	"coffer/nbd/overlay"
)

// stopNBD is how long NBD requests in flight have to end at a stop.
const stopNBD = 3 * time.Second

// exportDesk implements server.Exports, and keeps the NBD server's parts together.
type exportDesk struct{ *appliance }

var _ server.Exports = exportDesk{}

// openExports finds the exports and leases their savesets. The store is open by now, or comes later: see storeKeeper.opened.
func (a *appliance) openExports(ctx context.Context) error {
	boot, err := bootID()
	if err != nil {
		return err
	}
	desk := &clientDesk{appliance: a}
	a.exports = exports.New(exports.Options{Dir: a.data.OverlaysDir(), BootID: boot, Reserve: int64(a.conf.NBD.Reserve), ClientOf: desk.Authenticate,
		Accessed: a.exportAccessed, Logger: a.log, Now: a.opts.Now})
	if err := a.exports.Load(ctx); err != nil {
		return err
	}
	if store, err := a.store.get(); err == nil {
		a.exports.Attach(ctx, exportStore{a, store})
	}
	o := nbd.ServerOptions{TLS: a.authority.NBDConfig(), MaxConns: a.conf.NBD.Connections, MemoryBudget: int64(a.conf.NBD.Memory), Logger: a.log}
	if a.conf.NBD.TLS == config.NBDTLSOffered {
		o.RequireTLS = func(nbd.Peer) bool { return false }
	}
	a.nbd = nbd.NewServer(a.exports.Served(), o)
	return nil
}

// bootID names this run of the kernel (proc(5)).
func bootID() (id overlay.BootID, err error) {
	const path = "/proc/sys/kernel/random/boot_id"
	raw, err := os.ReadFile(path)
	if err != nil {
		return id, fmt.Errorf("ask for the boot id: %w", err)
	}
	text := strings.ReplaceAll(strings.TrimSpace(string(raw)), "-", "")
	if n, err := hex.Decode(id[:], []byte(text)); err != nil || n != len(id) {
		return id, fmt.Errorf("%s reads %q", path, raw)
	}
	return id, nil
}

// listenNBD opens what the configuration names.
func (a *appliance) listenNBD(ctx context.Context) error {
	if addr := a.conf.NBD.Listen; addr != config.ListenerOff {
		l, err := config.ListenTCP(ctx, addr, "nbd.listen")
		if err != nil {
			return err
		}
		a.nbdPort = l
	}
	path := a.conf.NBDSocket()
	if path == "" {
		return nil
	}
	l, err := config.ListenUnix(ctx, path, "nbd.socket")
	if err != nil && a.conf.NBD.Socket == "" {
		// A data directory with a long name has no room for the default socket: that keeps nobody from backing up.
		a.log.Warn("no unix socket for NBD: name one with the configuration key nbd.socket", "error", err)
		return nil
	}
	a.nbdSocket = l
	return err
}

// stopNBD ends connections to exports, those that are idle at once.
func (a *appliance) endNBD() {
	ctx, done := context.WithTimeout(context.Background(), stopNBD)
	defer done()
	if err := a.nbd.Shutdown(ctx); err != nil {
		a.log.Warn("NBD connections were cut", "error", err)
	}
}

// serveNBD serves a connection that came to the port of agents.
func (a *appliance) serveNBD(ctx context.Context, conn *tls.Conn) {
	if err := a.nbd.ServeConn(ctx, conn); err != nil {
		a.log.Info("NBD connection of an agent ended", "peer", conn.RemoteAddr().String(), "error", err)
	}
}

// exportAccessed records that a saveset was read, or written over, through an export: access counts as a restore.
func (a *appliance) exportAccessed(x exports.Access) {
	verb := "read"
	if x.Write {
		verb = "used, with an overlay,"
	}
	a.record(context.Background(), "saveset.nbd", x.Saveset, fmt.Sprintf("disk %s %s over NBD by %s, export %s", x.Disk, verb, x.Peer, x.Export))
}

// exportOf returns an export that needs a saveset; "" where none does.
func (a *appliance) exportOf(saveset string) string {
	id, err := dedup.ParseSavesetID(saveset)
	if err != nil {
		return ""
	}
	for _, export := range a.exports.Using(id) {
		return export
	}
	return ""
}

// exportStore opens savesets for exports.
type exportStore struct {
	a     *appliance
	store *dedup.Store
}

// View implements exports.Store.
func (s exportStore) View(ctx context.Context, id dedup.SavesetID) (exports.Reading, error) {
	v, err := s.a.taskKeys.view(ctx, s.store, id)
	if err != nil {
		return nil, err
	}
	return exportReading{v, s.a.taskKeys}, nil
}

type exportReading struct {
	reading
	keys *taskKeys
}

// Key implements exports.Reading.
func (r exportReading) Key() (*seal.Key, error) {
	by := r.Manifest().SealedBy
	if by.IsZero() {
		return nil, nil
	}
	h := r.keys.get(by)
	if h == nil {
		return nil, errNeedsKey
	}
	return &h.key, nil
}

// exportError words what exports refuse.
func exportError(err error) error {
	e, ok := errors.AsType[*exports.Error](err)
	if !ok {
		return apiError(err)
	}
	switch e.Kind {
	case exports.NotFound:
		return told(api.CodeNotFound, e.Error(), "see: coffer export list, coffer saveset ls ID")
	case exports.Invalid:
		return told(api.CodeBadRequest, e.Error(), "see: coffer saveset ls ID")
	case exports.InUse:
		return told(api.CodeInUse, e.Error(), "shut down what uses it; see: coffer export list")
	case exports.Locked:
		return told(api.CodeStoreLocked, e.Error(), "see: coffer store status")
	case exports.Sealed:
		return told(api.CodeKeyNeeded, e.Error(), "coffer saveset unseal ID --key-file FILE")
	case exports.Full:
		return told(api.CodeStoreUnwritable, e.Error(), "make space on the disk of the appliance's data directory")
	case exports.Broken:
		return told(api.CodeConflict, e.Error(), "coffer export drop ID")
	}
	return apiError(err)
}

// Exports implements server.Exports.
func (d exportDesk) Exports(context.Context) ([]api.Export, error) {
	return mapped(d.exports.List(), d.apiExport), nil
}

// Export implements server.Exports.
func (d exportDesk) Export(_ context.Context, id string) (api.Export, error) {
	i, err := d.exports.Get(id)
	if err != nil {
		return api.Export{}, exportError(err)
	}
	return d.apiExport(i), nil
}

// AddExport implements server.Exports.
func (d exportDesk) AddExport(ctx context.Context, s api.ExportSpec) (api.Export, error) {
	id, err := dedup.ParseSavesetID(s.Saveset)
	if err != nil {
		return api.Export{}, apiError(err)
	}
	i, err := d.exports.Create(ctx, exports.Spec{Saveset: id, Disk: s.Disk, Overlay: s.Overlay, Limit: s.BytesLimit, Allow: s.Clients,
		Purpose: s.Purpose, By: userOf(ctx)})
	if err != nil {
		return api.Export{}, exportError(err)
	}
	return d.apiExport(i), nil
}

// DropExport implements server.Exports.
func (d exportDesk) DropExport(ctx context.Context, id string, force bool) error {
	if err := d.unheld(id, false); err != nil {
		return err
	}
	err := d.exports.Drop(ctx, id, force)
	if exports.KindOf(err) == exports.InUse && !force {
		return told(api.CodeInUse, err.Error(), "shut down what uses it, or give --force, which cuts it off")
	}
	return exportError(err)
}

// CommitExport implements server.Exports.
func (d exportDesk) CommitExport(ctx context.Context, id string) (api.Run, error) {
	if err := d.unheld(id, true); err != nil {
		return api.Run{}, err
	}
	c, err := d.exports.BeginCommit(ctx, id)
	if exports.KindOf(err) == exports.Invalid {
		return api.Run{}, told(api.CodeConflict, err.Error(), "")
	}
	if err != nil {
		return api.Run{}, exportError(err)
	}
	req := jobs.CommitRequest{Base: c.Manifest().ID, Cause: "export " + id, User: userOf(ctx), Bytes: c.Bytes(), Ended: c.End,
		Build: func(ctx context.Context, to *jobs.CommitSink, keys digest.Keys, done func(int64)) (recipe.Ref, error) {
			return c.Build(ctx, to, keys, done)
		}}
	if c.Unclean() {
		req.Doubt = "the machine lost power while the overlay was written: what was not flushed may be missing"
	}
	i, err := d.jobs.StartCommit(ctx, req)
	return apiRun(i), apiError(err)
}

func (d exportDesk) apiExport(i exports.Info) api.Export {
	out := api.Export{ID: i.ID, Name: i.Name, URIs: d.exportURIs(i.Name), Saveset: i.Saveset.String(), Client: i.Client, Task: i.Task, Disk: i.Disk,
		Bytes: i.Size, State: api.ExportState(i.State), Problem: i.Problem, Clients: i.Allow, Purpose: i.Purpose, Created: i.Created, By: i.By,
		Connections: i.Connections, BytesRead: i.BytesRead, BytesWritten: i.BytesWritten}
	if i.Overlay {
		u := i.Usage
		out.Overlay = &api.ExportOverlay{BytesLimit: u.Limit, BytesData: u.DataBytes, BytesZero: u.ZeroBytes, BytesMap: u.MapBytes, Unclean: i.Unclean}
	}
	return out
}

// exportURIs tells where an export is served (NBD's doc/uri.md).
func (d exportDesk) exportURIs(name string) []string {
	out := []string{}
	if d.nbdSocket != nil {
		u := url.URL{Scheme: "nbd+unix", Path: "/" + name, RawQuery: "socket=" + (&url.URL{Path: d.conf.NBDSocket()}).EscapedPath()}
		out = append(out, u.Scheme+"://"+u.EscapedPath()+"?"+u.RawQuery)
	}
	if d.nbdPort == nil {
		return out
	}
	addr := d.nbdPort.Addr().(*net.TCPAddr)
	u := url.URL{Scheme: "nbds", Host: addr.String(), Path: "/" + name}
	if addr.IP.IsLoopback() || d.conf.NBD.TLS == config.NBDTLSOffered {
		u.Scheme = "nbd"
	}
	if addr.IP.IsUnspecified() {
		host, _ := os.Hostname() // better than an address that is none
		u.Host = net.JoinHostPort(host, fmt.Sprint(addr.Port))
	}
	return append(out, u.String())
}
