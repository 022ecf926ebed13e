//go:build linux

package treecmp

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The tests make two small equal trees, change one thing in the second, and want exactly that reported.

const dataSize = 64 << 10

// plant makes a tree with something of every kind.
func plant(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	at := func(name string) string { return filepath.Join(root, name) }
	data := strings.Repeat("0123456789abcdef", dataSize/16)
	must(t,
		os.MkdirAll(at("dir/sub"), 0o755),
		os.WriteFile(at("file"), []byte(data), 0o644),
		os.WriteFile(at("dir/empty"), nil, 0o600),
		os.WriteFile(at("dir/sub/deep"), []byte("deep"), 0o600),
		os.WriteFile(at("linked"), []byte("linked"), 0o600),
		os.WriteFile(at("alone"), []byte("linked"), 0o600),
		os.Link(at("linked"), at("dir/linked")),
		os.Symlink("file", at("symlink")),
		unix.Mkfifo(at("fifo"), 0o600),
		sparse(at("sparse"), 1<<20, 256<<10),
		unix.Setxattr(at("file"), "user.note", []byte("first"), 0),
		os.WriteFile(at("names\xff\n"), []byte("x"), 0o600),
	)
	if os.Geteuid() == 0 {
		must(t, unix.Mknod(at("device"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))))
	}
	long(t, root)
	settle(t, root)
	return root
}

// long makes a path of more than 4,096 bytes below root.
func long(t *testing.T, root string) {
	t.Helper()
	fd, err := unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	must(t, err)
	for range 20 {
		name := strings.Repeat("l", 250)
		must(t, unix.Mkdirat(fd, name, 0o755))
		next, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		must(t, err, unix.Close(fd))
		fd = next
	}
	file, err := unix.Openat(fd, "end", unix.O_CREAT|unix.O_WRONLY, 0o600)
	must(t, err, unix.Close(file), unix.Close(fd))
}

// sparse makes a file with data at the start and at one other place.
func sparse(name string, size, island int64) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	block := []byte(strings.Repeat("data", 16<<10))
	if _, err := f.WriteAt(block, 0); err != nil {
		return err
	}
	if _, err := f.WriteAt(block, island); err != nil {
		return err
	}
	return f.Truncate(size)
}

// settle gives everything the same time. It follows the over-long path by changing into its directories' descriptors.
func settle(t *testing.T, root string) {
	t.Helper()
	fd, err := unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	must(t, err)
	defer unix.Close(fd)
	settleAt(t, fd)
	setTime(t, fd, ".")
}

func settleAt(t *testing.T, fd int) {
	d := &dir{f: os.NewFile(uintptr(dup(t, fd)), "dir")}
	defer d.f.Close()
	names, err := d.names()
	must(t, err)
	for _, name := range names {
		if sub, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0); err == nil {
			settleAt(t, sub)
			must(t, unix.Close(sub))
		}
		setTime(t, fd, name)
	}
}

func dup(t *testing.T, fd int) int {
	again, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	must(t, err)
	return again
}

