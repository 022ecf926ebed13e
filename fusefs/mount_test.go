//go:build linux

package fusefs

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Real mounts. Without FUSE they skip, or fail where COFFER_REQUIRE_FUSE=1 says that it has to be there.

// child names what a child process of the tests does instead of testing.
const child = "COFFER_FUSEFS_TEST_CHILD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(child); dir != "" {
		serveAsChild(dir)
	}
	os.Exit(m.Run())
}

func needFUSE(t *testing.T) {
	t.Helper()
	err := Available()
	switch {
	case err == nil:
	case os.Getenv("COFFER_REQUIRE_FUSE") == "1":
		t.Fatal(err)
	default:
		t.Skip(err)
	}
}

// syncBuffer is a log that a test reads while it is written.
type syncBuffer struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func mountTree(t *testing.T, root Dir, o Options) (string, *Mounted, *syncBuffer) {
	t.Helper()
	needFUSE(t)
	log := &syncBuffer{}
	o.Logger = slog.New(slog.NewTextHandler(log, nil))
	dir := t.TempDir()
	m, err := Mount(t.Context(), dir, root, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Unmount(); err != nil {
			t.Error(err)
		}
	})
	return dir, m, log
}

func TestMount(t *testing.T) {
	var mt memTree
	shared := mt.file([]byte("one file"))
	shared.attr.Nlink = 2
	noted := mt.file(pattern(1 << 20))
	noted.xattrs = map[string][]byte{"user.large": pattern(4000), "security.capability": []byte("\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")}
	noted.flags = 0x40
	dir, _, _ := mountTree(t, mt.dir(map[string]Node{
		"file": noted, "a": shared, "b": shared, "link": mt.link("file"), "caf\xe9": mt.file(nil),
		"sub": mt.dir(map[string]Node{"deeper": mt.wide(2000)}),
	}), Options{})

	if got, err := os.ReadFile(filepath.Join(dir, "link")); err != nil || !bytes.Equal(got, noted.data) {
		t.Errorf("read through the link: %d bytes, %v", len(got), err)
	}
	var a, b unix.Stat_t
	if err := errors.Join(unix.Lstat(filepath.Join(dir, "a"), &a), unix.Lstat(filepath.Join(dir, "b"), &b)); err != nil {
		t.Fatal(err)
	}
	if a.Ino != b.Ino || a.Nlink != 2 || a.Mtim.Sec != -1 || a.Mtim.Nsec != 999999999 {
		t.Errorf("hard links: %+v, %+v", a, b)
	}
	value := make([]byte, 5000)
	if n, err := unix.Getxattr(filepath.Join(dir, "file"), "user.large", value); err != nil || !bytes.Equal(value[:n], pattern(4000)) {
		t.Errorf("attribute: %d bytes, %v", n, err)
	}
	f, err := os.Open(filepath.Join(dir, "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS); err != nil || flags != 0x40 {
		t.Errorf("inode flags %#x, %v", flags, err)
	}
	names, err := os.ReadDir(filepath.Join(dir, "sub/deeper"))
	if err != nil || len(names) != 2000 {
		t.Errorf("listed %d names, %v", len(names), err)
	}
	if _, err := os.Stat(filepath.Join(dir, "caf\xe9")); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "new"), nil, 0o644); !errors.Is(err, syscall.EROFS) {
		t.Errorf("writing: %v, want read-only", err)
	}
}

