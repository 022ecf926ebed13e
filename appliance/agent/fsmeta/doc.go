// Package fsmeta is the agent's way to a client's file system: it reads and sets what the system knows of a file (type,
// mode, owner, times, extended attributes, ACLs, inode flags, holes) and reaches every file through the descriptor of
// its directory, never through a path. So no path is too long, and nobody can slip a symlink into the way.
//
// It does not own: which files are read or written (scan, restore), nor how their content is cut and stored.
//
// # What each system gives
//
//	              mode owner times  symlink hardlink device fifo/socket  xattrs ACLs   flags  holes
//	linux         yes  yes   ns     yes     yes      yes    yes/yes      yes    xattrs yes    yes
//	freebsd       yes  yes   ns     yes     yes      yes    yes/no       yes    no     no     yes
//	darwin        yes  yes   ns     yes     yes      yes    yes/no       yes    no     no     no
//	windows       part no    100 ns yes     no       no     no/no        no     no     no     no
//
// Modes, type bits and device numbers are Linux' on every system. On Windows a file's mode has the read-only attribute
// only, and the root directory holds the drives: /C/Users is C:\Users.
package fsmeta
