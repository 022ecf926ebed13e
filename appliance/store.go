package appliance

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"

	"coffer/appliance/catalog"
	"coffer/appliance/config"
	"coffer/appliance/jobs"
	"coffer/dedup"
	"coffer/dedup/blob"
	"coffer/dedup/keys"
	"coffer/dedup/vfs"
)

// storeName is the name of the one store of this version.
const storeName = "default"

// Settings of the catalog about its store: what the appliance knows of it beside what it says of itself.
const (
	domainSetting    = "store.domain"    // the id of its domain
	encryptedSetting = "store.encrypted" // "yes" once it was encrypted: it is never taken back
)

// errStoreLocked is the cause of every refusal for want of a store.
var errStoreLocked = errors.New("the store is not open")

// storeKeeper keeps the store: open, or why it is not. Whoever needs the store asks get each time, and holds it no longer
// than one piece of work. It changes when the store is opened (at the start, by an unlock, also when it was mended
// meanwhile) and when it is locked.
type storeKeeper struct {
	conf config.Config
	data *config.DataDir
	cat  *catalog.Catalog
	opts Options

	// opened is called with each store that was opened after the start, before anybody else gets it.
	opened func(context.Context, *dedup.Store)

	life  context.Context // ends when the appliance does: openings and work on keys end with it
	end   context.CancelFunc
	tasks sync.WaitGroup // goroutines of the keeper

	changing sync.Mutex // held while the store is opened or locked, or its openers change
	guesses  guesses
	now      atomic.Pointer[kept]
}

// kept is a store, or why there is none. It is never changed.
type kept struct {
	store  *dedup.Store
	dir    *blob.Dir
	key    keys.Source // what opened it
	reason error
}

// openStore opens the store of the configuration, or makes it. It never fails: what is wrong is the keeper's reason.
func openStore(ctx context.Context, conf config.Config, data *config.DataDir, cat *catalog.Catalog, opts Options) *storeKeeper {
	k := &storeKeeper{conf: conf, data: data, cat: cat, opts: opts, opened: func(context.Context, *dedup.Store) {}}
	k.life, k.end = context.WithCancel(context.WithoutCancel(ctx))
	k.now.Store(&kept{reason: fmt.Errorf("%w: it is being opened", errStoreLocked)})
	if err := k.openOwn(ctx); err != nil {
		k.shut(err)
	}
	return k
}

// get returns the open store, or why there is none.
func (k *storeKeeper) get() (*dedup.Store, error) {
	now := k.now.Load()
	return now.store, now.reason
}

func (k *storeKeeper) forJobs() (jobs.Store, error) {
	s, err := k.get()
	if err != nil {
		return nil, err
	}
	return jobs.FromStore(s), nil
}

// shut says why the store is not open.
func (k *storeKeeper) shut(why error) {
	k.now.Store(&kept{reason: fmt.Errorf("%w: %w", errStoreLocked, why)})
	if !errors.Is(why, errNeedsSecret) {
		k.opts.Logger.Error("store is not open: backups and restores are refused", "store", k.conf.StoreDir(), "reason", why)
		return
	}
	k.opts.Logger.Warn("store is locked: backups and restores are refused until it is unlocked", "store", k.conf.StoreDir(), "reason", why)
}

// place is what an opening finds where the store should be.
type place struct {
	made    bool        // there is a store; else it has to be made
	openers []keys.Kind // of a store that is made
}

// opener decides what opens, or makes, the store that is found.
type opener func(place) (keys.Source, error)

// open opens the store, or makes it, and lets everybody have it. It needs k.changing held, or nobody else about. change may
// edit the options.
func (k *storeKeeper) open(ctx context.Context, by opener, change ...func(*dedup.Options)) (err error) {
	known, err := k.cat.Setting(ctx, domainSetting)
	if err != nil {
		return err
	}
	next := &kept{}
	defer func() {
		if err != nil {
			err = errors.Join(err, next.close())
		}
	}()
	if next.dir, err = blob.OpenDir(vfs.OS(), k.conf.StoreDir()); err != nil {
		return err
	}
	found, err := k.look(ctx, next.dir)
	if err != nil {
		return err
	}
	if !found.made && known != "" {
		return fmt.Errorf("%s is empty, the store that this appliance had (domain %s) is not there: is its disk mounted?", k.conf.StoreDir(), known)
	}
	if next.key, err = by(found); err != nil {
		return err
	}
	opts := k.options(next)
	for _, edit := range change {
		edit(&opts)
	}
	if found.made {
		next.store, err = dedup.Open(ctx, opts)
	} else if next.store, err = dedup.Create(ctx, opts); err == nil {
		k.opts.Logger.Info("store made", "store", k.conf.StoreDir(), "encrypted", next.store.Encrypted())
	}
	if err != nil {
		return err
	}
	if err := k.recognise(ctx, next.store, known); err != nil {
		return err
	}
	k.opened(ctx, next.store)
	k.now.Store(next)
	k.settleKeys()
	return nil
}

