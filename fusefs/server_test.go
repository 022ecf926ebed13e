//go:build linux

package fusefs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// The server, driven as the kernel drives it, with nothing mounted.

func testServer(t *testing.T, root Dir) (*server, *bytes.Buffer) {
	t.Helper()
	var log bytes.Buffer
	o := Options{Logger: slog.New(slog.NewTextHandler(&log, nil))}.withDefaults()
	s := newServer(root, o)
	t.Cleanup(s.watch.close)
	return s, &log
}

func lookup(t *testing.T, s *server, parent uint64, name string) *fuse.EntryOut {
	t.Helper()
	var out fuse.EntryOut
	if st := s.Lookup(nil, &fuse.InHeader{NodeId: parent}, name, &out); !st.Ok() {
		t.Fatalf("lookup %q: %v", name, st)
	}
	return &out
}

func TestLookupAndForget(t *testing.T) {
	var mt memTree
	file := mt.file([]byte("x"))
	s, _ := testServer(t, mt.dir(map[string]Node{"one": file, "two": file}))
	one, two := lookup(t, s, rootID, "one"), lookup(t, s, rootID, "two")
	if one.NodeId != two.NodeId || one.Ino != two.Ino {
		t.Errorf("hard links are inodes %d and %d", one.NodeId, two.NodeId)
	}
	if got := s.inodes.size(); got != 2 {
		t.Errorf("%d inodes, want root and file", got)
	}
	s.Forget(one.NodeId, 1)
	if s.inodes.get(one.NodeId) == nil {
		t.Error("an inode with a reference is gone")
	}
	s.Forget(one.NodeId, 1)
	if s.inodes.get(one.NodeId) != nil {
		t.Error("an inode without references is there")
	}
	var out fuse.AttrOut
	if st := s.GetAttr(nil, &fuse.GetAttrIn{InHeader: fuse.InHeader{NodeId: one.NodeId}}, &out); st != fuse.Status(syscall.ESTALE) {
		t.Errorf("stat of a forgotten inode: %v, want ESTALE", st)
	}
	if again := lookup(t, s, rootID, "one"); again.NodeId == one.NodeId {
		t.Error("an inode number was used twice")
	}
}

func TestTableTellsTheOldest(t *testing.T) {
	var mt memTree
	tab := newTable(mt.dir(nil), 100)
	for i := range 90 {
		num := tab.add(mt.file(nil), rootID, fmt.Sprint(i))
		if i%2 == 0 {
			tab.forget(num, 1)
		}
	}
	tab.add(mt.dir(nil), rootID, "dir")
	if old := tab.oldest(10); len(old) != 0 || len(tab.full) != 0 {
		t.Fatalf("%d of %d inodes are too many", len(old), tab.size())
	}
	for i := range 100 {
		tab.add(mt.file(nil), rootID, fmt.Sprint("more ", i))
	}
	if len(tab.full) != 1 {
		t.Error("a full table says nothing")
	}
	old := tab.oldest(50)
	if len(old) != 50 || old[0].name != "1" || old[44].name != "89" || old[45].name != "more 0" {
		t.Errorf("oldest: %d, %q …", len(old), old[0].name)
	}
}

// TestQueueStaysSmall makes and forgets inodes: those that are gone take no room.
func TestQueueStaysSmall(t *testing.T) {
	var mt memTree
	tab := newTable(mt.dir(nil), 100)
	for range 100_000 {
		tab.forget(tab.add(mt.file(nil), rootID, "x"), 1)
	}
	if cap(tab.queue) > 2048 {
		t.Errorf("the queue has room for %d", cap(tab.queue))
	}
}

func TestMissingNamesAreRemembered(t *testing.T) {
	var mt memTree
	volatile := mt.dir(nil)
	volatile.volatile = true
	s, _ := testServer(t, mt.dir(map[string]Node{"v": volatile}))
	gone := lookup(t, s, rootID, "gone")
	if gone.NodeId != 0 || gone.EntryTimeout() != forever {
		t.Errorf("a missing name: inode %d for %v", gone.NodeId, gone.EntryTimeout())
	}
	v := lookup(t, s, rootID, "v")
	if v.AttrTimeout() != moment || v.EntryTimeout() != forever {
		t.Errorf("a volatile directory: attributes for %v, entry for %v", v.AttrTimeout(), v.EntryTimeout())
	}
	if below := lookup(t, s, v.NodeId, "gone"); below.EntryTimeout() != moment {
		t.Errorf("a missing name in a volatile directory: %v", below.EntryTimeout())
	}
}

func TestAttributes(t *testing.T) {
	var mt memTree
	dev := mt.node(0o20640)
	dev.attr.Rdev = unix.Mkdev(4095, 1048575)
	dev.attr.UID, dev.attr.GID = 1<<32-2, 65534
	s, _ := testServer(t, mt.dir(map[string]Node{"dev": dev}))
	a := lookup(t, s, rootID, "dev").Attr
	if a.Mode != 0o20640 || a.Uid != 1<<32-2 || a.Gid != 65534 || int64(a.Mtime) != -1 || a.Mtimensec != 999999999 {
		t.Errorf("attributes %+v", a)
	}
	if a.Rdev != 0xffffffff {
		t.Errorf("device number %#x", a.Rdev)
	}
}

