//go:build linux

package nastytree

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// noise returns bytes that do not compress.
func noise(r *rand.Rand, size int) []byte {
	b := make([]byte, size+8)
	for i := 0; i < size; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], r.Uint64())
	}
	return b[:size]
}

// prose returns bytes that compress as text does.
func prose(r *rand.Rand, size int) []byte {
	words := []string{"backup", "of", "the", "night", "and", "its", "thousand", "chunks", "that", "nobody", "restores", "until"}
	var b []byte
	for len(b) < size {
		b = append(b, words[r.IntN(len(words))]...)
		b = append(b, " \n"[r.IntN(2)])
	}
	return b[:size]
}

func (m *maker) files(d *node) {
	d.file("empty", nil)
	for _, size := range []int{1, 2, 511, 512, 513, 4095, 4096, 4097, 65536, 256<<10 - 1, 256 << 10, 256<<10 + 1, 512<<10 - 1,
		512 << 10, 512<<10 + 1, 1 << 20, 3<<20 + 7, 9<<20 + 1} {
		name := fmt.Sprintf("%d", size)
		d.file("noise-"+name, noise(m.rand(d.path(name)), size))
		d.file("prose-"+name, prose(m.rand(d.path(name)), size))
	}
	same := noise(m.rand(d.path("same")), 700<<10)
	d.file("same-1", same)
	d.file("same-2", same)
	d.mkdir("empty-directory").close()
}

func (m *maker) wide(d *node) {
	for i := range m.o.Wide {
		var content []byte
		if i%10 == 0 {
			content = fmt.Appendf(nil, "entry %d of seed %d\n", i, m.o.Seed)
		}
		d.file(fmt.Sprintf("%06d", i), content)
	}
}

// island is a range of data inside a sparse file.
type island struct{ off, size int64 }

func (n *node) sparse(name string, size int64, islands ...island) {
	r := n.m.rand(n.path(name))
	n.fileWith(name, func(f *os.File) error {
		for _, i := range islands {
			if _, err := f.WriteAt(noise(r, int(i.size)), i.off); err != nil {
				return err
			}
		}
		return f.Truncate(size)
	})
}

func (m *maker) sparse(d *node) {
	const k, mi, gi = int64(1) << 10, int64(1) << 20, int64(1) << 30
	d.sparse("hole-only", 8*mi)
	d.sparse("hole-of-1-byte", 1)
	d.sparse("hole-first", 1*mi+64*k, island{1 * mi, 64 * k})
	d.sparse("hole-last", 3*mi, island{0, 64 * k})
	d.sparse("odd-size", 10001, island{10000, 1})
	d.sparse("large-data", 30*mi, island{4 * mi, 3*mi + 4096}, island{20 * mi, 1 * mi})
	d.sparse("islands", 6*gi+1*mi, island{1 * mi, 64 * k}, island{100 * mi, 64 * k}, island{4*gi - 32*k, 64 * k},
		island{4*gi + 5*mi, 64 * k}, island{6 * gi, 4 * k})
	var checks []island
	for i := range int64(64) {
		checks = append(checks, island{i * 8 * k, 4 * k})
	}
	d.sparse("checkered", 64*8*k, checks...)
	d.file("zeros-written", make([]byte, 1<<20))
	if m.o.Huge {
		var far []island
		for i := range int64(16) {
			far = append(far, island{i*64*gi + 12*k, 64 * k})
		}
		d.sparse("huge", 1<<40, far...)
	}
}

func (m *maker) links(d *node) {
	a, b := d.mkdir("a"), d.mkdir("b")
	defer a.close()
	defer b.close()
	a.file("one", []byte("one file, four names"))
	a.link("one", a, "two")
	a.link("one", b, "one")
	a.link("one", d, "three")
	b.file("other", noise(m.rand("links/other"), 600<<10))
	b.link("other", a, "before-other")
	a.file("empty", nil)
	a.link("empty", b, "empty")
	a.symlink("one", "symlink")
	a.link("symlink", b, "symlink")
	a.mknod("fifo", unix.S_IFIFO|0o600, 0)
	a.link("fifo", b, "fifo")
	a.mknod("device", unix.S_IFCHR|0o600, unix.Mkdev(1, 3))
	a.link("device", b, "device")
}