func TestMountFlags(t *testing.T) {
	var mt memTree
	dir, _, _ := mountTree(t, mt.dir(nil), Options{FSName: "my store", Space: func() Space { return Space{Total: 1 << 30, Free: 1 << 20, Files: 7} }})
	table, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(strings.Split(string(table), "\n"), func(l string) bool { return strings.Contains(l, " "+dir+" ") })
	if i < 0 {
		t.Fatal("not in the table of mounts")
	}
	fields := strings.Fields(strings.Split(string(table), "\n")[i])
	options := strings.Split(fields[3], ",")
	for _, want := range []string{"ro", "nosuid", "nodev", "noexec", "user_id=0"} {
		if !slices.Contains(options, want) {
			t.Errorf("option %s is missing from %v", want, options)
		}
	}
	if slices.Contains(options, "allow_other") || fields[2] != fsType || fields[0] != `my\040store` {
		t.Errorf("mounted as %v", fields)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil || st.Blocks*uint64(st.Bsize) != 1<<30 || st.Namelen != 255 || st.Files != 7 {
		t.Errorf("statfs %+v, %v", st, err)
	}
}

func TestHoles(t *testing.T) {
	var mt memTree
	dir, _, _ := mountTree(t, mt.dir(map[string]Node{"f": mt.punched(pattern(1<<20), [2]int64{65536, 131072})}), Options{})
	f, err := os.Open(filepath.Join(dir, "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if off, err := f.Seek(0, unix.SEEK_HOLE); off != 65536 || err != nil {
		t.Errorf("first hole at %d, %v", off, err)
	}
	if off, err := f.Seek(65536, unix.SEEK_DATA); off != 131072 || err != nil {
		t.Errorf("next data at %d, %v", off, err)
	}
}

// TestKernelCaches reads things twice: the second time must not come to us.
func TestKernelCaches(t *testing.T) {
	var mt memTree
	f := mt.file(pattern(4096))
	d := mt.dir(map[string]Node{"f": f})
	dir, _, _ := mountTree(t, d, Options{})
	look := func() {
		if _, err := os.ReadDir(dir); err != nil {
			t.Fatal(err)
		}
		if _, err := os.ReadFile(filepath.Join(dir, "f")); err != nil {
			t.Fatal(err)
		}
	}
	look()
	reads, lists := f.reads.Load(), d.listed.Load()
	look()
	if f.reads.Load() != reads || d.listed.Load() != lists {
		t.Errorf("read %d times, then %d; listed %d times, then %d", reads, f.reads.Load(), lists, d.listed.Load())
	}
}

func TestVolatileDirectoryShowsWhatComes(t *testing.T) {
	var mt memTree
	d := mt.dir(nil)
	d.volatile = true
	dir, _, _ := mountTree(t, d, Options{})
	if names, err := os.ReadDir(dir); err != nil || len(names) != 0 {
		t.Fatal(names, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "new")); !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	d.mu.Lock()
	d.entries["new"] = mt.file(nil)
	d.attr.MTime.Sec++
	d.mu.Unlock()
	deadline := time.Now().Add(5 * moment)
	for {
		names, err := os.ReadDir(dir)
		_, statErr := os.Stat(filepath.Join(dir, "new"))
		if err == nil && len(names) == 1 && statErr == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %v: %v, %v, %v", 5*moment, names, err, statErr)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// cachingDir is a root that takes its mount's cache.
type cachingDir struct {
	*memDir
	cache Cache
}

func (d *cachingDir) UseCache(c Cache) { d.cache = c }

// TestFilledContentIsNotAskedFor puts contents into the kernel's cache, of files that it holds and of one that it does not.
func TestFilledContentIsNotAskedFor(t *testing.T) {
	var mt memTree
	held, other, odd := mt.file(pattern(5000)), mt.file(pattern(10)), mt.file(pattern(3<<20+7))
	root := &cachingDir{memDir: mt.dir(map[string]Node{"held": held, "odd": odd, "sub": mt.dir(map[string]Node{"other": other})})}
	dir, _, _ := mountTree(t, root, Options{})
	if _, err := os.ReadDir(dir); err != nil {
		t.Fatal(err)
	}
	if !root.cache.Fill(held.ID(), held.data) || !root.cache.Fill(odd.ID(), odd.data) || root.cache.Fill(other.ID(), other.data) {
		t.Error("contents of a file that the kernel holds are refused, or others are taken")
	}
	for name, f := range map[string]*memFile{"held": held, "odd": odd, "sub/other": other} {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || !bytes.Equal(got, f.data) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	if held.reads.Load() != 0 || odd.reads.Load() != 0 || other.reads.Load() == 0 {
		t.Errorf("asked %d and %d times for contents that the kernel has, %d times for the other", held.reads.Load(), odd.reads.Load(), other.reads.Load())
	}
}

// TestInodesAreBounded lists more files than the kernel may hold: it is made to forget, and all are there still.
func TestInodesAreBounded(t *testing.T) {
	var mt memTree
	dir, m, _ := mountTree(t, mt.dir(map[string]Node{"wide": mt.wide(20000)}), Options{MaxInodes: 1000})
	open, err := os.Open(filepath.Join(dir, "wide/entry-000007"))
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	for range 2 {
		entries, err := os.ReadDir(filepath.Join(dir, "wide"))
		if err != nil || len(entries) != 20000 {
			t.Fatalf("listed %d, %v", len(entries), err)
		}
		for _, e := range entries[10000:] {
			if _, err := e.Info(); err != nil {
				t.Fatal(err)
			}
		}
		deadline := time.Now().Add(time.Minute)
		for m.Inodes() > 1000 && time.Now().Before(deadline) {
			time.Sleep(10 * time.Millisecond)
		}
		if n := m.Inodes(); n > 1000 {
			t.Errorf("the kernel holds %d inodes", n)
		}
	}
	if b, err := io.ReadAll(open); err != nil || string(b) != "7" {
		t.Errorf("the open file: %q, %v", b, err)
	}
}

func TestStoreErrorIsEIO(t *testing.T) {
	var mt memTree
	f := mt.file(pattern(100000))
	f.fail = errors.New("chunk 4711 is damaged")
	dir, _, log := mountTree(t, mt.dir(map[string]Node{"f": f, "good": mt.file([]byte("fine"))}), Options{})
	if _, err := os.ReadFile(filepath.Join(dir, "f")); !errors.Is(err, syscall.EIO) {
		t.Errorf("read: %v, want EIO", err)
	}
	if !strings.Contains(log.String(), "chunk 4711 is damaged") {
		t.Errorf("log: %s", log)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "good")); err != nil || string(got) != "fine" {
		t.Errorf("another file: %q, %v", got, err)
	}
}

func TestSlowStoreTimesOut(t *testing.T) {
	var mt memTree
	f := mt.file(pattern(100))
	f.block = make(chan struct{})
	dir, _, log := mountTree(t, mt.dir(map[string]Node{"f": f}), Options{Timeout: time.Second})
	start := time.Now()
	if _, err := os.ReadFile(filepath.Join(dir, "f")); !errors.Is(err, syscall.EIO) {
		t.Errorf("read: %v, want EIO", err)
	}
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("took %v", took)
	}
	if !strings.Contains(log.String(), "no answer from the store in time") {
		t.Errorf("log: %s", log)
	}
}

func TestUnmountWhileBusy(t *testing.T) {
	var mt memTree
	slow := mt.file(pattern(100))
	slow.block = make(chan struct{})
	dir, m, _ := mountTree(t, mt.dir(map[string]Node{"f": mt.file(pattern(1 << 20)), "slow": slow}), Options{})
	open, err := os.Open(filepath.Join(dir, "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	waiting := make(chan error, 1)
	go func() {
		_, err := os.ReadFile(filepath.Join(dir, "slow"))
		waiting <- err
	}()
	time.Sleep(100 * time.Millisecond) // the read is with the model now, most likely; the test holds either way
	if err := m.Unmount(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-waiting:
		if err == nil {
			t.Error("a read of a file that never answered succeeded")
		}
	case <-time.After(time.Minute):
		t.Fatal("a read hangs after the unmount")
	}
	if _, err := open.ReadAt(make([]byte, 10), 500000); err == nil {
		t.Error("an open file can be read after the unmount")
	}
	if ours, err := mountedHere(dir); ours || err != nil {
		t.Errorf("still mounted: %v, %v", ours, err)
	}
	if err := m.Unmount(); err != nil {
		t.Errorf("second unmount: %v", err)
	}
}

func TestUnmountByOthers(t *testing.T) {
	var mt memTree
	dir, m, _ := mountTree(t, mt.dir(nil), Options{})
	if err := unix.Unmount(dir, 0); err != nil {
		t.Fatal(err)
	}
	select {
	case <-m.Done():
	case <-time.After(time.Minute):
		t.Fatal("still served")
	}
}

// A mount ends although another mount namespace has a copy of it, as that of a service has that was started meanwhile.
func TestUnmountCopied(t *testing.T) {
	var mt memTree
	_, m, _ := mountTree(t, mt.dir(nil), Options{})
	holder := exec.Command("unshare", "--mount", "--propagation", "private", "sleep", "600")
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = holder.Process.Kill()
		_ = holder.Wait()
	})
	ours, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", holder.Process.Pid))
		if err == nil && theirs != ours {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("it has no namespace of its own: ", err)
		}
	}
	if err := m.Unmount(); err != nil {
		t.Error(err)
	}
}

func TestMountRefuses(t *testing.T) {
	var mt memTree
	dir, _, _ := mountTree(t, mt.dir(nil), Options{})
	if m, err := Mount(t.Context(), dir, mt.dir(nil), Options{}); !errors.Is(err, ErrMounted) {
		t.Errorf("over a living mount: %v, %v", m, err)
	}
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "precious"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if m, err := Mount(t.Context(), full, mt.dir(nil), Options{}); err == nil {
		t.Errorf("over files: %v", m.Unmount())
	}
	if m, err := Mount(t.Context(), filepath.Join(full, "none"), mt.dir(nil), Options{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("nowhere: %v, %v", m, err)
	}
}

// TestOtherUsers reads as nobody: not at all by default, else under the modes and ACLs that the files show.
func TestOtherUsers(t *testing.T) {
	for _, allow := range []bool{false, true} {
		t.Run(fmt.Sprintf("allow=%v", allow), func(t *testing.T) {
			var mt memTree
			open, secret, shared := mt.file([]byte("open")), mt.file([]byte("secret")), mt.file([]byte("shared"))
			secret.attr.Mode = 0o100600
			shared.attr.Mode = 0o100640 // the group's bits are the ACL's mask
			shared.xattrs = map[string][]byte{"system.posix_acl_access": []byte("\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff" +
				"\x02\x00\x04\x00\xfe\xff\x00\x00\x04\x00\x00\x00\xff\xff\xff\xff\x10\x00\x04\x00\xff\xff\xff\xff\x20\x00\x00\x00\xff\xff\xff\xff")}
			dir, _, _ := mountTree(t, mt.dir(map[string]Node{"open": open, "secret": secret, "shared": shared}), Options{AllowOther: allow})
			if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil { // the test's own directory, above the mount
				t.Fatal(err)
			}
			for name, readable := range map[string]bool{"open": allow, "secret": false, "shared": allow} {
				cmd := exec.Command("cat", filepath.Join(dir, name))
				cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
				out, err := cmd.Output()
				if got := err == nil && string(out) == name; got != readable {
					t.Errorf("%s: read %q, %v", name, out, err)
				}
			}
		})
	}
}

// serveAsChild mounts a tree in a process of its own, says so, and waits to be killed.
func serveAsChild(dir string) {
	var mt memTree
	_, err := Mount(context.Background(), dir, mt.dir(map[string]Node{"f": mt.file(pattern(1 << 20))}), Options{})
	fmt.Println("mounted:", err)
	select {}
}

// killedMount leaves the mount of a killed process on a directory.
func killedMount(t *testing.T, dir string) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), child+"="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "mounted: <nil>\n" {
		t.Fatalf("child says %q, %v", line, err)
	}
	if _, err := os.ReadFile(filepath.Join(dir, "f")); err != nil {
		t.Error(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // tells of the kill
}

func TestStaleMountIsCleared(t *testing.T) {
	needFUSE(t)
	dir := filepath.Join(t.TempDir(), "mnt with space")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	killedMount(t, dir)
	if _, err := os.ReadDir(dir); !errors.Is(err, syscall.ENOTCONN) {
		t.Fatalf("after kill -9: %v, want ENOTCONN", err)
	}
	var mt memTree
	m, err := Mount(t.Context(), dir, mt.dir(map[string]Node{"new": mt.file(nil)}), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := m.Unmount(); err != nil {
			t.Error(err)
		}
	}()
	if names, err := os.ReadDir(dir); err != nil || len(names) != 1 {
		t.Errorf("%v, %v", names, err)
	}
}

func TestClearStale(t *testing.T) {
	needFUSE(t)
	dir := t.TempDir()
	if err := ClearStale(t.Context(), dir); err != nil {
		t.Errorf("nothing there: %v", err)
	}
	if err := ClearStale(t.Context(), filepath.Join(dir, "a/b")); err != nil {
		t.Errorf("no directory: %v", err)
	}
	killedMount(t, dir)
	if err := ClearStale(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 0 {
		t.Errorf("%v, %v", names, err)
	}
}