func (k *storeKeeper) options(n *kept) dedup.Options {
	host, _ := os.Hostname() // the owner is for people; an empty one will do
	c := k.conf.Store
	return dedup.Options{Blob: n.dir, FS: vfs.OS(), SpoolDir: k.data.SpoolDir(), IndexDir: k.data.IndexDir(), Key: n.key,
		IndexMemory: int64(c.IndexMemory), LocalityMemory: int64(c.LocalityMemory), FrameMemory: frameMemory(c),
		FramesHeld: func(bytes int64) { setMemoryLimit(k.conf, bytes) }, NodeMemory: int64(c.NodeMemory), Reserve: int64(c.Reserve), ContainerSize: int64(c.ContainerSize),
		Owner: fmt.Sprintf("cofferd on %s, pid %d", host, os.Getpid()), Logger: k.opts.Logger, Now: k.opts.Now}
}

// look says what there is. A keyring alone is what a creation leaves that was cut short: no store, but one to be made with
// the same key.
func (k *storeKeeper) look(ctx context.Context, b blob.Store) (p place, err error) {
	for info, err := range b.List(ctx, "", "") {
		if err != nil {
			return p, err
		}
		if !strings.HasPrefix(info.Name, keys.Prefix) {
			p.made = true
			break
		}
	}
	if !p.made {
		return p, nil
	}
	if p.openers, err = keys.Peek(ctx, b); errors.Is(err, blob.ErrNotExist) {
		err = fmt.Errorf("the keyring is gone: put the folder keys of a copy of the store back into %s", k.conf.StoreDir())
	}
	return p, err
}

// recognise holds the store against what the catalog knows: a catalog must not take another store for its own, and find
// all its savesets deleted.
func (k *storeKeeper) recognise(ctx context.Context, store *dedup.Store, known string) error {
	domain := store.Domain().ID.String()
	if known != "" && known != domain {
		return fmt.Errorf("the store has domain %s, this appliance's has %s: is another disk mounted in its place?", domain, known)
	}
	if known == "" {
		if err := k.cat.SetSetting(ctx, domainSetting, domain); err != nil {
			return err
		}
	}
	if !store.Encrypted() {
		return nil
	}
	return k.cat.SetSetting(ctx, encryptedSetting, "yes")
}

// settleKeys goes on with what a change of keys left to do: it takes a moment for each small object that is under an old
// key, and does nothing where there is none.
func (k *storeKeeper) settleKeys() {
	store, err := k.get()
	if err != nil {
		return
	}
	k.tasks.Go(func() {
		rep, err := store.Reseal(k.life, nil)
		switch {
		case err != nil && k.life.Err() == nil && dedup.KindOf(err) != dedup.InUse && dedup.KindOf(err) != dedup.Closed:
			k.opts.Logger.Error("small objects of the store are not all under the current key; garbage collection tries again", "error", err)
		case rep.Resealed > 0 || len(rep.Retired) > 0:
			k.opts.Logger.Info("small objects of the store are under the current key", "resealed", rep.Resealed, "stuck", len(rep.Stuck), "retired_keys", rep.Retired)
		}
	})
}

// close ends the keeper and closes the store.
func (k *storeKeeper) close() error {
	k.end()
	k.tasks.Wait()
	k.changing.Lock()
	defer k.changing.Unlock()
	now := k.now.Swap(&kept{reason: errStoreLocked})
	return now.close()
}

func (n *kept) close() error {
	var errs []error
	if n.store != nil {
		errs = append(errs, n.store.Close())
	}
	if n.dir != nil {
		errs = append(errs, n.dir.Close())
	}
	return errors.Join(errs...)
}
