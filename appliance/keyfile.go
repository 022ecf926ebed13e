package appliance

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	"coffer/appliance/config"
	"coffer/appliance/internal/durable"
	"coffer/dedup/keys"
)

// Beside the key file: the one that is about to take its place, and the one whose place it took.
const (
	newKeyFile = ".new"
	oldKeyFile = ".old"
)

// errNeedsSecret is the reason of a store that waits for its password.
var errNeedsSecret = errors.New("it needs its password")

// ownKey is the opener of the start: what the appliance has by itself. errNeedsSecret: somebody has to unlock the store.
func (k *storeKeeper) ownKey(p place) (keys.Source, error) {
	if !p.made {
		return k.firstKey()
	}
	has := func(kind keys.Kind) bool { return slices.Contains(p.openers, kind) }
	switch {
	case has(keys.KindNone):
		return keys.None(), k.mayBePlain()
	case has(keys.KindKeyFile) && (k.conf.Store.Unlock != config.UnlockPassword || !has(keys.KindPassword)):
		src, err := keySource(k.conf.KeyFile(), true, k.opts.Logger)
		if err != nil && len(p.openers) > 1 {
			err = fmt.Errorf("%w; or open it with its %s: %w: coffer store unlock", err, p.openers[1], errNeedsSecret)
		}
		return src, err
	}
	return nil, fmt.Errorf("%w: coffer store unlock", errNeedsSecret)
}

// firstKey is the opener of a store that has to be made.
func (k *storeKeeper) firstKey() (keys.Source, error) {
	switch k.conf.Store.Unlock {
	case config.UnlockPassword:
		return nil, fmt.Errorf("it is not made yet, and the configuration wants a password for it (store.unlock): %w: coffer store unlock --create", errNeedsSecret)
	case config.UnlockNone:
		return keys.None(), k.mayBePlain()
	}
	return keySource(k.conf.KeyFile(), false, k.opts.Logger)
}

// mayBePlain refuses a plain keyring in the place of an encrypted one: with it, backups would be written in clear.
func (k *storeKeeper) mayBePlain() error {
	was, err := k.cat.Setting(k.life, encryptedSetting)
	if err == nil && was == "yes" {
		err = fmt.Errorf("the store in %s is not encrypted, this appliance's is: was it exchanged?", k.conf.StoreDir())
	}
	return err
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

// replaceKeyFile makes a new key file and, once change has made it open the store, puts it in the place of the old one,
// which stays beside it. However it is interrupted, the new file is there before anything needs it: settleKeyFile.
func replaceKeyFile(path string, change func(keys.Source) error) error {
	raw, err := makeKeyFile(path + newKeyFile)
	if err != nil {
		return fmt.Errorf("make key file: %w", err)
	}
	src, err := keys.KeyFile(raw)
	if err != nil {
		return err
	}
	if err := change(src); err != nil {
		return err // the new file stays: who knows whether the change comes into force at the next start
	}
	return settleKeyFile(path)
}

// settleKeyFile puts a new key file in its place. It needs no key: who calls it knows that the new one opens the store.
func settleKeyFile(path string) error {
	old, err := os.ReadFile(path)
	if err == nil {
		err = durable.WriteFile(path+oldKeyFile, old, 0o600)
	} else if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	raw, rerr := os.ReadFile(path + newKeyFile)
	if err == nil && rerr == nil {
		err = durable.WriteFile(path, raw, 0o600)
	}
	if err = errors.Join(err, rerr); err != nil {
		return fmt.Errorf("the store opens with the key file %s now; it could not be renamed: %w", path+newKeyFile, err)
	}
	return os.Remove(path + newKeyFile)
}

// openOwn opens the store with what the appliance has by itself. A change of the key file that was interrupted left the
// new one beside the old one: where it is what opens the store, it takes its place.
func (k *storeKeeper) openOwn(ctx context.Context) error {
	err := k.open(ctx, k.ownKey)
	path := k.conf.KeyFile()
	if err == nil || !fileExists(path+newKeyFile) {
		return err
	}
	second := k.open(ctx, func(p place) (keys.Source, error) {
		if !p.made {
			return nil, err
		}
		return keySource(path+newKeyFile, true, k.opts.Logger)
	})
	if second != nil {
		return err
	}
	if err := settleKeyFile(path); err != nil {
		k.opts.Logger.Warn("new key file not in its place", "error", err)
	}
	return nil
}

func fileExists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
