// Package xfs reads XFS file systems, versions 4 and 5, over an io.ReaderAt ("XFS Algorithms & Data Structures", 3rd edition).
//
// Directories of all forms (short, block, leaf, node, tree), extents in the inode and in trees, sparse and preallocated files,
// shared extents, big times and large counts of extents are read. The log is not replayed: what was not yet written back when
// the disk was copied is as it was before. Refused by name: directories of version 1, files on a real-time device, features
// that are newer than this.
//
// It is our own because what exists for Go keeps an entry in memory for every block that an extent claims, reads only from a
// file's beginning on, shares one position between all readers, and reads no symbolic links.
package xfs
