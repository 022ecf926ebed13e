package appliance

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"time"

	"golang.org/x/sync/errgroup"

	"coffer/api"
	"coffer/api/server"
	"coffer/appliance/catalog"
	"coffer/appliance/clock"
	"coffer/appliance/config"
	"coffer/appliance/exports"
	"coffer/appliance/ingest"
	"coffer/appliance/jobs"
	"coffer/appliance/machines"
	"coffer/appliance/maintenance"
	"coffer/appliance/pki"
	"coffer/dedup"
	"coffer/nbd"
)

const (
	// stopRuns is how long runs have to end at a stop; with calls of the API that finish (10 s) it stays below 30 s.
	stopRuns = 15 * time.Second
	// tellPatience is how long watchers have to read how runs ended.
	tellPatience = 2 * time.Second
	// housekeeping is how often last-seen times are kept and the catalog's reserve is looked after.
	housekeeping = time.Minute
)

// Options change how the appliance runs; the zero value works.
type Options struct {
	Logger *slog.Logger // nil: silent
	// Terminal is where the first password is shown; nil where nobody would see it.
	Terminal io.Writer
	Now      func() time.Time // nil: time.Now
}

// Run serves an appliance until ctx ends, and returns nil when it stopped in order. The configuration must be valid.
func Run(ctx context.Context, conf config.Config, opts Options) (err error) {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	setMemoryLimit(conf, 0)
	a := &appliance{conf: conf, opts: opts, log: opts.Logger, started: opts.Now()}
	defer func() { err = errors.Join(err, a.close()) }()
	if err := a.open(ctx); err != nil {
		return err
	}
	return a.serve(ctx)
}

// appliance is everything that a running cofferd holds.
type appliance struct {
	conf    config.Config
	opts    Options
	log     *slog.Logger
	started time.Time

	data      *config.DataDir
	clock     *clock.Clock // trusted time: ends of life, deletion
	clockTold time.Time    // when it was said last that trusted time is behind
	purged    time.Time    // when the high watermark started a purge last; housekeeping's own
	catalog   *catalog.Catalog
	authority *pki.Authority
	rest, sms net.Listener
	store     *storeKeeper
	agents    *ingest.Server
	jobs      *jobs.Manager
	upkeep    *maintenance.Manager
	metrics   *metrics
	mount     *mountKeeper
	taskKeys  *taskKeys
	exports   *exports.Manager
	machines  *machines.Manager
	nbd       *nbd.Server
	nbdPort   net.Listener // nil: none
	nbdSocket net.Listener // nil: none

	watchers watchers
	probe    diskProbe
}

// open makes everything ready to serve. What it opened before it failed is closed by close.
func (a *appliance) open(ctx context.Context) (err error) {
	if a.data, err = config.OpenData(a.conf.Data); err != nil {
		return err
	}
	if a.clock, err = clock.Open(clock.Options{Path: a.data.ClockFile(), Wall: a.opts.Now, Sources: clock.Chrony, Logger: a.log}); err != nil {
		return err
	}
	a.confirmClock(ctx)
	if a.catalog, err = catalog.Open(ctx, a.data.CatalogDir(), catalog.Options{Now: a.opts.Now, Logger: a.log}); err != nil {
		return err
	}
	if a.authority, err = pki.OpenAuthority(a.data.PKIDir(), pki.Options{Now: a.opts.Now, Logger: a.log}); err != nil {
		return err
	}
	a.store = openStore(ctx, a.conf, a.data, a.catalog, a.trusting())
	clients := &clientDesk{appliance: a}
	a.agents = ingest.NewServer(ingest.Options{Clients: clients, Enroller: clients, Logger: a.log, Version: api.Version, Now: a.opts.Now,
		Protocols: map[string]func(context.Context, *tls.Conn){pki.ALPNNBD: a.serveNBD}})
	a.jobs = jobs.New(jobs.Options{Catalog: a.catalog, Store: a.store.forJobs, Agents: jobs.FromServer(a.agents), Logger: a.log,
		Now: a.opts.Now, Trusted: a.clock.Now})
	a.taskKeys = newTaskKeys()
	if err := a.openExports(ctx); err != nil {
		return err
	}
	if err := a.openMachines(); err != nil {
		return err
	}
	a.store.opened = a.takeInLate
	a.upkeep = a.newUpkeep()
	a.metrics = newMetrics(a)
	if err := a.takeIn(ctx); err != nil {
		return err
	}
	a.mount = newMountKeeper(ctx, a)
	if err := a.firstUser(ctx); err != nil {
		return err
	}
	return a.listen(ctx)
}

// listen comes last: who gets a connection finds an appliance that is ready, its first password and all.
func (a *appliance) listen(ctx context.Context) (err error) {
	if a.rest, err = config.ListenTCP(ctx, a.conf.REST.Listen, "rest.listen"); err != nil {
		return err
	}
	if a.sms, err = config.ListenTCP(ctx, a.conf.SMS.Listen, "sms.listen"); err != nil {
		return err
	}
	return a.listenNBD(ctx)
}

