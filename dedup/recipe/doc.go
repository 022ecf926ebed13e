// Package recipe owns how a saveset describes itself: trees of nodes for directories, for the extents of files and
// streams, for disk images, and for the side stream. It encodes, checks and reads nodes; it does not store them (Sink, Source) and
// knows neither containers nor the wire.
//
// A node is a record: a clear part (kind, totals, children) that anyone can walk, and a body (names, metadata)
// that a task's own key may seal (Seal, Open; the cipher is package seal's). The digest of a node is the keyed BLAKE3 of its whole record under
// digest.Keys.Node. Every record has exactly one encoding; FORMAT.md has the bytes.
//
// Building: DirBuilder, StreamBuilder and SideBuilder take entries in order and cut nodes where the hash of a name
// (or of a chunk's digest) says so, so that equal runs of entries give equal nodes whatever stands around them.
// Children are put before their parents. ImageBuilder builds disk images, whose trees have a fixed form, and takes parts
// of an earlier one over without reading below them.
//
// Reading: DirIter, StreamIter and SideIter are lazy and seek by reading one path; Lookup finds one name; Walker
// goes through a whole tree, with the side rows beside it if wanted. Image reads a disk image anywhere; a StreamIter goes
// through one as through any file.
//
// INVARIANT: no Entry that this package returns has a name that is empty, ".", ".." or has '/' or NUL in it, and
// the names of a directory are strictly ascending by their bytes. Names are otherwise any bytes; what a target
// system cannot take (a backslash on Windows) is the restoring side's affair.
package recipe
