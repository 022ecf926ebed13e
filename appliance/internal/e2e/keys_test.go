package e2e

import (
	"bytes"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"coffer/api"
	"coffer/appliance/internal/treecmp"
)

// secretFile writes a secret to a file of the test.
func (l *lab) secretFile(name, secret string) string {
	l.Helper()
	path := l.path(name)
	if err := os.WriteFile(path, []byte(secret+"\n"), 0o600); err != nil {
		l.Fatal(err)
	}
	return path
}

func (l *lab) storeState(want api.StoreState) api.Store {
	l.Helper()
	s := decode[api.Store](l, "store", "status")
	if s.State != want {
		l.Fatalf("store is %s (%s), want %s", s.State, s.Reason, want)
	}
	return s
}

// A store with a password: refused while it is locked, opened by the right
// secret only, through rotation, garbage collection, restarts and changes of
// the password; no secret is left anywhere.
func TestStoreKeys(t *testing.T) {
	l := newLab(t, config("[store]\nunlock = \"password\"\n"))
	const first, second = "the first store password", "the second store password"
	firstFile, secondFile := l.secretFile("first", first), l.secretFile("second", second)
	l.storeState(api.StoreLocked)
	source := l.task("docs")
	bulk := make([]byte, 3<<20)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(bulk)
	write(t, filepath.Join(source, "bulk"), bulk)
	write(t, filepath.Join(source, "notes"), []byte("before the rotation"))
	age()
	l.refused([]string{"not open", "coffer store unlock --create"}, "backup", "docs")
	l.refused([]string{"not made yet"}, "store", "unlock", "--password-file", firstFile)
	l.ok("store", "unlock", "--create", "--password-file", firstFile)
	l.storeState(api.StoreGreen)
	l.backup("docs", api.LevelFull, api.RunSuccess)
	recovery := strings.TrimSpace(decode[api.RecoveryKey](l, "store", "key", "recovery").RecoveryKey)
	recoveryFile := l.secretFile("recovery", strings.ToLower(recovery))

	// New data is under the new key at once, all other after a collection.
	l.ok("store", "key", "rotate")
	write(t, filepath.Join(source, "notes"), []byte("after the rotation"))
	age()
	l.backup("docs", api.LevelIncr, api.RunSuccess)
	l.refused([]string{"containers"}, "store", "key", "destroy", "1", "--yes")
	l.ok("store", "gc")
	keys := decode[api.StoreKeys](l, "store", "key", "list")
	if k := keys.Keys; len(k) != 2 || k[0].Containers != 0 || k[0].Objects != 0 || k[1].Containers == 0 || !k[1].Current {
		t.Fatalf("keys after the collection: %+v", keys)
	}
	l.ok("store", "key", "destroy", "1", "--yes")

	// Locked after a restart; a wrong secret is told as such, and changes nothing.
	if err := l.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := l.Launch(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := l.storeState(api.StoreLocked); !strings.Contains(s.Reason, "coffer store unlock") {
		t.Errorf("the reason %q does not say what to do", s.Reason)
	}
	if err := l.agent.WaitOnline(t.Context()); err != nil {
		t.Fatal(err)
	}
	l.refused([]string{"not open"}, "backup", "docs")
	l.refused([]string{"wrong key or password"}, "store", "unlock", "--password-file", secondFile)
	l.refused([]string{"mistyped"}, "store", "unlock", "--recovery-key-file", l.secretFile("mistyped", "Z"+recovery[1:len(recovery)-1]+"Z"))
	l.storeState(api.StoreLocked)
	l.ok("store", "unlock", "--recovery-key-file", recoveryFile)
	l.storeState(api.StoreGreen)
	same(t, source, l.restore("latest:docs", "back")+source, treecmp.Options{})

	// A new password at once ends the old one.
	l.ok("store", "key", "set-password", "--new-password-file", secondFile)
	l.ok("store", "lock")
	l.refused([]string{"not open"}, "restore", "latest:docs", "--client", client, "--to", l.path("never"))
	l.refused([]string{"wrong key or password"}, "store", "unlock", "--password-file", firstFile)
	l.ok("store", "unlock", "--password-file", secondFile)
	l.backup("docs", api.LevelIncr, api.RunSuccess)

	// Secrets are in no file of the appliance, the audit log names who did what.
	audit := l.ok("audit", "list", "--limit", "0")
	for _, action := range []string{"store.unlock", "store.lock", "store.openers", "store.recovery_key", "store.key.rotate", "store.key.destroy"} {
		if !strings.Contains(audit, action) {
			t.Errorf("the audit log does not have %s", action)
		}
	}
	if err := l.Stop(); err != nil {
		t.Fatal(err)
	}
	l.nowhere(first, second, recovery, strings.ToLower(recovery), strings.ReplaceAll(recovery, "-", ""))
}

// nowhere looks for secrets in all files of the appliance and its log.
func (l *lab) nowhere(secrets ...string) {
	l.Helper()
	err := filepath.WalkDir(l.Dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, secret := range secrets {
			if bytes.Contains(raw, []byte(secret)) {
				l.Errorf("%s has the secret %q", path, secret)
			}
		}
		return nil
	})
	if err != nil {
		l.Error(err)
	}
}