func setTime(t *testing.T, fd int, name string) {
	t.Helper()
	ts := unix.Timespec{Sec: 1e9, Nsec: 123456789}
	must(t, unix.UtimesNanoAt(fd, name, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW))
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func compare(t *testing.T, a, b string, o Options) Result {
	t.Helper()
	res, err := Compare(t.Context(), a, b, o)
	must(t, err)
	return res
}

func TestEqualTrees(t *testing.T) {
	a, b := plant(t), plant(t)
	for _, workers := range []int{1, 8} {
		res := compare(t, a, b, Options{Workers: workers})
		if !res.Equal() {
			t.Error(res)
		}
		if res.Entries < 35 {
			t.Errorf("looked at %d entries only", res.Entries)
		}
		if min := int64(dataSize + 2*64<<10); res.Bytes < min || res.Bytes > min+1000 {
			t.Errorf("compared %d bytes, the data is %d", res.Bytes, min)
		}
	}
}

// TestEachDifference changes one thing at a time. Times of what is changed are set back, so that nothing else differs.
func TestEachDifference(t *testing.T) {
	needsRoot := os.Geteuid() != 0
	deep := strings.TrimPrefix(strings.Repeat("/"+strings.Repeat("l", 250), 20), "/")
	cases := []struct {
		name   string
		change func(t *testing.T, at func(string) string, fd int) error
		want   string // path: aspect, sorted
		root   bool
	}{
		{"one flipped byte", func(t *testing.T, at func(string) string, fd int) error {
			return write(at("file"), dataSize-1, "X")
		}, "file: content", false},
		{"one flipped byte behind a hole", func(t *testing.T, at func(string) string, fd int) error {
			return write(at("sparse"), 256<<10+5, "X")
		}, "sparse: content", false},
		{"one nanosecond", func(t *testing.T, at func(string) string, fd int) error {
			ts := unix.Timespec{Sec: 1e9, Nsec: 123456790}
			return unix.UtimesNanoAt(fd, "dir/sub/deep", []unix.Timespec{ts, ts}, 0)
		}, "dir/sub/deep: mtime", false},
		{"one nanosecond of a symlink", func(t *testing.T, at func(string) string, fd int) error {
			ts := unix.Timespec{Sec: 1e9, Nsec: 123456788}
			return unix.UtimesNanoAt(fd, "symlink", []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
		}, "symlink: mtime", false},
		{"xattr changed", func(t *testing.T, at func(string) string, fd int) error {
			return unix.Setxattr(at("file"), "user.note", []byte("Xirst"), 0)
		}, "file: xattr", false},
		{"xattr added", func(t *testing.T, at func(string) string, fd int) error {
			return unix.Setxattr(at("dir"), "user.other", nil, 0)
		}, "dir: xattr", false},
		{"xattr removed", func(t *testing.T, at func(string) string, fd int) error {
			return unix.Removexattr(at("file"), "user.note")
		}, "file: xattr", false},
		{"ACL", func(t *testing.T, at func(string) string, fd int) error {
			acl := "\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x07\x00\x05\x00\x00\x00" +
				"\x04\x00\x04\x00\xff\xff\xff\xff\x10\x00\x04\x00\xff\xff\xff\xff\x20\x00\x04\x00\xff\xff\xff\xff"
			return unix.Setxattr(at("file"), "system.posix_acl_access", []byte(acl), 0)
		}, "file: xattr", false},
		{"xattr of a symlink", func(t *testing.T, at func(string) string, fd int) error {
			return unix.Lsetxattr(at("symlink"), "trusted.note", []byte("x"), 0)
		}, "symlink: xattr", true},
		{"hole punched", func(t *testing.T, at func(string) string, fd int) error {
			return punch(at("file"), 16<<10, 4<<10)
		}, "file: content file: holes", false},
		{"hole filled with zeros", func(t *testing.T, at func(string) string, fd int) error {
			return write(at("sparse"), 512<<10, strings.Repeat("\x00", 4096))
		}, "sparse: holes", false},
		{"many holes filled", func(t *testing.T, at func(string) string, fd int) error {
			return write(at("sparse"), 512<<10, strings.Repeat("\x00", 512<<10))
		}, "sparse: blocks sparse: holes", false},
		{"mode", func(t *testing.T, at func(string) string, fd int) error {
			return os.Chmod(at("dir/empty"), 0o601)
		}, "dir/empty: mode", false},
		{"setuid", func(t *testing.T, at func(string) string, fd int) error {
			return unix.Chmod(at("file"), 0o4644)
		}, "file: mode", false},
		{"owner", func(t *testing.T, at func(string) string, fd int) error {
			return os.Lchown(at("symlink"), 5, 0)
		}, "symlink: owner", true},
		{"size", func(t *testing.T, at func(string) string, fd int) error {
			return os.Truncate(at("file"), dataSize-1)
		}, "file: size", false},
		{"missing", func(t *testing.T, at func(string) string, fd int) error {
			return os.Remove(at("dir/sub/deep"))
		}, "dir/sub/deep: missing", false},
		{"extra", func(t *testing.T, at func(string) string, fd int) error {
			return os.WriteFile(at("dir/sub/\xff"), nil, 0o600)
		}, "dir/sub/\xff: extra", false},
		{"type", func(t *testing.T, at func(string) string, fd int) error {
			if err := os.Remove(at("dir/empty")); err != nil {
				return err
			}
			return os.Mkdir(at("dir/empty"), 0o600)
		}, "dir/empty: type", false},
		{"target", func(t *testing.T, at func(string) string, fd int) error {
			if err := os.Remove(at("symlink")); err != nil {
				return err
			}
			return os.Symlink("fill", at("symlink"))
		}, "symlink: target", false},
		{"device number", func(t *testing.T, at func(string) string, fd int) error {
			if err := os.Remove(at("device")); err != nil {
				return err
			}
			return unix.Mknod(at("device"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 5)))
		}, "device: rdev", true},
		{"link broken", func(t *testing.T, at func(string) string, fd int) error {
			if err := os.Remove(at("dir/linked")); err != nil {
				return err
			}
			return os.WriteFile(at("dir/linked"), []byte("linked"), 0o600)
		}, "linked: links", false},
		{"link made", func(t *testing.T, at func(string) string, fd int) error {
			if err := os.Remove(at("alone")); err != nil {
				return err
			}
			return os.Link(at("linked"), at("alone"))
		}, "dir/linked: links linked: links", false},
		{"inode flag", func(t *testing.T, at func(string) string, fd int) error {
			return flag(at("file"), flagNodump)
		}, "file: flags", true},
		{"inode flag of a directory", func(t *testing.T, at func(string) string, fd int) error {
			return flag(at("dir"), flagNoatime)
		}, "dir: flags", true},
		{"down a long path", func(t *testing.T, at func(string) string, fd int) error {
			return editDeep(fd)
		}, deep + "/end: size", false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if c.root && needsRoot {
				t.Skip("needs root")
			}
			a, b := plant(t), plant(t)
			fd, err := unix.Open(b, unix.O_RDONLY|unix.O_DIRECTORY, 0)
			must(t, err)
			defer unix.Close(fd)
			err = c.change(t, func(name string) string { return filepath.Join(b, name) }, fd)
			must(t, err)
			if !strings.Contains(c.want, "mtime") {
				settle(t, b)
			}
			var got []string
			for _, d := range compare(t, a, b, Options{}).Differences {
				got = append(got, fmt.Sprintf("%s: %v", d.Path, d.What))
			}
			slices.Sort(got)
			if all := strings.Join(got, " "); all != c.want {
				t.Errorf("reported %q, want %q", all, c.want)
			}
		})
	}
}

