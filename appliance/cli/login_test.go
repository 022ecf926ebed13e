package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"coffer/api/server/servertest"
)

func TestLoginAsksAndPins(t *testing.T) {
	u := newUser(t)
	u.terminal = true
	code, _, errOut := u.run("no\n", "login", u.r.URL)
	if code != exitError || !strings.Contains(errOut, "was not accepted") {
		t.Errorf("refused certificate: exit %d: %s", code, errOut)
	}
	code, out, errOut := u.run("yes\nroot\n"+servertest.Password+"\n", "login", u.r.URL)
	if code != exitOK || !strings.Contains(out, "as root (superuser)") || !strings.Contains(errOut, "SHA-256") {
		t.Fatalf("exit %d: %s%s", code, out, errOut)
	}
	code, _, errOut = u.run("\nwrong\n", "login")
	if code != exitLogin || strings.Contains(errOut, "SHA-256") {
		t.Errorf("second login: exit %d: %s (it must not ask about the certificate again)", code, errOut)
	}
	session := filepath.Join(u.env["COFFER_CONFIG_DIR"], "session.json")
	info, err := os.Stat(session)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("session file: %v, %v", info, err)
	}
	if code, _, e := u.run("", "whoami"); code != exitOK {
		t.Errorf("the session of before is lost: %s", e)
	}
	if code, _, e := u.run("", "logout"); code != exitOK {
		t.Error(e)
	}
	data, err := os.ReadFile(session)
	if err != nil || strings.Contains(string(data), "token") || !strings.Contains(string(data), "fingerprint") {
		t.Errorf("after the logout the session file holds %s (%v)", data, err)
	}
	if code, _, _ := u.run("", "whoami"); code != exitLogin {
		t.Errorf("after the logout: exit %d", code)
	}
}

func TestLoginOfScripts(t *testing.T) {
	u := newUser(t)
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	first, fresh, weak := file("first", servertest.Password+"\n"), file("fresh", "an entirely new one"), file("weak", "short\n")
	for _, test := range []struct {
		name, in string
		args     []string
		code     int
		says     string
	}{
		{"no fingerprint", "", []string{"--password-file", first}, exitError, "--fingerprint"},
		{"another fingerprint", "", []string{"--fingerprint", strings.Repeat("0", 64), "--password-file", first}, exitError, "is not the trusted one"},
		{"no fingerprint at all", "", []string{"--fingerprint", "xyz", "--password-file", first}, exitUsage, "SHA-256"},
		{"no password", "", []string{"--fingerprint", u.r.Fingerprint}, exitError, "COFFER_PASSWORD"},
		{"no such file", "", []string{"--fingerprint", u.r.Fingerprint, "--password-file", dir + "/none"}, exitError, "no such file"},
		{"must change, cannot", "", []string{"--fingerprint", u.r.Fingerprint, "--user", "new", "--password-file", first}, exitLogin, "--new-password-file"},
		{"must change, too short", "", []string{"--fingerprint", u.r.Fingerprint, "--user", "new", "--password-file", first, "--new-password-file", weak}, exitError, "length"},
		{"must change, does", "", []string{"--fingerprint", u.r.Fingerprint, "--user", "new", "--password-file", first, "--new-password-file", fresh}, exitOK, "must be changed now"},
		{"from standard input", "an entirely new one\n", []string{"--user", "new", "--password-file", "-"}, exitOK, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			code, _, errOut := u.run(test.in, append([]string{"login", u.r.URL}, test.args...)...)
			if code != test.code || !strings.Contains(errOut, test.says) {
				t.Errorf("exit %d, want %d; said: %s", code, test.code, errOut)
			}
		})
	}
}

func TestEnvironmentInsteadOfSession(t *testing.T) {
	u := newUser(t)
	u.login("rita")
	code, out, errOut := u.run("", "token", "add", "script", "--json")
	if code != exitOK {
		t.Fatal(errOut)
	}
	secret := out[strings.Index(out, `"secret": "`)+len(`"secret": "`):]
	secret = secret[:strings.IndexByte(secret, '"')]
	u.env = map[string]string{"COFFER_CONFIG_DIR": t.TempDir(), "COFFER_SERVER": u.r.URL, "COFFER_FINGERPRINT": u.r.Fingerprint, "COFFER_TOKEN": secret}
	if code, out, errOut := u.run("", "whoami"); code != exitOK || !strings.Contains(out, "rita") {
		t.Errorf("exit %d: %s%s", code, out, errOut)
	}
	u.env["COFFER_TOKEN"] = "wrong"
	if code, _, _ := u.run("", "whoami"); code != exitLogin {
		t.Errorf("a wrong token: exit %d", code)
	}
}

func TestPasswd(t *testing.T) {
	u := newUser(t)
	u.login("olga")
	u.terminal = true
	code, _, errOut := u.run(servertest.Password+"\nshort\nshort\nlong enough now\nlong enough now\n", "passwd")
	if code != exitOK || !strings.Contains(errOut, "try again") {
		t.Errorf("exit %d: %s", code, errOut)
	}
}

func TestDownloads(t *testing.T) {
	u := newUser(t)
	u.r.Backend.AddBroken()
	u.login("rita")
	t.Chdir(t.TempDir())
	if code, out, e := u.run("", "saveset", "get", "a1b2c3", "/etc/fstab"); code != exitOK || out != "fstab: 40 B\n" {
		t.Errorf("exit %d: %s%s", code, out, e)
	}
	if code, _, e := u.run("", "saveset", "get", "a1b2c3", "/etc/fstab"); code != exitError || !strings.Contains(e, "--force") {
		t.Errorf("overwriting: exit %d: %s", code, e)
	}
	if code, _, e := u.run("", "saveset", "get", "a1b2c3", "/etc/fstab", "--force", "--tar", "-o", "fstab"); code != exitOK {
		t.Error(e)
	}
	code, _, e := u.run("", "saveset", "get", "a1b2c3", servertest.Broken)
	if code != exitError || !strings.Contains(e, "cut off") {
		t.Errorf("a torn download: exit %d: %s", code, e)
	}
	names, err := os.ReadDir(".")
	if err != nil || len(names) != 1 {
		t.Errorf("left behind: %v, %v", names, err)
	}
}

func TestCompletion(t *testing.T) {
	u := newUser(t)
	u.login("root")
	for line, want := range map[string]string{
		"client show w":                "web1\tonline",
		"backup web":                   "web1-etc\ton web1",
		"saveset ls a":                 "a1b2c3d4e5f60718\tweb1-etc FULL 2026-11-22 02:15:00",
		"saveset ls latest:d":          "latest:db1-pg\tthe newest of db1-pg",
		"saveset get a1b2c3 /etc/host": "/etc/hosts",
		"restore a1b2c3 /etc/ss":       "/etc/ssl/",
		"user role rita op":            "operator",
		"backup x --level F":           "FULL",
		"restore x --client d":         "db1\toffline",
	} {
		args := append([]string{"__complete"}, strings.Fields(line)...)
		_, out, errOut := u.run("", args...)
		if first, _, _ := strings.Cut(out, "\n"); first != want {
			t.Errorf("%s: %q, want %q (%s)", line, first, want, errOut)
		}
	}
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if code, out, e := u.run("", "completion", shell); code != exitOK || len(out) < 1000 {
			t.Errorf("completion %s: exit %d, %d bytes: %s", shell, code, len(out), e)
		}
	}
}
