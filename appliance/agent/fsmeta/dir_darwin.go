package fsmeta

import (
	"golang.org/x/sys/unix"

	"coffer/dedup/recipe"
)

const errIsLink = unix.ELOOP // what O_NOFOLLOW answers

func (s *Stat) fill(raw *unix.Stat_t) {
	*s = Stat{
		Dev: uint64(uint32(raw.Dev)), Ino: raw.Ino, Mode: uint32(raw.Mode), Nlink: uint64(raw.Nlink),
		UID: raw.Uid, GID: raw.Gid, Size: uint64(raw.Size), Allocated: uint64(raw.Blocks) * 512,
		MTime: recipe.Time{Sec: raw.Mtim.Sec, Nsec: uint32(raw.Mtim.Nsec)},
		CTime: recipe.Time{Sec: raw.Ctim.Sec, Nsec: uint32(raw.Ctim.Nsec)},
	}
	if isDevice(s.Mode) {
		s.Rdev = linuxDev(unix.Major(uint64(uint32(raw.Rdev))), unix.Minor(uint64(uint32(raw.Rdev))))
	}
}

func fstypeName(raw *unix.Statfs_t) string { return unix.ByteSliceToString(raw.Fstypename[:]) }
