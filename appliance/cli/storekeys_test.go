package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"coffer/api/server/servertest"
)

// TestStoreKeys shows the commands of the store's keys; no secret is ever an argument.
func TestStoreKeys(t *testing.T) {
	u := newUser(t)
	u.login("root")
	dir := t.TempDir()
	files := map[string]string{"RIGHT": servertest.StorePassword, "WRONG": "not it", "NEW": "a new store password"}
	for name, secret := range files {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(secret+"\nsecond line\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		files[name] = file
	}
	var all strings.Builder
	for _, line := range []string{"store unlock", "store unlock --password-file WRONG", "store unlock --password-file RIGHT", "store unlock --create --password-file RIGHT",
		"store unlock --create --recovery-key", "TERMINAL", "store unlock", "store unlock --recovery-key", "SCRIPT", "store lock", "store key", "store key list",
		"store key set-password", "store key set-password --new-password-file NEW", "store key remove key-file", "store key remove door", "store key set-file",
		"store key recovery", "store key recovery --json", "store key list --json", "store key rotate", "store key destroy 1", "store key destroy 1 --yes", "store key destroy 9 --yes",
		"store key destroy x --yes", "store key encrypt --key-file", "store key encrypt"} {
		switch line {
		case "TERMINAL", "SCRIPT":
			u.terminal = line == "TERMINAL"
			continue
		}
		args := strings.Fields(line)
		for i, a := range args {
			if file, ok := files[a]; ok {
				args[i] = file
			}
		}
		code, out, errOut := u.run(servertest.StorePassword+"\n", args...)
		all.WriteString(transcript(line, code, out, errOut))
	}
	golden(t, "storekeys.txt", all.String())
}