func (m *maker) modes(d *node) {
	for _, mode := range []uint32{0, 0o400, 0o200, 0o111, 0o555, 0o644, 0o666, 0o777, 0o4755, 0o2755, 0o6711, 0o1644, 0o7777} {
		name := fmt.Sprintf("%04o", mode)
		d.file("file-"+name, []byte(name))
		d.chmod("file-"+name, mode)
		sub := d.mkdir("dir-" + name)
		sub.file("inside", []byte(name))
		sub.close()
		d.chmod("dir-"+name, mode)
	}
}

func (m *maker) owners(d *node) {
	for _, id := range []int{1, 1000, 65534, 65535, 65536, 1<<31 - 1, 1 << 31, 1<<32 - 2} {
		name := fmt.Sprintf("%d", id)
		d.file(name, []byte(name))
		d.chown(name, id, 1<<32-2-id)
		d.symlink(name, "link-"+name)
		d.chown("link-"+name, id, id)
		d.mkdir("dir-" + name).close()
		d.chown("dir-"+name, id, id)
	}
	d.file("setuid", nil)
	d.chown("setuid", 1000, 1000)
	d.chmod("setuid", 0o6755) // after chown, which clears these bits
}

func (m *maker) timesFar(d *node) {
	for i, sec := range []int64{-2147483648, -1000000000, -1, 0, 1, 2147483647, 2147483648, 4294967295, 4294967296, 15032385535} {
		for _, nsec := range []int64{0, 1, 999999999} {
			name := fmt.Sprintf("%d.%09d", sec, nsec)
			d.file(name, nil)
			d.at(name, sec, nsec)
		}
		link, dir := fmt.Sprintf("link-%d", i), fmt.Sprintf("dir-%d", i)
		d.symlink("nowhere", link)
		d.at(link, sec, 5)
		d.mkdir(dir).close()
		d.at(dir, sec, 6)
	}
}

func (m *maker) xattrs(d *node) {
	large := noise(m.rand("xattrs"), 4000)
	d.file("large", []byte("4,000 bytes of attribute"))
	d.xattr("large", "user.large", large)
	d.file("several", nil)
	for i := range 20 {
		d.xattr("several", fmt.Sprintf("user.number-%d", i), large[:i*8])
	}
	d.file("odd", nil)
	d.xattr("odd", "user.\xff\xfe not UTF-8 \n", []byte("\x00\xff\x00"))
	d.xattr("odd", "user."+strings.Repeat("n", 250), nil)
	d.xattr("odd", "user.empty", nil)
	d.xattr("odd", "trusted.coffer", []byte("root's"))
	d.mkdir("directory").close()
	d.xattr("directory", "user.large", large)
	d.symlink("large", "symlink")
	d.xattr("symlink", "trusted.coffer", []byte("of the link"))
	d.mknod("fifo", unix.S_IFIFO|0o600, 0)
	d.xattr("fifo", "trusted.coffer", []byte("of the fifo"))
	d.mknod("device", unix.S_IFBLK|0o600, unix.Mkdev(7, 200))
	d.xattr("device", "trusted.coffer", []byte("of the device"))
}

// aclEntry is one entry of a POSIX ACL, in the order and with the tags of linux/posix_acl.h.
type aclEntry struct {
	tag, perm uint16
	id        uint32
}

const noID = 1<<32 - 1

func encodeACL(entries ...aclEntry) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 2) // POSIX_ACL_XATTR_VERSION
	for _, e := range entries {
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, e.perm)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	return b
}

func someACL(user uint32) []byte {
	return encodeACL(aclEntry{1, 6, noID}, aclEntry{2, 7, user}, aclEntry{4, 4, noID}, aclEntry{8, 5, 1000},
		aclEntry{16, 7, noID}, aclEntry{32, 0, noID})
}

func (m *maker) acls(d *node) {
	d.file("file", []byte("with an access ACL"))
	d.xattr("file", "system.posix_acl_access", someACL(65534))
	sub := d.mkdir("directory")
	d.xattr("directory", "system.posix_acl_access", someACL(1))
	d.xattr("directory", "system.posix_acl_default", someACL(2))
	sub.file("inherits", nil)
	sub.mkdir("inherits-too").close()
	sub.close()
	d.mknod("fifo", unix.S_IFIFO|0o600, 0)
	d.xattr("fifo", "system.posix_acl_access", someACL(3))
}

func (m *maker) caps(d *node) {
	d.file("net-raw", []byte("ping"))
	d.xattr("net-raw", "security.capability", capability(0x02000001, 1<<13, -1))
	d.file("of-a-namespace", []byte("ping"))
	d.xattr("of-a-namespace", "security.capability", capability(0x03000001, 1<<10, 100000))
}

