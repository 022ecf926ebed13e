//go:build linux

package nastytree

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Mutate makes the next generation of a tree that Make made: round counts from 1, and the same rounds on the same tree
// give the same tree again. It deletes, adds, renames, replaces types and changes contents, metadata and links in
// "changing" and "wide", with clocks that step to and fro. Made.Log tells what was done.
func Mutate(dir string, round int, o Options) (Made, error) {
	m, root, err := open(dir, o)
	if err != nil {
		return Made{}, fmt.Errorf("change a nasty tree: %w", err)
	}
	defer root.close()
	mu := &mutation{maker: m, round: round, touched: map[string]bool{},
		r: rand.New(rand.NewPCG(o.Seed, uint64(round)))}
	mu.changeWide(root)
	mu.settle(root)
	mu.change(root)
	if !o.NoFlags {
		mu.changeFlagged(root)
		mu.settle(root)
	}
	m.setAllFlags(root)
	return m.result("change a nasty tree")
}

// mutation is one round. Paths that it touched get times made from the round, since the clock's would differ from copy to
// copy.
type mutation struct {
	*maker
	round   int
	r       *rand.Rand
	touched map[string]bool
}

// touch gives a changed entry its time of this round: mostly a day later, at times a clock that stepped.
func (mu *mutation) touch(d *node, name string) {
	rel := d.path(name)
	mu.touched[rel], mu.touched[d.rel] = true, true
	mu.times[rel] = unix.Timespec{Sec: 1.76e9 + int64(mu.round)*86400 + mu.r.Int64N(3600), Nsec: mu.r.Int64N(1e9)}
	mu.times[d.rel] = unix.Timespec{Sec: 1.76e9 + int64(mu.round)*86400, Nsec: int64(len(mu.touched))}
}

// settle sets the times of what a step touched, deepest first, before a later step moves it elsewhere.
func (mu *mutation) settle(root *node) {
	paths := slices.Sorted(maps.Keys(mu.touched))
	for _, rel := range slices.Backward(paths) {
		mu.setTime(root, rel, rel)
	}
	clear(mu.touched)
}

func (mu *mutation) note(d *node, what, name string) {
	mu.log = append(mu.log, fmt.Sprintf("%s: %s", what, d.path(name)))
}

func (mu *mutation) changeWide(root *node) {
	d := root.sub(Wide)
	defer d.close()
	names := d.names()
	mu.r.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	part := max(len(names)/100, 1)
	for i, name := range names[:min(3*part, len(names))] {
		switch i % 3 {
		case 0:
			mu.remove(d, name)
		case 1:
			mu.rename(d, name, fmt.Sprintf("renamed-%d-%d", mu.round, i))
		case 2:
			mu.rewrite(d, name, fmt.Appendf(nil, "changed in round %d\n", mu.round))
		}
	}
	for i := range part {
		mu.create(d, fmt.Sprintf("new-%d-%d", mu.round, i))
	}
	mu.note(d, "changed 4 in 100 of", "")
}

// step is one kind of change to an entry of "changing" of the type it asks for.
type step struct {
	what string
	on   uint32 // type, as in st_mode
	do   func(mu *mutation, d *node, name string)
}

var steps = []step{
	{"one byte, same size and mtime", unix.S_IFREG, (*mutation).flipSilently},
	{"append", unix.S_IFREG, (*mutation).grow},
	{"truncate", unix.S_IFREG, (*mutation).shrink},
	{"insert at the front", unix.S_IFREG, (*mutation).insert},
	{"punch a hole", unix.S_IFREG, (*mutation).punch},
	{"touch", unix.S_IFREG, (*mutation).touch},
	{"clock a year back", unix.S_IFREG, (*mutation).clockBack},
	{"clock past 2038", unix.S_IFREG, (*mutation).clockAhead},
	{"chmod", unix.S_IFREG, (*mutation).newMode},
	{"chmod directory", unix.S_IFDIR, (*mutation).newMode},
	{"chown", unix.S_IFREG, (*mutation).newOwner},
	{"xattr", unix.S_IFREG, (*mutation).newXattr},
	{"ACL", unix.S_IFREG, (*mutation).newACL},
	{"rename", unix.S_IFREG, (*mutation).renameAny},
	{"rename directory", unix.S_IFDIR, (*mutation).renameAny},
	{"move into a directory", unix.S_IFREG, (*mutation).moveDown},
	{"delete", unix.S_IFREG, (*mutation).remove},
	{"delete directory", unix.S_IFDIR, (*mutation).remove},
	{"file to directory", unix.S_IFREG, (*mutation).toDirectory},
	{"file to symlink", unix.S_IFREG, (*mutation).toSymlink},
	{"file to fifo", unix.S_IFREG, (*mutation).toFifo},
	{"directory to file", unix.S_IFDIR, (*mutation).toFile},
	{"symlink to file", unix.S_IFLNK, (*mutation).toFile},
	{"replaced, same name, size and mtime", unix.S_IFREG, (*mutation).replaceSilently},
	{"new link", unix.S_IFREG, (*mutation).newLink},
	{"link broken", unix.S_IFREG, (*mutation).breakLink},
}

