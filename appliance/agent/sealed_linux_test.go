package agent_test

import (
	"bytes"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"coffer/appliance/agent/agenttest"
	"coffer/appliance/agent/backup"
	"coffer/appliance/agent/restore"
	"coffer/appliance/agent/uplink"
	"coffer/appliance/internal/nastytree"
	"coffer/appliance/internal/treecmp"
	"coffer/appliance/sms"
	"coffer/dedup/seal"
)

func sealedBackup(t *testing.T, s *agenttest.Store, key seal.Key, parent *uplink.Parent, order sms.BackupOrder) *agenttest.Run {
	t.Helper()
	run := s.Backup(parent)
	if _, err := backup.Run(t.Context(), backup.Options{Order: order, Run: run, Key: &key}); err != nil {
		t.Fatalf("backup: %v", err)
	}
	return run
}

// Each generation of a nasty tree of an encrypted task comes back as it was; what is stored tells no name and no content.
func TestSealedNastyTree(t *testing.T) {
	needRoot(t)
	src := cleanDir(t)
	opts := nastytree.Options{Seed: 3, Wide: 500}
	if _, err := nastytree.Make(src, opts); err != nil {
		t.Fatal(err)
	}
	marker := strings.Repeat("MARKER-OF-CONTENT ", 100)
	write(t, filepath.Join(src, "MARKER-OF-NAME"), marker)
	key := seal.NewKey()
	s := agenttest.NewSealed(key.ID())
	s.Verify = true
	var parent *uplink.Parent
	for gen := range 3 {
		if gen > 0 {
			if _, err := nastytree.Mutate(src, gen, opts); err != nil {
				t.Fatal(err)
			}
		}
		before, _, _ := s.Stored()
		run := sealedBackup(t, s, key, parent, sms.BackupOrder{Sources: []sms.Path{sms.Path(src)}})
		noNotices(t, "backup", run)
		parent = run.AsParent()
		if after, _, _ := s.Stored(); gen > 0 && after-before > before/2 {
			t.Errorf("generation %d stored %d bytes after %d", gen, after-before, before)
		}
		dst := cleanDir(t)
		for _, verify := range []bool{false, true} {
			rest := s.Restore(run.Committed.Root)
			out, err := restore.Run(t.Context(), restore.Options{Order: sms.RestoreOrder{Target: sms.Path(dst), Verify: verify}, Run: uplink.Unseal(rest, seal.NewOpener(key))})
			if err != nil || out.Different != 0 {
				t.Fatalf("restore: %v, %d differ", err, out.Different)
			}
			noNotices(t, "restore", rest)
		}
		treecmp.Check(t, src, filepath.Join(dst, src), treecmp.Options{})
	}
	for _, mark := range []string{"MARKER-OF-NAME", "MARKER-OF-CONTENT"} {
		if bytes.Contains(s.Frames(), []byte(mark)) {
			t.Errorf("%s is stored in clear", mark)
		}
	}
	if again := sealedBackup(t, s, key, nil, sms.BackupOrder{Sources: []sms.Path{sms.Path(src)}, ReadAll: true}); again.Committed.Counters.BytesSent != 0 {
		t.Errorf("reading all again sends %d bytes", again.Committed.Counters.BytesSent)
	}
	_, err := restore.Run(t.Context(), restore.Options{Order: sms.RestoreOrder{Target: sms.Path(cleanDir(t))}, Run: uplink.Unseal(s.Restore(parent.Root), seal.NewOpener(seal.NewKey()))})
	if !errors.Is(err, seal.ErrKey) {
		t.Errorf("restore with another key: %v", err)
	}
}

func TestSealedStream(t *testing.T) {
	key := seal.NewKey()
	s := agenttest.NewSealed(key.ID())
	order := sms.BackupOrder{TaskType: sms.TaskStream, StreamName: "numbers", Command: []string{"/bin/sh", "-c", "seq 1 3000000"}}
	run := sealedBackup(t, s, key, nil, order)
	out := filepath.Join(t.TempDir(), "out")
	_, err := restore.Run(t.Context(), restore.Options{Run: uplink.Unseal(s.Restore(run.Committed.Root), seal.NewOpener(key)),
		Order: sms.RestoreOrder{TaskType: sms.TaskStream, Command: []string{"/bin/sh", "-c", "cksum > " + out}}})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "file")
	_, err = restore.Run(t.Context(), restore.Options{Run: uplink.Unseal(s.Restore(run.Committed.Root), seal.NewOpener(key)),
		Order: sms.RestoreOrder{TaskType: sms.TaskStream, Target: sms.Path(file)}})
	if err != nil || !strings.HasPrefix(read(t, file), "1\n2\n3\n") || !strings.HasSuffix(read(t, file), "\n3000000\n") {
		t.Fatalf("%v, %d bytes", err, len(read(t, file)))
	}
	if sum := read(t, out); !strings.Contains(sum, " 22888896\n") {
		t.Errorf("piped: %q", sum)
	}
}
