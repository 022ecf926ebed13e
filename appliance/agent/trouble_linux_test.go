package agent_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"coffer/appliance/agent/agenttest"
	"coffer/appliance/agent/backup"
	"coffer/appliance/agent/restore"
	"coffer/appliance/internal/treecmp"
	"coffer/appliance/sms"
)

func codes(run *agenttest.Run) string {
	var out []string
	for _, n := range run.Notices() {
		out = append(out, fmt.Sprintf("%s:%s", n.Code, filepath.Base(string(n.Path))))
	}
	return strings.Join(out, " ")
}

// A file that is written all the time is noted, kept as it was read, and read again the next time.
func TestChangedWhileRead(t *testing.T) {
	src := t.TempDir()
	for _, size := range []int{100, 4 << 20} {
		write(t, fmt.Sprintf("%s/f%d", src, size), strings.Repeat("x", size))
	}
	stop := make(chan struct{})
	var writing sync.WaitGroup
	for _, name := range []string{"f100", "f4194304"} {
		writing.Go(func() {
			f, err := os.OpenFile(src+"/"+name, os.O_WRONLY|os.O_APPEND, 0)
			if err != nil {
				t.Error(err)
				return
			}
			defer f.Close()
			for {
				select {
				case <-stop:
					return
				default:
					_, _ = f.WriteString("y")
				}
			}
		})
	}
	s := agenttest.New()
	order := sms.BackupOrder{Sources: []sms.Path{sms.Path(src)}}
	run := backUp(t, s, nil, order)
	close(stop)
	writing.Wait()
	if c := run.Committed.Counters; c.Noted == 0 || c.Warnings != 0 || !strings.Contains(codes(run), "changed_while_read:f4194304") {
		t.Errorf("counters %+v, notices %s", c, codes(run))
	}
	dst := t.TempDir()
	restoreTo(t, s, run.Committed.Root, sms.RestoreOrder{Target: sms.Path(dst)})
	if info, err := os.Stat(filepath.Join(dst, src, "f4194304")); err != nil || info.Size() < 4<<20 {
		t.Errorf("the file came back as %v, %v", info, err)
	}
	again := backUp(t, s, run.AsParent(), order)
	if again.Committed.Counters.Files != 2 {
		t.Errorf("read %d files again, want 2", again.Committed.Counters.Files)
	}
}

func TestUnreadable(t *testing.T) {
	needRoot(t)
	if _, err := os.Stat("/proc/self/mem"); err != nil {
		t.Skip("no /proc/self/mem, which opens and cannot be read")
	}
	s := agenttest.New()
	run := backUp(t, s, nil, sms.BackupOrder{Sources: []sms.Path{"/proc/self/mem", "/proc/self/comm"}})
	if c := run.Committed.Counters; c.Warnings != 1 || !strings.Contains(codes(run), "unreadable:mem") {
		t.Errorf("counters %+v, notices %s", c, codes(run))
	}
	dst := t.TempDir()
	restoreTo(t, s, run.Committed.Root, sms.RestoreOrder{Target: sms.Path(dst)})
	if got := list(t, dst+"/proc/"+fmt.Sprint(os.Getpid())); got != "comm" {
		t.Errorf("saved %s", got)
	}
}

// An existing immutable file stays, with a clear word, and the rest is restored.
func TestImmutableFilesInTheWay(t *testing.T) {
	needRoot(t)
	src := t.TempDir()
	write(t, src+"/locked", "saved")
	write(t, src+"/free", "saved")
	write(t, src+"/dir/f", "saved")
	s := agenttest.New()
	root := backUp(t, s, nil, sms.BackupOrder{Sources: []sms.Path{sms.Path(src)}}).Committed.Root
	dst := cleanDir(t)
	top := filepath.Join(dst, src)
	write(t, top+"/locked", "mine")
	write(t, top+"/free", "mine")
	write(t, top+"/dir/other", "mine")
	for _, name := range []string{"/locked", "/dir"} {
		if err := setFlag(top+name, 0x10); err != nil {
			t.Skipf("the file system has no inode flags: %v", err)
		}
	}
	run, out := restoreTo(t, s, root, sms.RestoreOrder{Target: sms.Path(dst), Existing: sms.ExistingOverwrite})
	text := fmt.Sprint(run.Notices())
	if out.Counters.Warnings == 0 || !strings.Contains(text, "chattr") || !strings.Contains(text, "immutable") {
		t.Errorf("warnings %d: %s", out.Counters.Warnings, text)
	}
	if read(t, top+"/free") != "saved" || read(t, top+"/locked") != "mine" {
		t.Errorf("free %q, locked %q", read(t, top+"/free"), read(t, top+"/locked"))
	}
	if got := list(t, top); strings.Contains(got, ".coffer") {
		t.Errorf("temporary files are left: %s", got)
	}
}

func setFlag(path string, flag int) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flag)
}

// What the appliance cannot deliver is a warning for its file alone, and leaves no half file.
func TestMissingChunks(t *testing.T) {
	src := t.TempDir()
	write(t, src+"/good", "good")
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<17)
	for i := range big {
		big[i] ^= byte(i >> 12 * 37)
	}
	write(t, src+"/big", string(big))
	s := agenttest.New()
	root := backUp(t, s, nil, sms.BackupOrder{Sources: []sms.Path{sms.Path(src)}}).Committed.Root
	for _, d := range s.Chunks() {
		s.Drop(d)
	}
	run := s.Restore(root)
	dst := t.TempDir()
	_, err := restore.Run(t.Context(), restore.Options{Run: run, Order: sms.RestoreOrder{Target: sms.Path(dst)}})
	if sms.CodeOf(err) != sms.CodeNotFound {
		t.Errorf("restore without chunks: %v", err)
	}
	if got := list(t, filepath.Join(dst, src)); got != "" {
		t.Errorf("half files are left: %s", got)
	}
}