func (mu *mutation) change(root *node) {
	d := root.sub(Changing)
	defer d.close()
	for i := range 12 {
		mu.create(d, fmt.Sprintf("file-%d-%02d", mu.round, i))
	}
	mu.createTree(d, fmt.Sprintf("dir-%d-a", mu.round))
	mu.createTree(d, fmt.Sprintf("dir-%d-b", mu.round))
	mu.settle(root)
	for _, s := range steps {
		if name, ok := mu.pick(d, s.on); ok {
			mu.note(d, s.what, name)
			s.do(mu, d, name)
			mu.settle(root)
		}
	}
}

// pick chooses an entry of the type, in an order that does not depend on the file system.
func (mu *mutation) pick(d *node, mode uint32) (string, bool) {
	names := slices.DeleteFunc(d.names(), func(name string) bool { return d.stat(name).Mode&unix.S_IFMT != mode })
	if len(names) == 0 {
		return "", false
	}
	return names[mu.r.IntN(len(names))], true
}

func (mu *mutation) create(d *node, name string) {
	d.file(name, prose(mu.r, 1+mu.r.IntN(20000)))
	mu.touch(d, name)
}

func (mu *mutation) createTree(d *node, name string) {
	sub := d.mkdir(name)
	mu.create(sub, "one")
	mu.create(sub, "two")
	sub.close()
	mu.touch(d, name)
}

func (mu *mutation) remove(d *node, name string) {
	if mu.err != nil {
		return
	}
	flags := 0
	if isDir(d.stat(name)) {
		flags = unix.AT_REMOVEDIR
		sub := d.sub(name)
		for _, below := range sub.names() {
			mu.remove(sub, below)
		}
		sub.close()
	}
	if mu.err == nil {
		mu.check("remove", d.path(name), unix.Unlinkat(d.fd, name, flags))
	}
	mu.touch(d, name)
	delete(mu.touched, d.path(name))
}

func (mu *mutation) rename(d *node, name, to string) { mu.move(d, name, d, to) }

func (mu *mutation) move(d *node, name string, into *node, to string) {
	if mu.err == nil {
		mu.check("rename", d.path(name), unix.Renameat(d.fd, name, into.fd, to))
	}
	mu.touch(d, name)
	delete(mu.touched, d.path(name))
	mu.touch(into, to)
	delete(mu.touched, into.path(to)) // a rename keeps the time
}

func (mu *mutation) renameAny(d *node, name string) {
	base, _, _ := strings.Cut(name, ".moved-")
	mu.rename(d, name, fmt.Sprintf("%s.moved-%d", base, mu.round))
}

func (mu *mutation) moveDown(d *node, name string) {
	if dir, ok := mu.pick(d, unix.S_IFDIR); ok {
		into := d.sub(dir)
		mu.move(d, name, into, fmt.Sprintf("moved-%d", mu.round))
		into.close()
	}
}

func (mu *mutation) rewrite(d *node, name string, content []byte) {
	d.edit(name, unix.O_TRUNC, func(f *os.File) error {
		_, err := f.Write(content)
		return err
	})
	mu.touch(d, name)
}

// keepTime makes finish give an entry the time that it has now.
func (mu *mutation) keepTime(d *node, name string) {
	was := d.stat(name).Mtim
	mu.touch(d, name)
	mu.times[d.path(name)] = was
}

func (mu *mutation) flipSilently(d *node, name string) {
	mu.keepTime(d, name)
	d.edit(name, 0, func(f *os.File) error {
		at := d.stat(name).Size / 2
		b := []byte{0}
		if n, _ := f.ReadAt(b, at); n == 0 {
			return nil // an empty file has no byte to change
		}
		b[0] ^= 0x40
		_, err := f.WriteAt(b, at)
		return err
	})
}