// capability encodes struct vfs_cap_data of linux/capability.h, with a root id in version 3.
func capability(magic, permitted uint32, rootID int) []byte {
	b := make([]byte, 20, 24)
	binary.LittleEndian.PutUint32(b[0:], magic)
	binary.LittleEndian.PutUint32(b[4:], permitted)
	if rootID >= 0 {
		b = binary.LittleEndian.AppendUint32(b, uint32(rootID))
	}
	return b
}

func (m *maker) names(d *node) {
	for i, name := range []string{"\xff\xfe", "caf\xe9", "café", "cafe\u0301", "new\nline", "tab\t", " leading", "trailing ", "-rf",
		"*", "?[a-z]{b,c}", `back\slash`, `'quotes"`, "\x01\x7f", strings.Repeat("n", 255), strings.Repeat("é", 127), "...",
		". .", "CON", "a:b", "A", "a", "~", "#x#", "%41%2f", "$HOME", "`id`", "latest", "名前", "\xed\xa0\x80", "file.tmp"} {
		if i%4 == 3 {
			sub := d.mkdir(name)
			sub.file(name, []byte(name))
			sub.close()
			continue
		}
		d.file(name, []byte(name))
	}
}

// deep leads to a path of 5,000 bytes, where only descriptors lead.
func (m *maker) deep(d *node) {
	open := []*node{d}
	for i := range 20 {
		next := open[i].mkdir(strings.Repeat(string(rune('a'+i)), 250))
		next.file("file", fmt.Appendf(nil, "%d directories deep", i))
		open = append(open, next)
	}
	last := open[20]
	last.symlink("file", "symlink")
	last.link("file", open[1], "link-from-below")
	last.xattr("file", "user.deep", []byte("down here"))
	last.mknod("fifo", unix.S_IFIFO|0o640, 0)
	for _, n := range open[1:] {
		n.close()
	}
}

func (m *maker) special(d *node) {
	d.mknod("null", unix.S_IFCHR|0o666, unix.Mkdev(1, 3))
	d.mknod("char-large", unix.S_IFCHR|0o600, unix.Mkdev(4095, 1048575))
	d.mknod("block", unix.S_IFBLK|0o660, unix.Mkdev(8, 17))
	d.mknod("fifo", unix.S_IFIFO|0o622, 0)
	d.mknod("socket", unix.S_IFSOCK|0o755, 0)
}

func (m *maker) symlinks(d *node) {
	d.file("file", []byte("target"))
	d.symlink("file", "relative")
	d.symlink("/etc/passwd", "absolute")
	d.symlink("not-there", "dangling")
	d.symlink("loop", "loop")
	d.symlink(".", "here")
	d.symlink("../../../../..", "up")
	d.symlink("caf\xe9\n", "not-utf8")
	d.symlink(strings.Repeat("long/", 819), "long") // 4,095 bytes
}

func (m *maker) changing(d *node) {
	for i := range 40 {
		name := fmt.Sprintf("file-%02d", i)
		d.file(name, prose(m.rand(d.path(name)), 100+i*1500))
		if i%5 == 0 {
			d.xattr(name, "user.was", []byte("there from the start"))
		}
	}
	for i := range 8 {
		name := fmt.Sprintf("large-%02d", i)
		d.file(name, noise(m.rand(d.path(name)), 3<<20))
		sub := d.mkdir(fmt.Sprintf("dir-%02d", i))
		for j := range 5 {
			name := fmt.Sprintf("inside-%d", j)
			sub.file(name, prose(m.rand(sub.path(name)), 3000))
		}
		sub.mkdir("deeper").close()
		sub.close()
	}
	d.file("link-1", []byte("two names"))
	d.link("link-1", d, "link-2")
}

func (m *maker) chattr(d *node) {
	d.file("immutable", []byte("+i"))
	d.file("append-only", []byte("+a"))
	d.file("nodump-noatime", []byte("+dA"))
	sub := d.mkdir("immutable-directory")
	sub.file("inside", []byte("ordinary"))
	sub.close()
	m.flags[d.path("immutable")] = flagImmutable
	m.flags[d.path("append-only")] = flagAppend
	m.flags[d.path("nodump-noatime")] = flagNodump | flagNoatime
	m.flags[d.path("immutable-directory")] = flagImmutable
}
