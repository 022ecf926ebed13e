package fsmeta

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"coffer/dedup/recipe"
)

const (
	oNoATime      = unix.O_NOATIME
	atNoAutomount = unix.AT_NO_AUTOMOUNT
	errIsLink     = unix.ELOOP // what O_NOFOLLOW answers
	errNoAttr     = unix.ENODATA
)

func (s *Stat) fill(raw *unix.Stat_t) {
	*s = Stat{
		Dev: uint64(raw.Dev), Ino: raw.Ino, Mode: raw.Mode, Nlink: uint64(raw.Nlink), UID: raw.Uid, GID: raw.Gid,
		Size: uint64(raw.Size), Allocated: uint64(raw.Blocks) * 512,
		MTime: recipe.Time{Sec: int64(raw.Mtim.Sec), Nsec: uint32(raw.Mtim.Nsec)},
		CTime: recipe.Time{Sec: int64(raw.Ctim.Sec), Nsec: uint32(raw.Ctim.Nsec)},
	}
	if isDevice(raw.Mode) {
		s.Rdev = linuxDev(unix.Major(uint64(raw.Rdev)), unix.Minor(uint64(raw.Rdev)))
	}
}

// Names appends all names of the directory but "." and "..", in no order. It reads from where the descriptor stands:
// call it once.
func (d *Dir) Names(sc *Scratch, names []Named) ([]Named, error) {
	buf := sc.buffer(&sc.dirents, 64<<10)
	for {
		n, err := unix.Getdents(d.fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return names, errnoErr(err)
		}
		if n <= 0 {
			return names, nil
		}
		names = appendDirents(names, buf[:n])
	}
}

// appendDirents takes records of getdents64 apart: ino 8, off 8, reclen 2, type 1, name NUL. All names of one buffer
// share one string.
func appendDirents(names []Named, buf []byte) []Named {
	const nameOff = int(unsafe.Offsetof(unix.Dirent{}.Name))
	text := string(buf)
	for at := 0; at+nameOff < len(buf); {
		reclen := int(binary.NativeEndian.Uint16(buf[at+16:]))
		if reclen <= nameOff || at+reclen > len(buf) {
			return names
		}
		raw := buf[at+nameOff : at+reclen]
		if end := bytes.IndexByte(raw, 0); end >= 0 {
			raw = raw[:end]
		}
		name := text[at+nameOff : at+nameOff+len(raw)]
		if name != "." && name != ".." && name != "" {
			names = append(names, Named{Name: name, Ino: binary.NativeEndian.Uint64(buf[at:])})
		}
		at += reclen
	}
	return names
}

// procPath is a path to name in the directory that works whatever the directory's own path is.
func procPath(fd int, name string) string {
	return "/proc/self/fd/" + strconv.Itoa(fd) + "/" + name
}

// Xattrs returns the attributes of the directory itself, ascending by name.
func (d *Dir) Xattrs(sc *Scratch) ([]recipe.Xattr, error) { return readXattrs(fdAttrs(d.fd), sc) }

// Xattrs returns the attributes of the file, ascending by name.
func (f File) Xattrs(sc *Scratch) ([]recipe.Xattr, error) { return readXattrs(fdAttrs(f.fd), sc) }

// LXattrs returns the attributes of name in d, symlinks not followed.
func (d *Dir) LXattrs(name string, sc *Scratch) ([]recipe.Xattr, error) {
	return readXattrs(pathAttrs(procPath(d.fd, name)), sc)
}

// Flags returns the settable inode flags of the directory; 0 where the file system has none.
func (d *Dir) Flags() (uint32, error) { return getFlags(d.fd) }

// Flags returns the settable inode flags of the file; 0 where the file system has none.
func (f File) Flags() (uint32, error) { return getFlags(f.fd) }

func getFlags(fd int) (uint32, error) {
	// The kernel moves an int, whatever the name of the ioctl says.
	flags, err := unix.IoctlGetUint32(fd, unix.FS_IOC_GETFLAGS)
	if err != nil {
		switch err {
		case unix.ENOTTY, unix.EOPNOTSUPP, unix.ENOSYS, unix.EINVAL:
			return 0, nil
		}
		return 0, errnoErr(err)
	}
	return flags & SettableFlags, nil
}

// pseudo are the file systems whose files are the kernel's and not data.
var pseudo = map[int64]string{
	unix.PROC_SUPER_MAGIC: "proc", unix.SYSFS_MAGIC: "sysfs", unix.CGROUP_SUPER_MAGIC: "cgroup",
	unix.CGROUP2_SUPER_MAGIC: "cgroup2", unix.DEBUGFS_MAGIC: "debugfs", unix.TRACEFS_MAGIC: "tracefs",
	unix.SECURITYFS_MAGIC: "securityfs", unix.PSTOREFS_MAGIC: "pstore", unix.BPF_FS_MAGIC: "bpf",
	unix.DEVPTS_SUPER_MAGIC: "devpts", unix.EFIVARFS_MAGIC: "efivarfs", unix.BINFMTFS_MAGIC: "binfmt_misc",
	unix.HUGETLBFS_MAGIC: "hugetlbfs", unix.NSFS_MAGIC: "nsfs", unix.SELINUX_MAGIC: "selinuxfs",
	unix.AUTOFS_SUPER_MAGIC: "autofs", unix.RDTGROUP_SUPER_MAGIC: "resctrl",
	0x62656570: "configfs", 0x65735543: "fusectl", 0x19800202: "mqueue", 0x67596969: "rpc_pipefs",
}

const fuseMagic = 0x65735546

// Mount tells what the directory lies on. It asks /proc/self/mountinfo, so that it is for the places only where one
// file system ends and another begins.
func (d *Dir) Mount() (Mount, error) {
	var raw unix.Statfs_t
	if err := unix.Fstatfs(d.fd, &raw); err != nil {
		return Mount{}, errnoErr(err)
	}
	var st Stat
	if err := d.Stat(&st); err != nil {
		return Mount{}, err
	}
	m := Mount{Type: "0x" + strconv.FormatInt(int64(raw.Type), 16)}
	if raw.Fsid.Val != [2]int32{} {
		m.ID = fmt.Sprintf("%x-%08x%08x", int64(raw.Type), uint32(raw.Fsid.Val[0]), uint32(raw.Fsid.Val[1]))
	}
	if name, ok := pseudo[int64(raw.Type)]; ok {
		m.Type, m.Pseudo = name, true
		return m, nil
	}
	fstype, source := mountOf(st.Dev)
	if fstype != "" {
		m.Type = fstype
	}
	m.Pseudo = fstype == "devtmpfs" // its magic number is that of tmpfs
	m.Saveset = int64(raw.Type) == fuseMagic && (source == "coffer" || strings.HasPrefix(fstype, "fuse.coffer"))
	return m, nil
}

// mountOf looks a device up in mountinfo: "36 35 98:0 /root /mnt opts - ext3 /dev/root opts".
func mountOf(dev uint64) (fstype, source string) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", ""
	}
	want := fmt.Sprintf("%d:%d", unix.Major(dev), unix.Minor(dev))
	for line := range strings.Lines(string(table)) {
		head, tail, ok := strings.Cut(line, " - ")
		fields, rest := strings.Fields(head), strings.Fields(tail)
		if ok && len(fields) > 2 && fields[2] == want && len(rest) > 1 {
			return rest[0], rest[1]
		}
	}
	return "", ""
}
