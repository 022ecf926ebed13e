package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// make install puts everything where a packager wants it, systemd accepts the
// units, and make uninstall leaves data alone.
func TestInstall(t *testing.T) {
	dest := t.TempDir()
	run := func(target string) {
		t.Helper()
		cmd := exec.Command("make", "--no-print-directory", target, "DESTDIR="+dest, "PREFIX=/usr", "BIN="+bin, "-o", "build")
		cmd.Dir = filepath.Join("..", "..", "..")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("make %s: %v: %s", target, err, out)
		}
	}
	run("install")
	for _, name := range []string{"usr/bin/cofferd", "usr/bin/coffer", "usr/bin/coffer-agent", "usr/share/bash-completion/completions/coffer"} {
		if st, err := os.Stat(filepath.Join(dest, name)); err != nil || st.Size() == 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
	verify, err := exec.LookPath("systemd-analyze")
	if err != nil && os.Getenv("COFFER_REQUIRE_LAB") != "" {
		t.Fatal("this test needs Debian's package systemd")
	} else if err != nil {
		t.Skip("systemd-analyze is missing: the units stay unchecked")
	}
	for _, unit := range []string{"cofferd", "coffer-agent"} {
		path := filepath.Join(dest, "etc/systemd/system", unit+".service")
		// The program's path must exist for the check.
		text := strings.ReplaceAll(read(t, path), "/usr/bin/", dest+"/usr/bin/")
		checked := filepath.Join(t.TempDir(), unit+".service")
		write(t, checked, []byte(text))
		if out, err := exec.Command(verify, "verify", checked).CombinedOutput(); err != nil || strings.Contains(string(out), unit) {
			t.Errorf("systemd-analyze verify %s: %v: %s", unit, err, out)
		}
	}
	data := filepath.Join(dest, "var/lib/coffer/precious")
	write(t, data, []byte("data"))
	run("uninstall")
	if _, err := os.Stat(filepath.Join(dest, "usr/bin/cofferd")); !os.IsNotExist(err) {
		t.Errorf("uninstall left cofferd: %v", err)
	}
	if read(t, data) != "data" {
		t.Error("uninstall touched data")
	}
}
