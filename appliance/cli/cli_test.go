package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"coffer/api"
	"coffer/api/server/servertest"
)

var update = flag.Bool("update", false, "rewrite golden files")

// golden holds got against testdata/name, or rewrites it.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (-update rewrites it); got:\n%s", file, got)
	}
}

// shellUser is somebody at a command line with a configuration directory of their own.
type shellUser struct {
	t        *testing.T
	r        *servertest.Running
	env      map[string]string
	terminal bool
}

// sampleTime is the time that the sample server says it is: its sessions end twelve hours after its Epoch.
func sampleTime() time.Time { return servertest.Epoch.Add(time.Hour) }

func newUser(t *testing.T) *shellUser {
	t.Helper()
	return &shellUser{t: t, r: servertest.Start(t, servertest.New()), env: map[string]string{"COFFER_CONFIG_DIR": filepath.Join(t.TempDir(), "coffer")}}
}

// run runs a command line and returns exit code, standard output and standard error.
func (u *shellUser) run(in string, args ...string) (code int, out, errOut string) {
	var o, e bytes.Buffer
	code = Run(u.t.Context(), args, Streams{In: strings.NewReader(in), Out: &o, Err: &e, Zone: time.UTC, Terminal: u.terminal,
		Env: func(name string) string { return u.env[name] }, Now: sampleTime})
	return code, o.String(), e.String()
}

func (u *shellUser) login(user string) {
	u.t.Helper()
	u.env["COFFER_PASSWORD"] = servertest.Password
	if code, _, e := u.run("", "login", u.r.URL, "--user", user, "--fingerprint", u.r.Fingerprint); code != exitOK {
		u.t.Fatalf("login: %s", e)
	}
	delete(u.env, "COFFER_PASSWORD")
}

// endRuns ends every active run as a test wants it, as soon as somebody watches it.
func (u *shellUser) endRuns(state api.RunState, reason string) {
	ctx := u.t.Context()
	go func() {
		for ctx.Err() == nil {
			runs, _ := u.r.Backend.Runs(ctx, api.RunFilter{State: api.RunActive, Limit: 10})
			for _, r := range runs.Items {
				for u.r.Backend.Watchers() == 0 && ctx.Err() == nil {
					time.Sleep(time.Millisecond)
				}
				if state != api.RunSuccess {
					u.r.Backend.Note(r.ID, api.Notice{Severity: api.SeverityWarning, Path: "/etc/shadow", Message: reason})
				}
				u.r.Backend.Update(r.ID, func(r *api.Run) {
					r.Warnings = 1
					r.Progress = api.Progress{Entries: 1500, Bytes: 52 << 20, BytesRead: 3 << 20, BytesNew: 2 << 20, BytesSent: 1 << 20, BytesStored: 1<<20 + 77,
						Stages: api.Stages{Source: 1.5, Store: 0.3, Hashing: 0.01}}
				})
				u.r.Backend.End(r.ID, state, reason)
			}
			time.Sleep(2 * time.Millisecond)
		}
	}()
}