// Two restores of the same saveset: nothing is in the way of the second, and overwriting gives the same tree again.
func TestRestoreTwice(t *testing.T) {
	needRoot(t)
	src := t.TempDir()
	write(t, src+"/a/f", "x")
	if err := os.Link(src+"/a/f", src+"/b"); err != nil {
		t.Fatal(err)
	}
	_ = os.Symlink("a", src+"/l")
	_ = unix.Mkfifo(src+"/p", 0o640)
	_ = os.Chmod(src+"/a", 0o2750)
	s := agenttest.New()
	root := backUp(t, s, nil, sms.BackupOrder{Sources: []sms.Path{sms.Path(src)}}).Committed.Root
	dst := t.TempDir()
	for _, existing := range []sms.Existing{"", sms.ExistingKeep, sms.ExistingOverwrite, sms.ExistingOverwrite} {
		run, _ := restoreTo(t, s, root, sms.RestoreOrder{Target: sms.Path(dst), Existing: existing})
		noNotices(t, "restore", run)
		treecmp.Check(t, src, filepath.Join(dst, src), treecmp.Options{})
	}
}

// In a directory with a default ACL and the setgid bit a restored file has what it had, not what it inherits.
func TestInheritance(t *testing.T) {
	needRoot(t)
	src := t.TempDir()
	write(t, src+"/d/f", "x")
	s := agenttest.New()
	root := backUp(t, s, nil, sms.BackupOrder{Sources: []sms.Path{sms.Path(src)}}).Committed.Root
	dst := t.TempDir()
	// version 2; user::rwx, user:7:rwx, group::r-x, mask::rwx, other::---
	acl := []byte{2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 2, 0, 7, 0, 7, 0, 0, 0, 4, 0, 5, 0, 255, 255, 255, 255,
		16, 0, 7, 0, 255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255, 255}
	if err := unix.Setxattr(dst, "system.posix_acl_default", acl, 0); err != nil {
		t.Skipf("the file system has no ACLs: %v", err)
	}
	if err := os.Chown(dst, 0, 99); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dst, 0o755|os.ModeSetgid); err != nil {
		t.Fatal(err)
	}
	restoreTo(t, s, root, sms.RestoreOrder{Target: sms.Path(dst)})
	treecmp.Check(t, src, filepath.Join(dst, src), treecmp.Options{})
}

// The skip rule: nothing that changed in any way is taken over.
func TestSkipRule(t *testing.T) {
	src := t.TempDir()
	names := []string{"same", "content", "mtime-set-back", "mode", "renamed-over"}
	old := time.Now().Add(-time.Hour)
	for _, name := range names {
		write(t, src+"/"+name, "old")
		_ = os.Chtimes(src+"/"+name, old, old)
	}
	s := agenttest.New()
	order := sms.BackupOrder{Sources: []sms.Path{sms.Path(src)}}
	first := backUp(t, s, nil, order)
	parent := first.AsParent()
	parent.Started = time.Now().Add(time.Hour) // everything is old enough: what is read again, is for its own change
	_ = os.WriteFile(src+"/content", []byte("newer"), 0o644)
	_ = os.WriteFile(src+"/mtime-set-back", []byte("new"), 0o644)
	_ = os.Chtimes(src+"/mtime-set-back", old, old)
	_ = os.Chmod(src+"/mode", 0o600)
	write(t, src+"/x", "new")
	_ = os.Chtimes(src+"/x", old, old)
	_ = os.Rename(src+"/x", src+"/renamed-over")
	run := backUp(t, s, parent, order)
	if c := run.Committed.Counters; c.Files != 4 {
		t.Errorf("read %d files, want 4: %+v", c.Files, c)
	}
	parent.Started = first.Committed.Started // now all are too young
	if c := backUp(t, s, parent, order).Committed.Counters; c.Files != 5 {
		t.Errorf("read %d files, want all 5", c.Files)
	}
	order.ReadAll = true
	parent.Started = time.Now().Add(time.Hour)
	if c := backUp(t, s, parent, order).Committed.Counters; c.Files != 5 {
		t.Errorf("a FULL read %d files, want all 5", c.Files)
	}
}

// A run that is cancelled in the middle leaves nothing open.
func TestCancelLeavesNothingOpen(t *testing.T) {
	src := t.TempDir()
	for i := range 200 {
		write(t, fmt.Sprintf("%s/d%d/f", src, i), strings.Repeat("x", 20000))
	}
	s := agenttest.New()
	root := backUp(t, s, nil, sms.BackupOrder{Sources: []sms.Path{sms.Path(src)}}).Committed.Root
	before := descriptors(t)
	errStop := errors.New("stop")
	for range 5 {
		ctx, cancel := contextAfter(t, 3*time.Millisecond, errStop)
		_, _ = backup.Run(ctx, backup.Options{Run: s.Backup(nil), Order: sms.BackupOrder{Sources: []sms.Path{sms.Path(src)}}})
		_, _ = restore.Run(ctx, restore.Options{Run: s.Restore(root), Order: sms.RestoreOrder{Target: sms.Path(t.TempDir())}})
		cancel()
	}
	for i := range 3 {
		ctx, cancel := contextAfter(t, time.Duration(i+1)*3*time.Millisecond, errStop)
		_, _ = restore.Run(ctx, restore.Options{Run: s.Restore(root), Order: sms.RestoreOrder{Target: sms.Path(t.TempDir())}})
		cancel()
	}
	if after := descriptors(t); after > before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}