// takeIn brings the catalog level with the store and ends the runs that a killed appliance left behind.
func (a *appliance) takeIn(ctx context.Context) error {
	if store, err := a.store.get(); err == nil {
		manifests, err := store.Savesets(ctx)
		if err != nil {
			return fmt.Errorf("read the store's manifests: %w", err)
		}
		// What cannot be taken in now is taken in by the next start; the rest of the catalog is right.
		if err := a.jobs.Reconcile(ctx, manifests, unreadable(store)...); err != nil {
			a.log.Error("the catalog does not know all that the store has", "error", err)
		}
	}
	if err := a.jobs.Recover(ctx); err != nil {
		a.log.Error("runs of a killed appliance are not all ended", "error", err)
	}
	if err := a.upkeep.Recover(ctx); err != nil {
		a.log.Error("maintenance of a killed appliance is not all ended", "error", err)
	}
	return nil
}

// takeInLate brings the catalog level with a store that was opened after the start, before anybody else has the store. The
// chains of what it takes in are raised by the next run of their tasks.
func (a *appliance) takeInLate(ctx context.Context, store *dedup.Store) {
	manifests, err := store.Savesets(ctx)
	if err == nil {
		err = a.jobs.Reconcile(ctx, manifests, unreadable(store)...)
	}
	if err != nil {
		a.log.Error("the catalog does not know all that the store has", "error", err)
	}
	a.exports.Attach(ctx, exportStore{a, store}) // before a purge can have the store
}

// unreadable returns the savesets that the store has, and whose manifests or states are damaged.
func unreadable(store *dedup.Store) (ids []dedup.SavesetID) {
	for _, d := range store.Damage() {
		if !d.Saveset.IsZero() {
			ids = append(ids, d.Saveset)
		}
	}
	return ids
}

// serve runs the listeners until ctx ends or one of them fails, and stops in order.
func (a *appliance) serve(ctx context.Context) error {
	rest, err := server.New(newBackend(a), server.Options{TLS: a.authority.RESTConfig(), Logger: a.log})
	if err != nil {
		return err
	}
	a.mount.restore(ctx)
	a.upkeep.Start()
	a.machines.Start()
	// The listeners outlive ctx: agents are told, and watchers see, how runs end.
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	group, failed := errgroup.WithContext(serving)
	group.Go(func() error { return rest.Serve(failed, a.rest) })
	group.Go(func() error { return a.agents.Serve(failed, a.sms, a.authority.SMSConfig()) })
	for _, l := range a.nbdListeners() {
		group.Go(func() error { return a.nbd.Serve(failed, l) })
	}
	group.Go(func() error { a.housekeep(failed); return nil })
	group.Go(func() error { a.tellUpkeep(failed); return nil })
	a.log.Info("appliance is up", "version", api.Version, "data", a.conf.Data, "rest", a.rest.Addr().String(), "sms", a.sms.Addr().String(),
		"ca_sha256", a.authority.Fingerprint().String())
	select {
	case <-ctx.Done():
		a.log.Info("appliance stops", "runs", a.jobs.Active())
	case <-failed.Done():
	}
	a.watchers.close()
	a.machines.Close()
	err = a.stopRuns()
	if !a.watchers.wait(tellPatience) {
		a.log.Warn("not every watcher was told how its run ended")
	}
	a.mount.stop()
	a.endNBD()
	stop()
	return errors.Join(group.Wait(), err)
}

// nbdListeners are those that are open.
func (a *appliance) nbdListeners() (out []net.Listener) {
	for _, l := range []net.Listener{a.nbdPort, a.nbdSocket} {
		if l != nil {
			out = append(out, l)
		}
	}
	return out
}

func (a *appliance) stopRuns() error {
	ctx, done := context.WithTimeout(context.Background(), stopRuns)
	defer done()
	return errors.Join(a.jobs.Stop(ctx), a.upkeep.Stop(ctx))
}

// close gives back what open took, the last first.
func (a *appliance) close() error {
	var errs []error
	for _, l := range append(a.nbdListeners(), a.rest, a.sms) {
		if l != nil {
			if err := l.Close(); !errors.Is(err, net.ErrClosed) {
				errs = append(errs, err)
			}
		}
	}
	if a.exports != nil {
		errs = append(errs, a.exports.Close())
	}
	if a.store != nil {
		errs = append(errs, a.store.close())
	}
	if a.catalog != nil {
		errs = append(errs, a.catalog.Close())
	}
	if a.data != nil {
		errs = append(errs, a.data.Close())
	}
	return errors.Join(errs...)
}

// housekeep keeps last-seen times of connected clients, and the catalog's reserve.
func (a *appliance) housekeep(ctx context.Context) {
	tick := time.NewTicker(housekeeping)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := errors.Join(a.catalog.KeepBallast(), a.clock.Keep()); err != nil {
			a.log.Warn("housekeeping", "error", err)
		}
		a.probe.look(a.conf.StoreDir(), a.data.SpoolDir())
		a.confirmClock(ctx)
		a.watchSpace(ctx)
		a.keepSeen(ctx)
	}
}

func (a *appliance) keepSeen(ctx context.Context) {
	clients, err := a.catalog.Clients(ctx)
	if err != nil {
		a.log.Warn("housekeeping", "error", err)
		return
	}
	for _, c := range clients {
		if !a.agents.Presence(c.Name).Online {
			continue
		}
		if err := a.catalog.ClientSeen(ctx, c.Name); err != nil {
			a.log.Warn("housekeeping", "error", err)
			return
		}
	}
}
