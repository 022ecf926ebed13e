// Package savesettree shows the savesets of a store as a tree for fusefs:
//
//	/<client>/<task>/<2026-11-22T02.15.00Z_INCR>[-n]/…
//	/<client>/<task>/latest -> the newest of them
//
// Times are UTC and those of the run's start; -2, -3 … tell runs of one second apart. The upper levels follow the store:
// savesets appear and go. Below them, nothing ever changes.
//
// Inode numbers are the ranks of entries in their saveset, so they are the same in every mount, and programs that read in
// the order of inode numbers (cp does) read in the order in which the store wrote. Hard links share a number.
//
// Beside each disk image vda.raw there is a folder vda.raw.parts of the file systems inside it (fusefs/disktree).
//
// A saveset is leased from the store while somebody reads it, and for Options.IdleRelease after that. It holds no caches
// of data: those are the store's.
package savesettree