func TestOutput(t *testing.T) {
	for name, lines := range map[string][]string{
		"clients": {"client list", "client show web1", "client add web2", "client add web2", "client token web2", "client revoke web2", "client list --json", "client show none", "client token web1 --json"},
		"tasks": {"task list", "task show web1-etc", "task show db1-pg", "task add t1 --client web1 --source /srv --exclude *.log", "task add t2 --client web1 --source /missing",
			"task add t3 --client web1", "task add t4 --client db1 --stream-name d.sql -- pg_dumpall --clean", "task add t5 --client db1 --command pg_dumpall", "task add t6 extra --client web1",
			"task add t7", "task add t1 --client web1 --type tape", "task remove t1", "task remove t1", "task list --json", "pool list", "pool show default"},
		"machines": {"vm list --host web1", "vm list --host web1=qemu+ssh://nowhere/system", "vm list", "vm list --host web1 --json", "vm tasks sync --host web1 --prefix vm- --dry-run",
			"vm tasks sync --host web1=qemu+ssh://kvm2/system --exclude test-*", "vm tasks sync --host none", "vm tasks sync --host web1 --json", "vm", "vm tasks", "vm eject",
			"task add m1 --client web1 --type libvirt --domain shop --exclude-disk vdb", "task add m2 --client web1 --domain shop --uri qemu+ssh://kvm2/system --mover db1 --quiesce require",
			"task add m3 --client web1 --type libvirt", "task add m4 --client web1 --domain shop --source /srv", "task show m2", "task list"},
		"guests": {"vm booted", "vm boot none12 --host web1", "vm boot latest:web1-etc", "vm boot latest:web1-etc --host web1=qemu:///session --network none", "vm booted", "vm show shop", "vm boot a1b2c3 --host none",
			"vm move shop", "vm move shop --pool ssd", "vm booted --json", "vm restore a1b2c3 --host web1 --pool ssd --name shop2 --json", "vm move 000000000a01 --pool ssd --no-wait",
			"vm boot a1b2c3 --host web1 --name third --no-wait", "vm show third", "vm reset third", "vm reset third --yes", "vm drop third", "vm drop third --yes", "vm drop third --yes",
			"vm boot --help", "vm move --help", "vm restore --help"},
		"savesets": {"saveset list", "saveset list --task web1-etc --limit 1", "saveset show a1b2c3", "saveset ls latest:web1-etc /etc", "saveset ls a1b2c3 /etc --names", "saveset ls a1b2c3 /etc/hosts",
			"saveset ls a1b2c3 /none", "saveset ls latest:none", "saveset ls a1b2c3 /etc/ssl --json", "saveset get a1b2c3 /etc/fstab -o -", "saveset get a1b2c3 etc -o -", "saveset show a1b2c3 --json"},
		"keeping": {"saveset lock a1b2c3", "saveset delete a1b2c3 --yes", "saveset unlock a1b2c3", "saveset delete a1b2c3", "saveset delete a1b2c3 --yes", "saveset immutable a1b2c3",
			"saveset immutable a1b2c3 --until soon", "saveset immutable a1b2c3 --until 2027-01-31 --yes", "saveset show a1b2c3", "saveset delete a1b2c3 latest:web1-etc --yes --force", "saveset list",
			"saveset delete a1b2c3 --yes"},
		"unsealing": {"saveset unseal", "saveset unseal c3d4e5", "saveset unseal a1b2c3 --key-file KEY", "saveset unseal c3d4e5 --key-file PW", "saveset unseal c3d4e5 --key-file KEY --for 30s",
			"saveset unseal c3d4e5 --key-file KEY --for 30m", "saveset unseal --task db1-pg --key-file KEY --json", "saveset unseal c3d4e5 --task db1-pg --key-file KEY", "saveset seal c3d4e5", "saveset seal a1b2c3",
			"task add hr1 --client web1 --source /srv --key-file /k", "task add hr1 --client web1 --source /srv --encrypt 5d41402abc4b2a76b9719d911017c592 --key-file /k", "task show hr1"},
		"runs": {"run list", "run list --state active", "run show run-0001", "run log run-0001", "run cancel run-0001", "run list --limit 1 --json", "run watch run-0001", "run log run-0001 --json", "backup none", "backup db1-pg", "backup web1-etc --no-wait",
			"run cancel run-0004", "run watch run-0004", "restore a1b2c3 --verify --flat --to /x --no-wait", "restore a1b2c3 -- cat", "restore -- cat", "restore a1b2c3 --mode sometimes"},
		"accounts": {"whoami", "user list", "user add eve --role restore --client web1 --password-file PW", "user add eve --role restore --password-file PW", "user add mallory --password-file PW",
			"user role eve operator", "user role eve king", "user remove eve", "user remove eve", "token add nightly", "token list", "token remove t2", "token list", "whoami --json", "audit list --limit 5", "audit list --since tomorrow", "passwd"},
		"exports": {"export list", "export add none12", "export add a1b2c3", "export add latest:web1-etc images/web1.raw --overlay --limit 20GiB --client web1 --purpose drill", "export add a1b2c3 --limit lots",
			"export list", "export show 000000000001", "export show 000000000002", "export show 000000000003", "export list --json", "export commit 000000000001", "export commit 000000000002 --no-wait",
			"export drop 000000000002", "export drop 000000000002 --yes", "export drop 000000000001", "export drop 000000000001", "export", "export eject"},
		"machine": {"store status", "mount status", "mount on", "mount off", "mount on --json", "version", "version --json", "mount", "mount sideways", "nonsense", "--nonsense", "help exit-codes"},
	} {
		t.Run(name, func(t *testing.T) {
			u := newUser(t)
			u.login("root")
			pw := filepath.Join(t.TempDir(), "pw")
			if err := os.WriteFile(pw, []byte("first password\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			key := filepath.Join(t.TempDir(), "key")
			if err := os.WriteFile(key, []byte(servertest.TaskKeyID+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			var all strings.Builder
			for _, line := range lines {
				args := strings.Fields(strings.NewReplacer("PW", pw, "KEY", key).Replace(line))
				code, out, errOut := u.run("", args...)
				fmt.Fprintf(&all, "$ coffer %s\n%s", line, out)
				if errOut != "" {
					fmt.Fprintf(&all, "--- stderr\n%s", errOut)
				}
				fmt.Fprintf(&all, "--- exit %d\n\n", code)
			}
			text := strings.NewReplacer(u.r.URL, "https://backup1:11401", strings.TrimPrefix(u.r.URL, "https://"), "backup1:11401").Replace(all.String())
			golden(t, name+".txt", text)
		})
	}
}

// TestFollow shows how backups and restores that are waited for end, in words and exit codes.
func TestFollow(t *testing.T) {
	var all strings.Builder
	for _, test := range []struct {
		line   string
		state  api.RunState
		reason string
		code   int
	}{
		{"backup web1-etc", api.RunSuccess, "", exitOK},
		{"backup web1-etc --level full", api.RunWarning, "permission denied", exitWarning},
		{"backup web1-etc --json", api.RunError, "the store is full", exitRunFailed},
		{"restore latest:web1-etc /etc --to /tmp/r --mode overwrite", api.RunSuccess, "", exitOK},
		{"restore a1b2c3 --verify", api.RunCancelled, "cancelled by root", exitRunFailed},
	} {
		u := newUser(t)
		u.login("root")
		u.endRuns(test.state, test.reason)
		code, out, errOut := u.run("", strings.Fields(test.line)...)
		if code != test.code {
			t.Errorf("%s: exit code %d, want %d", test.line, code, test.code)
		}
		fmt.Fprintf(&all, "$ coffer %s\n%s--- stderr\n%s--- exit %d\n\n", test.line, out, errOut, code)
	}
	golden(t, "follow.txt", all.String())
}

func TestRestoreRequest(t *testing.T) {
	u := newUser(t)
	u.login("root")
	code, _, e := u.run("", "restore", "latest:web1-etc", "/etc/ssl", "/etc/caf\xe9", "--client", "db1", "--to", "/srv", "--mode", "new-version",
		"--include", "*.pem", "-x", "*.key", "--flat", "--no-wait")
	if code != exitOK {
		t.Fatal(e)
	}
	got, err := json.Marshal(u.r.Backend.Restores)
	const want = `[{"saveset":"b2c3d4e5f6071829","client":"db1","to":"/srv","paths":["/etc/ssl"],"include":["*.pem"],"exclude":["*.key"],"mode":"new-version","flat":true,"paths_base64":["L2V0Yy9jYWbp"]}]`
	if err != nil || string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestInterruptLeavesTheRunGoing(t *testing.T) {
	u := newUser(t)
	u.login("root")
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for u.r.Backend.Watchers() == 0 {
			time.Sleep(time.Millisecond)
		}
		cancel()
	}()
	var out, errOut bytes.Buffer
	code := Run(ctx, []string{"backup", "web1-etc"}, Streams{In: strings.NewReader(""), Out: &out, Err: &errOut, Env: func(n string) string { return u.env[n] }, Now: sampleTime})
	if code != exitInterrupted || !strings.Contains(errOut.String(), "goes on") {
		t.Errorf("exit %d: %s", code, errOut.String())
	}
	if r, _ := u.r.Backend.Run(t.Context(), "run-0004"); r.State != api.RunActive {
		t.Errorf("the run is %s", r.State)
	}
}
