package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"coffer/api"
	"coffer/appliance/internal/harness"
)

// A token enrols one agent once; a revoked client is refused from then on.
func TestEnrolment(t *testing.T) {
	l := newLab(t)
	e := decode[api.Enrolment](l, "client", "add", "second")
	g := &harness.Agent{}
	*g = *l.agent
	g.Dir = l.path("agent-second")
	if out, err := g.Enrol(t.Context(), e.Token).CombinedOutput(); err != nil {
		t.Fatalf("enrol: %v: %s", err, out)
	}
	g.Dir = l.path("agent-third")
	if out, err := g.Enrol(t.Context(), e.Token).CombinedOutput(); err == nil || !strings.Contains(string(out), "token") {
		t.Errorf("a used token enrols again: %v: %s", err, out)
	}
	if out, err := g.Enrol(t.Context(), "nonsense").CombinedOutput(); err == nil || strings.Contains(string(out), "nonsense") {
		t.Errorf("a nonsense token: %v; its text must not come back: %s", err, out)
	}
	source := l.task("revoked")
	write(t, filepath.Join(source, "f"), []byte("f"))
	l.ok("client", "revoke", client)
	l.within("the client is revoked", func() bool { return decode[api.Client](l, "client", "show", client).State == api.ClientRevoked })
	l.refused([]string{client}, "backup", "revoked")
	l.agent.Kill() // it has ended by itself, or is about to
	if err := l.agent.Launch(t.Context()); err != nil {
		t.Fatal(err)
	}
	l.within("an agent with the revoked certificate is refused, and the log says why", func() bool {
		return strings.Contains(read(t, l.Appliance.Log()), "of client "+client+" was revoked at")
	})
}

// A user with the role restore sees and restores its clients' savesets, and
// nothing else.
func TestRoles(t *testing.T) {
	l := newLab(t)
	source := l.task("mine")
	write(t, filepath.Join(source, "f"), []byte("f"))
	saved := l.backup("mine", api.LevelFull, api.RunSuccess).Saveset
	password := l.path("user-password")
	write(t, password, []byte("first password of her\n"))
	changed := l.path("user-changed")
	write(t, changed, []byte("second password of her\n"))
	l.ok("user", "add", "rita", "--role", "restore", "--client", client, "--password-file", password)
	fp, err := l.Fingerprint()
	if err != nil {
		t.Fatal(err)
	}
	rita := func(args ...string) (string, error) {
		cmd := l.Command(context.WithoutCancel(t.Context()), args...)
		cmd.Env = append(os.Environ(), "COFFER_CONFIG_DIR="+l.path("rita"))
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := rita("login", "https://"+l.REST, "--fingerprint", fp, "--user", "rita", "--password-file", password, "--new-password-file", changed); err != nil {
		t.Fatalf("login: %v: %s", err, out)
	}
	if out, err := rita("saveset", "get", saved, filepath.Join(source, "f"), "-o", "-"); err != nil || out != "f" {
		t.Errorf("her own client's file: %q, %v", out, err)
	}
	for _, forbidden := range [][]string{{"backup", "mine"}, {"client", "add", "x"}, {"user", "list"}, {"mount", "on"}} {
		if out, err := rita(forbidden...); err == nil || !strings.Contains(out, "restore") {
			t.Errorf("coffer %v as role restore: %v: %s", forbidden, err, out)
		}
	}
	if _, err := rita("restore", saved, "--client", client, "--to", l.path("ritas")); err != nil {
		t.Errorf("her restore: %v", err)
	}
	if out := l.ok("audit", "list"); !strings.Contains(out, "rita") || !strings.Contains(out, "restore") {
		t.Error("her restore is not in the audit log")
	}
}

// The first password is a file of mode 0600 that goes when it has been
// changed; a newer data directory is refused by name and left alone.
func TestDataDirectory(t *testing.T) {
	l := newLab(t)
	if _, err := os.Stat(filepath.Join(l.Data, "first-password")); !os.IsNotExist(err) {
		t.Errorf("the first password is still there after its change: %v", err)
	}
	if err := l.agent.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := l.Stop(); err != nil {
		t.Fatal(err)
	}
	version := filepath.Join(l.Data, "version")
	was := read(t, version)
	write(t, version, []byte("coffer data directory, version 99\n"))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err := l.Launch(ctx)
	if err == nil || !strings.Contains(err.Error(), "newer") || !strings.Contains(err.Error(), l.Data) {
		t.Errorf("a newer data directory: %v", err)
	}
	write(t, version, []byte(was))
	if err := l.Launch(ctx); err != nil {
		t.Fatal(err)
	}
	if err := l.agent.Launch(ctx); err != nil {
		t.Fatal(err)
	}
	if err := l.agent.WaitOnline(ctx); err != nil {
		t.Fatal(err)
	}
}
