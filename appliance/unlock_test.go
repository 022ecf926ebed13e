package appliance

import (
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"coffer/api"
	"coffer/appliance/config"
)

const storePassword = "a long store password"

func desk(a *appliance) keyDesk { return keyDesk{a} }

func wantState(t *testing.T, a *appliance, locked bool) {
	t.Helper()
	s, err := storeDesk{a}.Store(t.Context())
	if err != nil || (s.State == api.StoreLocked) != locked {
		t.Fatalf("store %s (%s), %v; want locked: %v", s.State, s.Reason, err, locked)
	}
}

func wantOpeners(t *testing.T, k api.StoreKeys, want ...api.Opener) {
	t.Helper()
	if !slices.Equal(k.Openers, want) {
		t.Fatalf("opens with %v, want %v", k.Openers, want)
	}
}

// TestKeyFileChange: the new file takes its place however the change is interrupted, and the old one opens nothing.
func TestKeyFileChange(t *testing.T) {
	conf := testConfig(t)
	a := opened(t, conf, Options{})
	path := conf.KeyFile()
	first, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	k := must[api.StoreKeys](t)(desk(a).SetStoreOpeners(t.Context(), api.StoreOpeners{KeyFile: true}))
	wantOpeners(t, k, api.OpenerKeyFile)
	second, err := os.ReadFile(path)
	if err != nil || string(second) == string(first) {
		t.Fatalf("the key file did not change: %v", err)
	}
	if old, err := os.ReadFile(path + oldKeyFile); err != nil || string(old) != string(first) {
		t.Fatalf("the old key file is not beside it: %v", err)
	}
	closed(t, a)

	// A change that was cut short before the new file was in its place.
	if err := os.Rename(path, path+newKeyFile); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, first, 0o600); err != nil {
		t.Fatal(err)
	}
	a = opened(t, conf, Options{})
	wantState(t, a, false)
	if now, err := os.ReadFile(path); err != nil || string(now) != string(second) || fileExists(path+newKeyFile) {
		t.Fatalf("the new key file is not in its place: %v", err)
	}
	closed(t, a)

	if err := os.WriteFile(path, first, 0o600); err != nil {
		t.Fatal(err)
	}
	a = opened(t, conf, Options{})
	defer closed(t, a)
	wantState(t, a, true)
	_, err = desk(a).UnlockStore(t.Context(), api.StoreUnlock{})
	wantCode(t, err, api.CodeWrongStoreKey)
	if err := os.WriteFile(path, second, 0o600); err != nil {
		t.Fatal(err)
	}
	must[api.Store](t)(desk(a).UnlockStore(t.Context(), api.StoreUnlock{}))
	wantState(t, a, false)
	_, err = desk(a).UnlockStore(t.Context(), api.StoreUnlock{})
	wantCode(t, err, api.CodeConflict)
}

