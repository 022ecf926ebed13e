package volumetest

import (
	"os"
	"syscall"

	"coffer/images/volume"
)

func (c *comparer) unix(a volume.Attr, st os.FileInfo, path string) {
	c.t.Helper()
	s := st.Sys().(*syscall.Stat_t)
	if a.Mode != s.Mode || a.UID != s.Uid || a.GID != s.Gid || !st.IsDir() && uint64(a.Nlink) != uint64(s.Nlink) {
		c.t.Errorf("%s: mode %o, owner %d:%d, %d names; want %o, %d:%d, %d", path, a.Mode, a.UID, a.GID, a.Nlink, s.Mode, s.Uid, s.Gid, s.Nlink)
	}
}