func write(name string, off int64, s string) error {
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteAt([]byte(s), off)
	return err
}

func punch(name string, off, n int64) error {
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

func flag(name string, flags int) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	have, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil {
		return err
	}
	return unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, have|flags)
}

// editDeep changes the file at the end of the long path.
func editDeep(root int) error {
	fd := root
	for range 20 {
		next, err := unix.Openat(fd, strings.Repeat("l", 250), unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		if fd != root {
			unix.Close(fd)
		}
		fd = next
	}
	defer unix.Close(fd)
	file, err := unix.Openat(fd, "end", unix.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(file)
	_, err = unix.Write(file, []byte("x"))
	return err
}

func TestOptions(t *testing.T) {
	a, b := plant(t), plant(t)
	must(t, os.Chmod(filepath.Join(b, "file"), 0o600), write(filepath.Join(b, "file"), 0, "X"),
		unix.Setxattr(filepath.Join(b, "file"), "user.note", []byte("second"), 0), os.Remove(filepath.Join(b, "dir/sub/deep")),
		unix.Setxattr(b, "user.root", nil, 0))
	settle(t, b)
	for _, c := range []struct {
		name string
		o    Options
		want int
	}{
		{"all", Options{}, 5},
		{"no modes, no attributes", Options{Ignore: Mode | Xattr}, 2},
		{"not this attribute", Options{SkipXattr: func(name string) bool { return name == "user.note" }}, 4},
		{"not below this directory", Options{Exclude: func(p string) bool { return p == "dir/sub" }}, 4},
		{"not the root", Options{SkipRoot: true}, 4},
		{"not missing files", Options{Ignore: Missing}, 4},
	} {
		t.Run(c.name, func(t *testing.T) {
			if res := compare(t, a, b, c.o); res.Count != c.want {
				t.Errorf("want %d: %v", c.want, res)
			}
		})
	}
	res := compare(t, a, b, Options{MaxReports: 1})
	if res.Count != 5 || len(res.Differences) != 1 {
		t.Errorf("bounded: %v", res)
	}
}

func TestHugeSparseFilesAreQuick(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	for _, dir := range []string{a, b} {
		must(t, sparse(filepath.Join(dir, "huge"), 1<<40, 1<<39))
	}
	settle(t, a)
	settle(t, b)
	start := time.Now()
	if res := compare(t, a, b, Options{}); !res.Equal() || res.Bytes > 1<<20 {
		t.Errorf("%d bytes compared: %v", res.Bytes, res)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("took %v", took)
	}
}

func TestRefusals(t *testing.T) {
	a := t.TempDir()
	if _, err := Compare(t.Context(), a, filepath.Join(a, "none"), Options{}); err == nil {
		t.Error("a root that is not there is equal")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Compare(ctx, a, a, Options{}); err == nil {
		t.Error("a cancelled comparison is equal")
	}
}

func TestUnreadableIsReported(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root can read everything")
	}
	a, b := plant(t), plant(t)
	must(t, os.Chmod(filepath.Join(b, "dir/sub"), 0))
	defer func() { must(t, os.Chmod(filepath.Join(b, "dir/sub"), 0o700)) }()
	if res := compare(t, a, b, Options{Ignore: ^Unreadable}); res.Count == 0 {
		t.Error("not reported")
	}
}

type fakeTB struct {
	testing.TB
	failed []string
}

func (f *fakeTB) Helper() {}
func (f *fakeTB) Errorf(format string, args ...any) {
	f.failed = append(f.failed, fmt.Sprintf(format, args...))
}
func (f *fakeTB) Fatalf(format string, args ...any) { f.Errorf(format, args...) }

func TestCheck(t *testing.T) {
	a, b := plant(t), plant(t)
	f := &fakeTB{TB: t}
	if Check(f, a, b, Options{}); len(f.failed) != 0 {
		t.Error(f.failed)
	}
	must(t, write(filepath.Join(b, "file"), 7, "X"))
	settle(t, b)
	if Check(f, a, b, Options{}); len(f.failed) != 1 || !strings.Contains(f.failed[0], `"file": content: byte 7: 0x37, 0x58`) {
		t.Error(f.failed)
	}
}

func TestAspectNames(t *testing.T) {
	if got := (Missing | Unreadable | 1<<20).String(); got != "missing+unreadable+0x100000" {
		t.Error(got)
	}
}