// TestPasswordStore: a store with a password is made by an unlock, and starts locked.
func TestPasswordStore(t *testing.T) {
	conf := testConfig(t)
	conf.Store.Unlock = config.UnlockPassword
	var lines log
	opts := Options{Logger: slog.New(slog.NewTextHandler(&lines, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	a := opened(t, conf, opts)
	wantState(t, a, true)
	unlock := func(u api.StoreUnlock) error {
		_, err := desk(a).UnlockStore(t.Context(), u)
		return err
	}
	wantCode(t, unlock(api.StoreUnlock{}), api.CodeWrongStoreKey)
	wantCode(t, unlock(api.StoreUnlock{Password: storePassword}), api.CodeConflict)
	wantCode(t, unlock(api.StoreUnlock{Password: "short", Create: true}), api.CodeWeakPassword)
	if fileExists(conf.KeyFile()) {
		t.Fatal("a key file was made")
	}
	if err := unlock(api.StoreUnlock{Password: storePassword, Create: true}); err != nil {
		t.Fatal(err)
	}
	wantState(t, a, false)
	k := must[api.StoreKeys](t)(desk(a).StoreKeys(t.Context()))
	wantOpeners(t, k, api.OpenerPassword)
	recovery := must[api.RecoveryKey](t)(desk(a).NewRecoveryKey(t.Context())).RecoveryKey
	s := must[api.Store](t)(desk(a).LockStore(t.Context()))
	if s.State != api.StoreLocked {
		t.Fatalf("locked store is %s", s.State)
	}
	_, err := desk(a).RotateStoreKey(t.Context())
	wantCode(t, err, api.CodeStoreLocked)
	_, err = desk(a).LockStore(t.Context())
	wantCode(t, err, api.CodeConflict)
	wantCode(t, unlock(api.StoreUnlock{Password: storePassword, Create: true}), api.CodeConflict)
	if err := unlock(api.StoreUnlock{Password: storePassword}); err != nil {
		t.Fatal(err)
	}
	closed(t, a)

	a = opened(t, conf, opts)
	defer func() { closed(t, a) }()
	wantState(t, a, true)
	wantCode(t, unlock(api.StoreUnlock{RecoveryKey: strings.ToLower(recovery[:46]) + "?"}), api.CodeBadRequest)
	for range freeGuesses {
		wantCode(t, unlock(api.StoreUnlock{Password: "not " + storePassword}), api.CodeWrongStoreKey)
	}
	wantCode(t, unlock(api.StoreUnlock{Password: storePassword}), api.CodeTooManyLogins)
	wantState(t, a, true)
	a.store.guesses = guesses{}
	if err := unlock(api.StoreUnlock{RecoveryKey: strings.ToLower(recovery)}); err != nil {
		t.Fatal(err)
	}
	const next = "another long password"
	_, err = desk(a).SetStoreOpeners(t.Context(), api.StoreOpeners{Remove: []api.Opener{api.OpenerPassword}})
	wantCode(t, err, api.CodeConflict)
	must[api.StoreKeys](t)(desk(a).SetStoreOpeners(t.Context(), api.StoreOpeners{Password: next}))
	must[api.Store](t)(desk(a).LockStore(t.Context()))
	wantCode(t, unlock(api.StoreUnlock{Password: storePassword}), api.CodeWrongStoreKey)
	if err := unlock(api.StoreUnlock{Password: next}); err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{storePassword, next, recovery, strings.ToLower(recovery)} {
		if strings.Contains(lines.String(), secret) {
			t.Errorf("the log has the secret %q", secret)
		}
	}
}

// TestKeyFileIsMissing: a store that has a password, too, asks for it.
func TestKeyFileIsMissing(t *testing.T) {
	conf := testConfig(t)
	a := opened(t, conf, Options{})
	must[api.StoreKeys](t)(desk(a).SetStoreOpeners(t.Context(), api.StoreOpeners{Password: storePassword}))
	closed(t, a)
	if err := os.Remove(conf.KeyFile()); err != nil {
		t.Fatal(err)
	}
	a = opened(t, conf, Options{})
	defer closed(t, a)
	wantState(t, a, true)
	_, err := desk(a).UnlockStore(t.Context(), api.StoreUnlock{})
	wantCode(t, err, api.CodeWrongStoreKey)
	must[api.Store](t)(desk(a).UnlockStore(t.Context(), api.StoreUnlock{Password: storePassword}))
	k := must[api.StoreKeys](t)(desk(a).SetStoreOpeners(t.Context(), api.StoreOpeners{Remove: []api.Opener{api.OpenerKeyFile}}))
	wantOpeners(t, k, api.OpenerPassword)
}

// TestMendedStore opens a store that was damaged at the start, without a restart.
func TestMendedStore(t *testing.T) {
	conf := testConfig(t)
	a := opened(t, conf, Options{})
	closed(t, a)
	ring, aside := filepath.Join(conf.StoreDir(), "keys"), filepath.Join(conf.Data, "aside")
	if err := os.Rename(ring, aside); err != nil {
		t.Fatal(err)
	}
	a = opened(t, conf, Options{})
	defer closed(t, a)
	wantState(t, a, true)
	_, err := desk(a).UnlockStore(t.Context(), api.StoreUnlock{})
	wantCode(t, err, api.CodeStoreLocked)

	// A damaged keyring is no wrong password.
	files, err := filepath.Glob(filepath.Join(aside, "*"))
	if err != nil || len(files) != 2 {
		t.Fatalf("keyrings %v, %v", files, err)
	}
	if err := os.Mkdir(ring, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		raw[40] ^= 1
		if err := os.WriteFile(filepath.Join(ring, filepath.Base(f)), raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, u := range []api.StoreUnlock{{}, {Password: storePassword}} {
		_, err = desk(a).UnlockStore(t.Context(), u)
		wantCode(t, err, api.CodeDamaged)
	}
	if err := os.RemoveAll(ring); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(aside, ring); err != nil {
		t.Fatal(err)
	}
	must[api.Store](t)(desk(a).UnlockStore(t.Context(), api.StoreUnlock{}))
	wantState(t, a, false)
}

// TestPlainStore is encrypted later, and cannot be exchanged for a plain one from then on.
func TestPlainStore(t *testing.T) {
	conf := testConfig(t)
	conf.Store.Unlock = config.UnlockNone
	a := opened(t, conf, Options{})
	k := must[api.StoreKeys](t)(desk(a).StoreKeys(t.Context()))
	wantOpeners(t, k)
	if k.Encrypted || fileExists(conf.KeyFile()) {
		t.Fatalf("keys %+v", k)
	}
	_, err := desk(a).SetStoreOpeners(t.Context(), api.StoreOpeners{Password: storePassword})
	wantCode(t, err, api.CodeConflict)
	plain := filepath.Join(conf.Data, "plain")
	if err := os.CopyFS(plain, os.DirFS(conf.StoreDir())); err != nil {
		t.Fatal(err)
	}
	k = must[api.StoreKeys](t)(desk(a).EncryptStore(t.Context(), api.StoreOpeners{KeyFile: true}))
	wantOpeners(t, k, api.OpenerKeyFile)
	if !k.Encrypted || k.KeyFile != conf.KeyFile() || len(k.Keys) != 2 {
		t.Fatalf("keys %+v", k)
	}
	_, err = desk(a).EncryptStore(t.Context(), api.StoreOpeners{Password: storePassword})
	wantCode(t, err, api.CodeConflict)
	a.store.tasks.Wait()
	if k = must[api.StoreKeys](t)(desk(a).StoreKeys(t.Context())); k.Keys[0].Objects != 0 {
		t.Fatalf("keys %+v", k)
	}
	if k = must[api.StoreKeys](t)(desk(a).DestroyStoreKey(t.Context(), 1)); len(k.Keys) != 1 {
		t.Fatalf("keys %+v", k)
	}
	closed(t, a)

	a = opened(t, conf, Options{})
	wantState(t, a, false)
	closed(t, a)

	if err := os.RemoveAll(conf.StoreDir()); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(plain, conf.StoreDir()); err != nil {
		t.Fatal(err)
	}
	a = opened(t, conf, Options{})
	defer closed(t, a)
	wantState(t, a, true)
}

func TestGuesses(t *testing.T) {
	var g guesses
	now := time.Unix(1000, 0)
	for i := range freeGuesses {
		if g.wait(now) > 0 {
			t.Fatalf("guess %d has to wait", i)
		}
		g.note(now, true)
	}
	for _, want := range []time.Duration{5, 10, 20, 40, 80, 160, 300, 300} {
		if got := g.wait(now); got != want*time.Second {
			t.Fatalf("wait %v, want %v", got, want*time.Second)
		}
		now = now.Add(want * time.Second)
		g.note(now, true)
	}
	g.note(now, false)
	g.note(now.Add(longPause), true)
	if g.wait(now.Add(longPause)) > 0 {
		t.Fatal("a right password does not make it forget")
	}
}