func (mu *mutation) grow(d *node, name string) {
	d.edit(name, unix.O_APPEND, func(f *os.File) error {
		_, err := f.Write(noise(mu.r, 5000))
		return err
	})
	mu.touch(d, name)
}

func (mu *mutation) shrink(d *node, name string) {
	d.edit(name, 0, func(f *os.File) error { return f.Truncate(d.stat(name).Size / 3) })
	mu.touch(d, name)
}

func (mu *mutation) insert(d *node, name string) {
	d.edit(name, 0, func(f *os.File) error {
		old := make([]byte, d.stat(name).Size)
		if _, err := f.ReadAt(old, 0); err != nil {
			return err
		}
		_, err := f.WriteAt(append([]byte("in front "), old...), 0)
		return err
	})
	mu.touch(d, name)
}

func (mu *mutation) punch(d *node, name string) {
	d.edit(name, 0, func(f *os.File) error {
		return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 4096, 64<<10)
	})
	mu.touch(d, name)
}

func (mu *mutation) clockBack(d *node, name string) {
	mu.touch(d, name)
	ts := mu.times[d.path(name)]
	ts.Sec -= 365 * 86400
	mu.times[d.path(name)] = ts
}

func (mu *mutation) clockAhead(d *node, name string) {
	mu.touch(d, name)
	mu.times[d.path(name)] = unix.Timespec{Sec: 1<<31 + int64(mu.round), Nsec: 1}
}

func (mu *mutation) newMode(d *node, name string) {
	mu.keepTime(d, name)
	d.chmod(name, d.stat(name).Mode&0o7777^0o050)
}

func (mu *mutation) newOwner(d *node, name string) {
	mu.keepTime(d, name)
	d.chown(name, 1000+mu.round, 2000+mu.round)
}

func (mu *mutation) newXattr(d *node, name string) {
	mu.keepTime(d, name)
	d.xattr(name, "user.round", fmt.Append(nil, mu.round))
}

func (mu *mutation) newACL(d *node, name string) {
	mu.keepTime(d, name)
	d.xattr(name, "system.posix_acl_access", someACL(uint32(5000+mu.round)))
}

func (mu *mutation) toDirectory(d *node, name string) {
	mu.remove(d, name)
	mu.createTree(d, name)
}

func (mu *mutation) toSymlink(d *node, name string) {
	mu.remove(d, name)
	d.symlink(path.Join("..", Files, "empty"), name)
	mu.touch(d, name)
}

func (mu *mutation) toFifo(d *node, name string) {
	mu.remove(d, name)
	d.mknod(name, unix.S_IFIFO|0o600, 0)
	mu.touch(d, name)
}

func (mu *mutation) toFile(d *node, name string) {
	mu.remove(d, name)
	mu.create(d, name)
}

// replaceSilently puts another file in place of one: only its inode and ctime tell.
func (mu *mutation) replaceSilently(d *node, name string) {
	st := d.stat(name)
	mu.remove(d, name)
	d.file(name, noise(mu.r, int(st.Size)))
	d.chown(name, int(st.Uid), int(st.Gid))
	d.chmod(name, st.Mode&0o7777)
	mu.touch(d, name)
	mu.times[d.path(name)] = st.Mtim
}

func (mu *mutation) newLink(d *node, name string) {
	as := fmt.Sprintf("linked-%d", mu.round)
	d.link(name, d, as)
	mu.touch(d, as)
	delete(mu.touched, d.path(as))
}

// breakLink makes a file with several names, if there is one, a file of its own under this name.
func (mu *mutation) breakLink(d *node, _ string) {
	for _, name := range d.names() {
		if st := d.stat(name); isFile(st) && st.Nlink > 1 && strings.HasPrefix(name, "link") {
			mu.note(d, "own file from now on", name)
			mu.replaceSilently(d, name)
			return
		}
	}
}

// changeFlagged changes what chattr protects, as an administrator does: flags off, change, flags on.
func (mu *mutation) changeFlagged(root *node) {
	d := root.sub(Flags)
	defer d.close()
	mu.clean(d)
	mu.grow(d, "immutable")
	mu.grow(d, "append-only")
	mu.flags[d.path("immutable")] = flagImmutable
	mu.flags[d.path("append-only")] = flagAppend
	if mu.round%2 == 0 {
		mu.flags[d.path("immutable-directory")] = flagImmutable
	}
}
