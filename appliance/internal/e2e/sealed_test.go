package e2e

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"coffer/api"
	"coffer/appliance/internal/treecmp"
)

// taskKey makes a task key on the client and returns its id.
func (l *lab) taskKey(path string) (id string) {
	l.Helper()
	cmd := exec.CommandContext(l.Context(), filepath.Join(l.Bin, "coffer-agent"), "task-key", "new", "--output", path)
	out, err := cmd.Output()
	if err != nil {
		l.Fatalf("make a task key: %v", err)
	}
	return strings.TrimSpace(string(out))
}

// An encrypted task: the appliance keeps it, collects and checks without the key, and shows it while it has the key; a
// client with the key restores; nothing anywhere names what is in it.
func TestEncryptedTask(t *testing.T) {
	needFUSE(t)
	l := newLab(t, config("[store]\nunlock = \"none\"\n"))
	keyFile, otherFile := l.path("secret.key"), l.path("other.key")
	id, other := l.taskKey(keyFile), l.taskKey(otherFile)
	l.refused([]string{"not the id of a task key"}, "task", "add", "never", "--client", client, "--source", "/etc", "--encrypt", strings.Repeat("0", 32))
	source := l.task("secret", "--encrypt", id, "--key-file", keyFile)
	write(t, filepath.Join(source, "NAME-OF-A-SECRET"), []byte(strings.Repeat("CONTENT-OF-A-SECRET ", 1000)))
	write(t, filepath.Join(source, "dir", "large"), []byte(strings.Repeat("a large file with the CONTENT-OF-A-SECRET\n", 60_000)))
	age()

	full := l.backup("secret", api.LevelFull, api.RunSuccess)
	write(t, filepath.Join(source, "dir", "more"), []byte("another CONTENT-OF-A-SECRET"))
	age()
	incr := l.backup("secret", api.LevelIncr, api.RunSuccess)
	if incr.LevelEffective != api.LevelIncr || incr.Progress.BytesNew > 100_000 {
		t.Errorf("INCR of an encrypted task: %s, %d bytes new", incr.LevelEffective, incr.Progress.BytesNew)
	}
	if s := decode[api.Saveset](l, "saveset", "show", "latest:secret"); s.SealedBy != id {
		t.Errorf("the saveset is sealed by %q, want %s", s.SealedBy, id)
	}
	same(t, source, l.restore("latest:secret", "back")+source, treecmp.Options{})
	l.ok("store", "check")
	l.ok("store", "gc")
	l.keyAsked(source, keyFile, otherFile)
	l.keysOfClients(source, keyFile, otherFile, id, other)
	l.restore(full.Saveset, "back-full")
	key, err := os.ReadFile(keyFile)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Stop(); err != nil {
		t.Fatal(err)
	}
	l.nowhere("NAME-OF-A-SECRET", "CONTENT-OF-A-SECRET", strings.Fields(string(key))[4])
}

// keyAsked reads on the appliance: without the key, with a wrong one, with the right one, and after it was taken back.
func (l *lab) keyAsked(source, keyFile, otherFile string) {
	l.Helper()
	m := decode[api.Mount](l, "mount", "on")
	mounted := filepath.Join(m.Path, client, "secret", "latest")
	locked := func(when string) {
		l.refused([]string{"encrypted task", "coffer saveset unseal"}, "saveset", "ls", "latest:secret", source)
		l.refused([]string{"encrypted task"}, "saveset", "get", "latest:secret", "-o", l.path("never.tar"))
		if _, err := os.ReadDir(mounted); !errors.Is(err, syscall.ENOKEY) {
			l.Errorf("%s: reading the mount: %v", when, err)
		}
	}
	locked("at first")
	l.refused([]string{"sealed by"}, "saveset", "unseal", "--task", "secret", "--key-file", otherFile)
	locked("after a wrong key")
	l.ok("saveset", "unseal", "--task", "secret", "--key-file", keyFile, "--for", "1h")
	if out := l.ok("saveset", "ls", "latest:secret", source); !strings.Contains(out, "NAME-OF-A-SECRET") {
		l.Errorf("unsealed it lists %s", out)
	}
	same(l.TB.(*testing.T), source, filepath.Join(mounted, source), treecmp.Options{Ignore: treecmp.Flags | treecmp.Blocks})
	if out := l.ok("saveset", "get", "latest:secret", filepath.Join(source, "dir/more"), "-o", "-"); out != "another CONTENT-OF-A-SECRET" {
		l.Errorf("unsealed it has %q", out)
	}
	l.ok("saveset", "seal", "--task", "secret")
	l.ok("mount", "off")
	l.ok("mount", "on")
	locked("after sealing")
	l.ok("mount", "off")
	if audit := l.ok("audit", "list", "--limit", "0"); !strings.Contains(audit, "saveset.unseal") || !strings.Contains(audit, "saveset.seal") {
		l.Error("the audit log does not have who gave the key")
	}
}

// keysOfClients takes the key away from the client, and gives it another one.
func (l *lab) keysOfClients(source, keyFile, otherFile, id, other string) {
	l.Helper()
	if err := os.Rename(keyFile, keyFile+".away"); err != nil {
		l.Fatal(err)
	}
	for _, args := range [][]string{{"backup", "secret"}, {"restore", "latest:secret", "--client", client, "--to", l.path("never")}} {
		if run := l.run(api.RunError, args...); !strings.Contains(run.Reason, keyFile) || !strings.Contains(run.Reason, id) {
			l.Errorf("%v without the key: %q", args, run.Reason)
		}
	}
	if err := copyFile(otherFile, keyFile); err != nil {
		l.Fatal(err)
	}
	for _, args := range [][]string{{"backup", "secret"}, {"restore", "latest:secret", "--client", client, "--to", l.path("never")}} {
		if run := l.run(api.RunError, args...); !strings.Contains(run.Reason, other) || !strings.Contains(run.Reason, id) {
			l.Errorf("%v with another key: %q", args, run.Reason)
		}
	}
	if _, err := os.Lstat(l.path("never")); err == nil {
		l.Error("a restore without the key made something")
	}
	if err := os.Rename(keyFile+".away", keyFile); err != nil {
		l.Fatal(err)
	}
	same(l.TB.(*testing.T), source, l.restore("latest:secret", "again")+source, treecmp.Options{})
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
