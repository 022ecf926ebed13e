package appliance

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"coffer/api"
	"coffer/dedup"
	"coffer/dedup/keys"
)

// Guesses of the store's password: freeGuesses in a row, then one after a pause that doubles from firstPause to longPause.
// Each costs 64 MiB and some tenths of a second, and only one is tried at a time.
const (
	freeGuesses = 5
	firstPause  = 5 * time.Second
	longPause   = 5 * time.Minute
)

// guesses bounds how often somebody may try a wrong password. It holds for all callers together: there is one password.
type guesses struct {
	mu     sync.Mutex
	wrong  int       // guarded by mu: in a row
	closed time.Time // guarded by mu: until when no guess is taken
}

// wait says how long no guess is taken.
func (g *guesses) wait(now time.Time) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	return max(g.closed.Sub(now), 0)
}

// note counts a guess.
func (g *guesses) note(now time.Time, wrong bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !wrong {
		g.wrong = 0
		return
	}
	if g.wrong++; g.wrong >= freeGuesses {
		g.closed = now.Add(min(firstPause<<min(g.wrong-freeGuesses, 10), longPause))
	}
}

// secretKey is the opener of who brings a password or a recovery key.
func (k *storeKeeper) secretKey(u api.StoreUnlock) (opener, error) {
	switch {
	case u.RecoveryKey != "":
		r, err := keys.ParseRecoveryKey(u.RecoveryKey)
		if err != nil {
			return nil, api.Errorf(api.CodeBadRequest, "this is no recovery key: %v", err).WithHint("it has eight groups of five letters and digits")
		}
		return func(p place) (keys.Source, error) {
			if !p.made {
				return nil, api.Errorf(api.CodeConflict, "the store is not made yet: no recovery key opens it")
			}
			return r.Source(), nil
		}, nil
	case u.Password != "":
		return func(p place) (keys.Source, error) {
			if p.made == u.Create {
				return nil, wrongMaking(u.Create)
			}
			return keys.Password([]byte(u.Password), keys.PasswordOptions{}), nil
		}, nil
	}
	return k.ownKey, nil
}

func wrongMaking(create bool) error {
	if create {
		return api.Errorf(api.CodeConflict, "the store is made already").WithHint("coffer store unlock")
	}
	return api.Errorf(api.CodeConflict, "the store is not made yet").WithHint("coffer store unlock --create makes it with a new password")
}

// unlock opens a store that is not open. The opening goes on when the caller goes away: an index may have to be made anew.
func (k *storeKeeper) unlock(ctx context.Context, u api.StoreUnlock) error {
	if err := k.mayGuess(u); err != nil {
		return err
	}
	by, err := k.secretKey(u)
	if err != nil {
		return err
	}
	if !k.changing.TryLock() {
		return errBusy
	}
	was := k.now.Load()
	if was.reason == nil {
		k.changing.Unlock()
		return api.Errorf(api.CodeConflict, "the store is open")
	}
	done := make(chan error, 1)
	k.tasks.Go(func() {
		err := k.unlockBy(by, was, u.Password != "" || u.RecoveryKey != "")
		k.changing.Unlock() // first: who was answered may go on
		done <- err
	})
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return api.Errorf(api.CodeTimeout, "the store is still being opened").WithHint("see: coffer store status")
	}
}

// mayGuess refuses an unlock whose time has not come, and a weak password of a store that it would make.
func (k *storeKeeper) mayGuess(u api.StoreUnlock) error {
	if u.Create {
		return checkStorePassword(u.Password)
	}
	if u.Password == "" && u.RecoveryKey == "" {
		return nil
	}
	if wait := k.guesses.wait(time.Now()); wait > 0 {
		return api.Errorf(api.CodeTooManyLogins, "too many wrong passwords of the store").WithHint("try again in %v", (wait + time.Second - 1).Truncate(time.Second))
	}
	return nil
}

// errBusy refuses what would change the store while something else does.
var errBusy = api.Errorf(api.CodeInUse, "the store is being opened, locked, or its keys changed").WithHint("see: coffer store status")

// unlockBy needs k.changing. A secret that does not fit changes nothing; any other failure is the new reason.
func (k *storeKeeper) unlockBy(by opener, was *kept, secret bool) error {
	k.now.Store(&kept{reason: fmt.Errorf("%w: it is being opened", errStoreLocked)})
	var err error
	if secret {
		err = k.open(k.life, by)
	} else {
		err = k.openOwn(k.life)
	}
	wrong := dedup.KindOf(err) == dedup.WrongKey
	if secret && (err == nil || wrong) {
		k.guesses.note(time.Now(), wrong)
	}
	if err == nil {
		k.opts.Logger.Info("store is open", "store", k.conf.StoreDir())
		return nil
	}
	if _, refused := errors.AsType[*api.Error](err); refused || (secret && wrong) {
		k.now.Store(was)
	} else {
		k.shut(err)
	}
	return unlockError(err, secret)
}

// unlockError is what the caller of an unlock is told.
func unlockError(err error, secret bool) error {
	switch kind := dedup.KindOf(err); {
	case kind == dedup.WrongKey && secret:
		return api.Errorf(api.CodeWrongStoreKey, "this does not open the store: %v", err).WithHint("see what opens it: coffer store status")
	case kind == dedup.WrongKey:
		return api.Errorf(api.CodeWrongStoreKey, "the key file does not open the store: %v", err)
	case kind == dedup.Damaged || errors.Is(err, keys.ErrDamaged):
		return api.Errorf(api.CodeDamaged, "the store is damaged: %v", err)
	case errors.Is(err, errNeedsSecret):
		return api.Errorf(api.CodeWrongStoreKey, "the store is locked: %v", err)
	}
	if e, ok := errors.AsType[*api.Error](err); ok {
		return e
	}
	return api.Errorf(api.CodeStoreLocked, "the store does not open: %v", err)
}

// errByHand is the reason of a store that somebody locked.
var errByHand = errors.New("it was locked")

// lock closes the store for a user; idle says whether that harms nobody.
func (k *storeKeeper) lock(idle func(*dedup.Store) error, user string) error {
	if !k.changing.TryLock() {
		return errBusy
	}
	defer k.changing.Unlock()
	store, err := k.get()
	if err != nil {
		return api.Errorf(api.CodeConflict, "the store is not open")
	}
	if err := idle(store); err != nil {
		return err
	}
	was := k.now.Load()
	k.now.Store(&kept{reason: fmt.Errorf("%w: %w by %s: coffer store unlock", errStoreLocked, errByHand, user)})
	k.opts.Logger.Info("store is locked", "store", k.conf.StoreDir(), "user", user)
	return was.close()
}

// withStore does something with the open store while nobody locks it or changes its openers.
func (k *storeKeeper) withStore(do func(*dedup.Store) error) error {
	if !k.changing.TryLock() {
		return errBusy
	}
	defer k.changing.Unlock()
	store, err := k.get()
	if err != nil {
		return told(api.CodeStoreLocked, err.Error(), "coffer store unlock")
	}
	return do(store)
}