func TestKernelDev(t *testing.T) {
	for _, c := range []struct{ major, minor uint32 }{{1, 3}, {8, 17}, {4095, 1048575}, {259, 300}, {0, 0}} {
		want := c.minor&0xff | c.major<<8 | (c.minor&^0xff)<<12 // new_encode_dev
		if got := kernelDev(unix.Mkdev(c.major, c.minor)); got != want {
			t.Errorf("%d:%d is %#x, want %#x", c.major, c.minor, got, want)
		}
	}
}

// TestListInSmallPieces lists a directory through buffers that take few entries, in both forms.
func TestListInSmallPieces(t *testing.T) {
	for _, plus := range []bool{false, true} {
		t.Run(fmt.Sprintf("plus=%v", plus), func(t *testing.T) {
			var mt memTree
			s, _ := testServer(t, mt.wide(500))
			names := listAll(t, s, plus)
			if len(names) != 502 || names[0] != "." || names[1] != ".." || names[2] != "entry-000000" || names[501] != "entry-000499" {
				t.Errorf("%d names: %.5q", len(names), names)
			}
			if want := map[bool]int{false: 1, true: 501}[plus]; s.inodes.size() != want {
				t.Errorf("the kernel holds %d inodes, want %d", s.inodes.size(), want)
			}
		})
	}
}

func listAll(t *testing.T, s *server, plus bool) (names []string) {
	t.Helper()
	for off := uint64(0); ; {
		out := fuse.NewDirEntryList(make([]byte, 1000), off)
		in := &fuse.ReadIn{InHeader: fuse.InHeader{NodeId: rootID}, Offset: off}
		op, parse := s.ReadDir, fuse.ParseDirEntries
		if plus {
			op, parse = s.ReadDirPlus, func(b []byte) ([]fuse.DirEntry, error) {
				e, _, err := fuse.ParseDirLookupEntries(b)
				return e, err
			}
		}
		if st := op(nil, in, out); !st.Ok() {
			t.Fatalf("list at %d: %v", off, st)
		}
		entries, err := parse(out.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		if len(entries) == 0 {
			return names
		}
		for _, e := range entries {
			names = append(names, e.Name)
		}
		off = out.Offset
	}
}

func TestNamesTooLongForLinuxAreLeftOut(t *testing.T) {
	var mt memTree
	s, log := testServer(t, mt.dir(map[string]Node{strings.Repeat("n", 256): mt.file(nil), "z": mt.file(nil)}))
	if names := listAll(t, s, true); len(names) != 3 || names[2] != "z" {
		t.Errorf("listed %.10q", names)
	}
	if !strings.Contains(log.String(), "too long") {
		t.Errorf("log: %s", log)
	}
}

func TestSeek(t *testing.T) {
	var mt memTree
	f := mt.punched(pattern(100<<10), [2]int64{8192, 16384}, [2]int64{90112, 100 << 10})
	s, _ := testServer(t, mt.dir(map[string]Node{"f": f, "empty": mt.file(nil)}))
	num := lookup(t, s, rootID, "f").NodeId
	for _, c := range []struct {
		off    uint64
		whence uint32
		want   uint64
		st     fuse.Status
	}{
		{0, seekData, 0, fuse.OK}, {0, seekHole, 8192, fuse.OK}, {8192, seekData, 16384, fuse.OK}, {9000, seekHole, 9000, fuse.OK},
		{90112, seekData, 0, fuse.Status(syscall.ENXIO)}, {100 << 10, seekHole, 0, fuse.Status(syscall.ENXIO)},
		{95000, seekHole, 95000, fuse.OK}, {1 << 63, seekData, 0, fuse.Status(syscall.ENXIO)},
	} {
		var out fuse.LseekOut
		st := s.Lseek(nil, &fuse.LseekIn{InHeader: fuse.InHeader{NodeId: num}, Offset: c.off, Whence: c.whence}, &out)
		if st != c.st || st.Ok() && out.Offset != c.want {
			t.Errorf("seek %d from %d: %d %v, want %d %v", c.whence, c.off, out.Offset, st, c.want, c.st)
		}
	}
}

func TestXattrs(t *testing.T) {
	var mt memTree
	f := mt.file(nil)
	f.xattrs = map[string][]byte{"user.a": []byte("value"), "user.empty": nil}
	s, _ := testServer(t, mt.dir(map[string]Node{"f": f}))
	h := &fuse.InHeader{NodeId: lookup(t, s, rootID, "f").NodeId}
	buf := make([]byte, 100)
	if n, st := s.GetXAttr(nil, h, "user.a", nil); n != 5 || st != fuse.ERANGE {
		t.Errorf("size: %d %v", n, st)
	}
	if n, st := s.GetXAttr(nil, h, "user.a", buf); string(buf[:n]) != "value" || !st.Ok() {
		t.Errorf("value: %q %v", buf[:n], st)
	}
	if n, st := s.GetXAttr(nil, h, "user.empty", nil); n != 0 || !st.Ok() {
		t.Errorf("empty: %d %v", n, st)
	}
	if _, st := s.GetXAttr(nil, h, "system.posix_acl_access", buf); st != fuse.ENODATA {
		t.Errorf("none: %v", st)
	}
	if n, st := s.ListXAttr(nil, h, buf); string(buf[:n]) != "user.a\x00user.empty\x00" || !st.Ok() {
		t.Errorf("list: %q %v", buf[:n], st)
	}
}

func TestInodeFlags(t *testing.T) {
	var mt memTree
	f := mt.file(nil)
	f.flags = 0x10
	s, _ := testServer(t, mt.dir(map[string]Node{"f": f}))
	num := lookup(t, s, rootID, "f").NodeId
	out := make([]byte, 8)
	in := &fuse.IoctlIn{InHeader: fuse.InHeader{NodeId: num}, Cmd: fsIocGetflags}
	if st := s.Ioctl(nil, in, nil, &fuse.IoctlOut{}, out); !st.Ok() || out[0] != 0x10 {
		t.Errorf("flags % x, %v", out, st)
	}
	in.Cmd++
	if st := s.Ioctl(nil, in, nil, &fuse.IoctlOut{}, out); st != fuse.Status(syscall.ENOTTY) {
		t.Errorf("another ioctl: %v", st)
	}
}

func TestErrors(t *testing.T) {
	for _, c := range []struct {
		name string
		err  error
		want fuse.Status
		log  bool
	}{
		{"store", errors.New("container 12 is damaged"), fuse.EIO, true},
		{"not there", fmt.Errorf("look up: %w", fs.ErrNotExist), fuse.ENOENT, false},
		{"context", context.DeadlineExceeded, fuse.EIO, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			var mt memTree
			f := mt.file(pattern(10))
			f.fail = c.err
			s, log := testServer(t, mt.dir(map[string]Node{"f": f}))
			num := lookup(t, s, rootID, "f").NodeId
			in := &fuse.ReadIn{InHeader: fuse.InHeader{NodeId: num}, Size: 10}
			for range 50 {
				if res, st := s.Read(nil, in, make([]byte, 10)); st != c.want || res != nil {
					t.Fatalf("read: %v with result %v, want %v without", st, res, c.want)
				}
			}
			if got := strings.Count(log.String(), "\n"); got > 1 || got == 1 != c.log {
				t.Errorf("%d log lines: %s", got, log)
			}
		})
	}
}

