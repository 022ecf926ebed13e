package appliance

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"coffer/appliance/catalog"
	"coffer/appliance/config"
	"coffer/appliance/internal/durable"
	"coffer/appliance/jobs"
	"coffer/dedup"
	"coffer/dedup/blob"
	"coffer/dedup/keys"
	"coffer/dedup/vfs"
)

// storeName is the name of the one store of this version.
const storeName = "default"

// storeKeeper is the store, or why it is not open. It does not change while the appliance runs: a store that was mended
// is opened by the next start.
type storeKeeper struct {
	store  *dedup.Store
	dir    *blob.Dir
	reason error
}

// errStoreLocked is the cause of every refusal for want of a store.
var errStoreLocked = errors.New("the store is not open")

// openStore opens the store of the configuration, or makes it. It never fails: what is wrong is the keeper's reason.
func openStore(ctx context.Context, conf config.Config, data *config.DataDir, cat *catalog.Catalog, opts Options) *storeKeeper {
	k := &storeKeeper{}
	if err := k.open(ctx, conf, data, cat, opts); err != nil {
		k.reason = fmt.Errorf("%w: %w", errStoreLocked, err)
		opts.Logger.Error("store does not open: backups and restores are refused", "store", conf.StoreDir(), "error", err)
	}
	return k
}

func (k *storeKeeper) open(ctx context.Context, conf config.Config, data *config.DataDir, cat *catalog.Catalog, opts Options) (err error) {
	known, err := cat.Setting(ctx, domainSetting)
	if err != nil {
		return err
	}
	if k.dir, err = blob.OpenDir(vfs.OS(), conf.StoreDir()); err != nil {
		return err
	}
	made, err := storeIsMade(ctx, k.dir)
	if err != nil {
		return err
	}
	if !made && known != "" {
		return fmt.Errorf("%s is empty, the store that this appliance had (domain %s) is not there: is its disk mounted?", conf.StoreDir(), known)
	}
	key, err := keySource(conf.KeyFile(), made, opts.Logger)
	if err != nil {
		return err
	}
	host, _ := os.Hostname() // the owner is for people; an empty one will do
	so := dedup.Options{Blob: k.dir, FS: vfs.OS(), SpoolDir: data.SpoolDir(), IndexDir: data.IndexDir(), Key: key,
		IndexMemory: int64(conf.Store.IndexMemory), LocalityMemory: int64(conf.Store.LocalityMemory),
		FrameMemory: int64(conf.Store.FrameMemory), NodeMemory: int64(conf.Store.NodeMemory),
		Reserve: int64(conf.Store.Reserve), ContainerSize: int64(conf.Store.ContainerSize),
		Owner: fmt.Sprintf("cofferd on %s, pid %d", host, os.Getpid()), Logger: opts.Logger, Now: opts.Now}
	if made {
		k.store, err = dedup.Open(ctx, so)
	} else if k.store, err = dedup.Create(ctx, so); err == nil {
		opts.Logger.Info("store made", "store", conf.StoreDir(), "key_file", conf.KeyFile())
	}
	if err != nil {
		return err
	}
	return k.recognise(ctx, cat, known)
}

// domainSetting is the catalog's key of the domain of the appliance's store.
const domainSetting = "store.domain"

// recognise holds the store against what the catalog knows: a catalog must not take another store for its own, and find
// all its savesets deleted.
func (k *storeKeeper) recognise(ctx context.Context, cat *catalog.Catalog, known string) error {
	domain := k.store.Domain().ID.String()
	switch known {
	case domain:
		return nil
	case "":
		return cat.SetSetting(ctx, domainSetting, domain)
	}
	return fmt.Errorf("the store has domain %s, this appliance's has %s: is another disk mounted in its place?", domain, known)
}

// storeIsMade says whether there is a store: anything beside a keyring, which alone is what a creation leaves that was cut
// short.
func storeIsMade(ctx context.Context, b blob.Store) (bool, error) {
	for info, err := range b.List(ctx, "", "") {
		if err != nil {
			return false, err
		}
		if !strings.HasPrefix(info.Name, keys.Prefix) {
			return true, nil
		}
	}
	return false, nil
}

// keySource reads the key file. Only where there is no store yet a missing one is made: a new key opens no old store.
func keySource(path string, made bool, log *slog.Logger) (keys.Source, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if made {
			return nil, fmt.Errorf("the key file %s is missing: put it back from its copy, or name its place with the configuration key \"store.key_file\"", path)
		}
		if raw, err = makeKeyFile(path); err == nil {
			log.Warn("key file made: keep a copy of it apart from this machine, without it the store cannot be read", "key_file", path)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("key file: %w", err)
	}
	src, err := keys.KeyFile(raw)
	if err != nil {
		return nil, fmt.Errorf("key file %s: %w", path, err)
	}
	return src, nil
}

func makeKeyFile(path string) ([]byte, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	raw, err := keys.NewKeyFile(nil)
	if err != nil {
		return nil, err
	}
	return raw, durable.WriteFile(path, raw, 0o600)
}

// get returns the open store, or why there is none.
func (k *storeKeeper) get() (*dedup.Store, error) {
	if k.reason != nil {
		return nil, k.reason
	}
	return k.store, nil
}

func (k *storeKeeper) forJobs() (jobs.Store, error) {
	s, err := k.get()
	if err != nil {
		return nil, err
	}
	return jobs.FromStore(s), nil
}

func (k *storeKeeper) close() error {
	var errs []error
	if k.store != nil {
		errs = append(errs, k.store.Close())
	}
	if k.dir != nil {
		errs = append(errs, k.dir.Close())
	}
	return errors.Join(errs...)
}
