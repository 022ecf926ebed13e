package dedup

import "golang.org/x/sys/unix"

// adviseHugePages asks for huge pages in a range of memory that is a multiple of theirs.
func adviseHugePages(addr, n uintptr) {
	_, _, _ = unix.Syscall(unix.SYS_MADVISE, addr, n, unix.MADV_HUGEPAGE) // a hint
}