// TestFailingDirectory lists a directory whose nodes cannot be read.
func TestFailingDirectory(t *testing.T) {
	var mt memTree
	d := mt.wide(3)
	d.fail = errors.New("node is damaged")
	s, log := testServer(t, d)
	in := &fuse.ReadIn{InHeader: fuse.InHeader{NodeId: rootID}, Offset: firstPos}
	if st := s.ReadDir(nil, in, fuse.NewDirEntryList(make([]byte, 1000), firstPos)); st != fuse.EIO {
		t.Errorf("list: %v, want EIO", st)
	}
	if !strings.Contains(log.String(), "node is damaged") {
		t.Errorf("log: %s", log)
	}
}

func TestSlowStore(t *testing.T) {
	cases := []struct {
		name      string
		interrupt bool
		stop      bool
		want      fuse.Status
		after     time.Duration
	}{
		{"times out", false, false, fuse.EIO, time.Minute},
		{"is interrupted", true, false, fuse.EINTR, interruptGrace},
		{"is stopped", false, true, fuse.EIO, time.Second},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var mt memTree
				f := mt.file(pattern(10))
				f.block = make(chan struct{})
				s := newServer(mt.dir(map[string]Node{"f": f}), Options{Logger: slog.New(slog.DiscardHandler)}.withDefaults())
				defer s.watch.close()
				num := lookup(t, s, rootID, "f").NodeId
				cancel := make(chan struct{})
				if c.interrupt {
					close(cancel)
				}
				if c.stop {
					time.AfterFunc(time.Second, func() { s.watch.stop(errStopped) })
				}
				start := time.Now()
				_, st := s.Read(cancel, &fuse.ReadIn{InHeader: fuse.InHeader{NodeId: num}, Size: 10}, make([]byte, 10))
				if st != c.want {
					t.Errorf("read: %v, want %v", st, c.want)
				}
				if took := time.Since(start); took < c.after || took > c.after+2*watchEvery {
					t.Errorf("took %v, want %v", took, c.after)
				}
			})
		})
	}
}

func TestMountinfo(t *testing.T) {
	const table = `36 35 98:0 / /a/b rw,noatime master:1 - ext4 /dev/root rw
37 36 0:50 / /a/b\040c rw shared:2 - fuse.coffer coffer rw
38 36 0:51 / /over rw - fuse.coffer coffer rw
39 38 0:52 / /over rw - tmpfs tmpfs rw
broken line
`
	for dir, want := range map[string]bool{"/a/b": false, "/a/b c": true, "/over": false, "/none": false} {
		if got, err := topIsOurs(strings.NewReader(table), dir); err != nil || got != want {
			t.Errorf("%s: %v %v, want %v", dir, got, err, want)
		}
	}
}
